"""Models whose parameters are spread over ranks by ``fully_shard`` of torch (FSDP2).

Between calls each rank has a slice of every parameter, as a `DTensor`; while a module runs,
forward or backward, its parameters are whole, so that hooks see what they see otherwise. All
ranks must run the model equally often.
"""

from collections.abc import Sequence
from itertools import islice

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor


def is_sharded(model: nn.Module) -> bool:
    """Tell whether a model is spread over ranks by ``fully_shard``.

    Args:
        model: Any module.

    Example:
        >>> is_sharded(nn.Linear(2, 3))
        False
    """
    return any(isinstance(module, FSDPModule) for module in model.modules())


def put_away(model: nn.Module) -> None:
    """Give back what a forward without backward has left whole."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def whole(tensor: Tensor) -> Tensor:
    """Return a tensor that may be spread over ranks as one; all ranks call this together."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def own_part(tensor: Tensor) -> Tensor:
    """Return what this rank has of a tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def precision(model: nn.Module) -> torch.dtype | None:
    """Return the shortest type that parameters have while a model runs; None without any."""
    states = [m._get_fsdp_state() for m in model.modules() if isinstance(m, FSDPModule)]
    shortened = [state._mp_policy.param_dtype for state in states]
    own = [parameter.dtype for parameter in islice(model.parameters(), 1)]
    found = [dtype for dtype in (*own, *shortened) if dtype is not None]
    return min(found, key=lambda dtype: dtype.itemsize, default=None)


def mean_gradients(parameters: Sequence[nn.Parameter], loss: Tensor) -> list[Tensor | None]:
    """Return the mean over ranks of the gradient of each parameter, and leave ``.grad`` alone.

    Args:
        parameters: Spread over ranks.
        loss: What is differentiated, a number on each rank.
    """
    before = [parameter.grad for parameter in parameters]
    try:
        for parameter in parameters:
            parameter.grad = None
        loss.backward()
        return [None if p.grad is None else whole(p.grad) for p in parameters]
    finally:
        for parameter, grad in zip(parameters, before, strict=True):
            parameter.grad = grad
