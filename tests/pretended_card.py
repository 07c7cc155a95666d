"""A second device that is none: tensors of it compute on the processor, and refuse to be mixed.

Inside `pretended_card`, whatever is put on the device ``meta`` keeps its numbers. As with a real
card, an operation on tensors of both devices is an error unless one of them is a number without
dimensions or an index, numpy needs ``.cpu()`` first, and a generator must be of the card. Not
shown: kernels that a card lacks or computes otherwise, what runs beside what, and memory.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only

CARD = torch.device("meta")
AUTOCAST = ("autocast", "is_autocast_enabled", "get_autocast_dtype")
FROM_LISTS = ("tensor", "as_tensor")
aten = torch.ops.aten
INTO_FIRST = (aten.copy_.default, aten.index_put_.default, aten._index_put_impl_.default)
MAY_MIX = (aten._to_copy.default, aten.index.Tensor, *INTO_FIRST)


@contextmanager
def pretended_card() -> Iterator[torch.device]:
    """Let there be a card, and give its device."""
    with ExitStack() as stack:
        for name in AUTOCAST:
            stack.enter_context(patch.object(torch, name, _on_processor(getattr(torch, name))))
        for name in FROM_LISTS:
            stack.enter_context(patch.object(torch, name, _then_moved(getattr(torch, name))))
        stack.enter_context(warnings.catch_warnings())
        # torch takes it that there is nothing to be copied to.
        warnings.filterwarnings("ignore", ".*copying from a non-meta parameter.*")
        stack.enter_context(_Card())
        yield CARD


def put_on_card(model: nn.Module) -> None:
    """Put a model on the card; what its modules share stays shared."""
    moved: dict[int, Tensor] = {}
    for module in model.modules():
        held: Any
        for held in (module._parameters, module._buffers):
            for name, tensor in held.items():
                if tensor is not None and id(tensor) not in moved:
                    there = tensor.detach().to(CARD)
                    is_parameter = isinstance(tensor, nn.Parameter)
                    moved[id(tensor)] = (
                        nn.Parameter(there, tensor.requires_grad) if is_parameter else there
                    )
                if tensor is not None:
                    held[name] = moved[id(tensor)]


class OnCard(Tensor):
    """A tensor that says it is on the card."""

    numbers: Tensor
    __torch_function__: Any = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, numbers: Tensor) -> "OnCard":
        """Wrap a tensor of the processor."""
        made: Any = Tensor._make_wrapper_subclass(
            cls,
            numbers.shape,
            strides=numbers.stride(),
            storage_offset=numbers.storage_offset(),
            dtype=numbers.dtype,
            device=CARD,
        )
        made.numbers = numbers
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Compute on the processor."""
        return _compute(func, args, kwargs or {})

    def data_ptr(self) -> int:
        """Return where the numbers are."""
        return self.numbers.data_ptr()

    def untyped_storage(self) -> torch.UntypedStorage:
        """Return what holds the numbers."""
        return self.numbers.untyped_storage()

    def tolist(self) -> Any:
        """Return the numbers as lists."""
        return self.numbers.tolist()

    def numpy(self, *, force: bool = False) -> Any:
        """Refuse, as a card does."""
        if force:
            return self.detach().cpu().numpy()
        raise TypeError("can't convert a tensor of the card to numpy. Use Tensor.cpu() first.")

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        """Refuse, as a card does."""
        return self.numpy()

    def new_tensor(self, data: Any, **kwargs: Any) -> Tensor:
        """Return numbers of a list on the card."""
        return torch.tensor(data, **{"dtype": self.dtype, "device": CARD, **kwargs})

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        """Copy the numbers."""
        return self.detach().clone().requires_grad_(self.requires_grad)


class _Card(TorchDispatchMode):
    """Let what is made on the card be of `OnCard`."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Compute on the processor."""
        return _compute(func, args, kwargs or {})


def _compute(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Run one operation as the card would."""
    leaves = tree_flatten((args, kwargs))[0]
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    on_card = [tensor for tensor in tensors if isinstance(tensor, OnCard)]
    assert all(isinstance(t, OnCard) or t.device != CARD for t in tensors), f"{func} has no numbers"
    asked = kwargs.get("device")
    goes_there = bool(on_card) if asked is None else torch.device(asked) == CARD
    if func in INTO_FIRST or func is aten.index.Tensor:
        goes_there = isinstance(args[0], OnCard)
    _check_devices(func, args, tensors, goes_there)
    if goes_there and any(isinstance(leaf, torch.Generator) for leaf in leaves):
        raise RuntimeError("Expected a generator of the card but found one of the processor")
    args, kwargs = tree_map_only(OnCard, lambda t: t.numbers, (args, kwargs))
    if asked is not None:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    with torch._C._DisableTorchDispatch():
        found = func(*args, **kwargs)
        if func is aten._to_copy.default and found is args[0]:
            found = found.clone()
    if not goes_there:
        return found
    known = {id(tensor.numbers): tensor for tensor in on_card}
    return tree_map_only(Tensor, lambda t: known[id(t)] if id(t) in known else OnCard(t), found)


def _check_devices(func: Any, args: Any, tensors: list[Tensor], goes_there: bool) -> None:
    """Refuse what a card refuses."""
    there = [tuple(t.shape) for t in tensors if isinstance(t, OnCard)]
    here = [tuple(t.shape) for t in tensors if not isinstance(t, OnCard) and t.dim()]
    if there and here and func not in MAY_MIX:
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but {func} got shapes {there} on the "
            f"card and {here} on the processor"
        )
    indexed = func in (aten.index.Tensor, *INTO_FIRST[1:])
    if indexed and not goes_there and any(isinstance(i, OnCard) for i in args[1]):
        raise RuntimeError("indices should be either on cpu or on the device of the tensor")
    if func in INTO_FIRST[1:] and args[2].dim() and isinstance(args[2], OnCard) != goes_there:
        raise RuntimeError("values should be on the device of what they are put into")


def _on_processor(real: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function about autocast that takes the card for the processor."""

    def call(device: Any = "cpu", *args: Any, **kwargs: Any) -> Any:
        device = kwargs.pop("device_type", device)
        return real("cpu" if device == CARD.type else device, *args, **kwargs)

    return call


def _then_moved(real: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that makes tensors on the processor, and moves them to a device."""

    def call(*args: Any, device: Any = None, **kwargs: Any) -> Any:
        made = real(*args, **kwargs)
        return made if device is None else made.to(device)

    return call
