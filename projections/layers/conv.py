"""Two-dimensional convolutions.

Letters: ``n`` examples, ``r`` groups, ``t`` output positions, ``i`` inputs of one patch of
one group, ``o`` output channels of one group.

A convolution is a linear map of patches, and one with groups is one linear map a group.
"""

from typing import cast

from torch import Tensor, nn
from torch.nn import functional

from projections.layers.base import Part, bias_part
from projections.layers.registry import RULES
from projections.per_example import Component, OuterProducts, Vectors


@RULES.register(nn.Conv2d)
def conv2d(module: nn.Module, attributes: frozenset[str]) -> list[Part]:
    """Return weight and bias as one part; patches are unfolded in the order of the weight."""
    assert isinstance(module, nn.Conv2d)
    num_out, num_in = module.out_channels, module.weight[0].numel()
    if "weight" not in attributes:
        return [bias_part("bias", num_out, channel_sums)] if "bias" in attributes else []
    if "bias" in attributes:
        return [Part(("weight", "bias"), ((num_out, num_in), (num_out,)), patch_products)]
    return [Part(("weight",), ((num_out, num_in),), patch_products)]


def patch_products(
    component: Component, module: nn.Module, inputs: Tensor, output_grads: Tensor
) -> OuterProducts:
    """Return patches and output gradients, position by position."""
    assert isinstance(module, nn.Conv2d)
    count, groups = len(inputs), module.groups
    patches = functional.unfold(
        _pad(module, inputs),
        cast(tuple[int, int], module.kernel_size),
        dilation=cast(tuple[int, int], module.dilation),
        stride=cast(tuple[int, int], module.stride),
    )
    grads = output_grads.flatten(2)
    if groups == 1:
        return OuterProducts(component, patches.mT, grads.mT)
    return OuterProducts(
        component,
        patches.view(count, groups, -1, patches.shape[-1]).mT,
        grads.view(count, groups, -1, grads.shape[-1]).mT,
    )


def channel_sums(
    component: Component, module: nn.Module, inputs: Tensor, output_grads: Tensor
) -> Vectors:
    """Return the gradient of a bias alone."""
    return Vectors(component, output_grads.flatten(2).sum(2))


def _pad(module: nn.Conv2d, inputs: Tensor) -> Tensor:
    """Pad as the layer does, in any padding mode."""
    # NOTE: torch keeps the padding of both sides of each axis, last axis first, in a
    # private attribute; computing it again for padding="same" would be the same code.
    padding = cast(list[int], module._reversed_padding_repeated_twice)
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    return functional.pad(inputs, padding, mode=mode)
