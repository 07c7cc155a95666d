"""Kernels of torch that have no backward, or call no layers, and are kept out of the way."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import nn


@contextmanager
def differentiable_kernels(model: nn.Module) -> Iterator[None]:
    """Keep torch from kernels that it takes where no parameter wants a gradient.

    The fast path of attention calls no layers, and cuDNN's recurrent layers have no
    backward in evaluation mode.
    """
    fast = torch.backends.mha.get_fastpath_enabled()
    recurrent = any(isinstance(module, nn.RNNBase) for module in model.modules())
    cudnn = torch.backends.cudnn.flags(enabled=False) if recurrent else nullcontext()
    try:
        torch.backends.mha.set_fastpath_enabled(False)
        with cudnn:
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
