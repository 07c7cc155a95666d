"""Look-ups inside embeddings whose forward does more: scaled tables, offset positions."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle


def watch_lookups(
    module: nn.Module, after: Callable[[Tensor, Tensor], Tensor | None]
) -> list[RemovableHandle]:
    """Watch where an embedding reads its table, while its forward runs.

    Args:
        module: The embedding.
        after: Called with the ids and the rows that were read; what it returns, if
            anything, takes the place of the rows.
    """
    active: list[_Lookups] = []

    def enter(module: nn.Module, args: tuple[Any, ...]) -> None:
        active.append(_Lookups(module, after))
        active[-1].__enter__()

    def leave(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        active.pop().__exit__(None, None, None)

    return [
        module.register_forward_pre_hook(enter),
        module.register_forward_hook(leave, always_call=True),
    ]


class _Lookups(TorchFunctionMode):
    """Sees every function of torch that is called while it is active."""

    def __init__(self, module: nn.Module, after: Callable[[Tensor, Tensor], Tensor | None]) -> None:
        """Keep the arguments."""
        super().__init__()
        self.module, self.after = module, after

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the function, and look at it if it reads the table."""
        output = func(*args, **(kwargs or {}))
        if func is functional.embedding and args[1] is self.module.weight:
            replaced = self.after(args[0], output)
            return output if replaced is None else replaced
        return output
