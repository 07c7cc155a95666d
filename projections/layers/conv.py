"""Convolutions over one, two and three axes, and transposed ones.

Letters: ``n`` examples, ``r`` groups, ``t`` positions, ``i`` inputs of one patch of one
group, ``o`` output channels of one group.

A convolution is a linear map of patches, and one with groups is one linear map a group. A
transposed convolution is the same map with inputs and outputs exchanged: its patches are
cut from the gradient of its output.
"""

from collections.abc import Sequence
from math import prod
from typing import cast

from torch import Tensor, nn
from torch.nn import functional

from projections.components import Component
from projections.factors import OuterProducts, Vectors
from projections.layers.base import Part, bias_part
from projections.layers.registry import RULES

Conv = nn.Conv1d | nn.Conv2d | nn.Conv3d
Transposed = nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d


@RULES.register(nn.Conv1d, nn.Conv2d, nn.Conv3d)
def convolution(module: nn.Module, attributes: frozenset[str]) -> list[Part]:
    """Return weight and bias as one part; patches are unfolded in the order of the weight."""
    assert isinstance(module, Conv)
    num_out, num_in = module.out_channels, module.weight[0].numel()
    if "weight" not in attributes:
        return [bias_part("bias", num_out, channel_sums)] if "bias" in attributes else []
    names, shapes = ("weight",), ((num_out, num_in),)
    if "bias" in attributes:
        names, shapes = (*names, "bias"), (*shapes, (num_out,))
    return [Part(names, shapes, patch_products, num_groups=module.groups)]


@RULES.register(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
def transposed_convolution(module: nn.Module, attributes: frozenset[str]) -> list[Part]:
    """Return the weight, whose first axis is that of the inputs, and the bias by itself.

    The factors are exchanged, so curvature, which tells inputs from output gradients, holds
    these weights fixed.
    """
    assert isinstance(module, Transposed)
    shape = (module.in_channels, module.weight[0].numel())
    parts = []
    if "weight" in attributes:
        parts.append(
            Part(
                ("weight",),
                (shape,),
                transposed_products,
                kind="transposed",
                num_groups=module.groups,
            )
        )
    if "bias" in attributes:
        parts.append(bias_part("bias", module.out_channels, channel_sums))
    return parts


def patch_products(
    component: Component, module: nn.Module, inputs: Tensor, output_grads: Tensor
) -> OuterProducts:
    """Return patches and output gradients, position by position."""
    assert isinstance(module, Conv)
    groups = module.groups
    patches = cut_patches(_pad(module, inputs), module, output_grads.shape[2:])
    grads = output_grads.flatten(2)
    return OuterProducts(component, _by_group(patches, groups), _by_group(grads, groups))


def transposed_products(
    component: Component, module: nn.Module, inputs: Tensor, output_grads: Tensor
) -> OuterProducts:
    """Return patches of the output gradient as inputs, and the inputs as gradients."""
    assert isinstance(module, Transposed)
    groups, places = module.groups, inputs.shape[2:]
    around = [int(size) for size in reversed(module.padding) for _ in range(2)]
    patches = cut_patches(functional.pad(output_grads, around), module, places)
    channels = inputs.flatten(2)
    return OuterProducts(component, _by_group(patches, groups), _by_group(channels, groups))


def channel_sums(
    component: Component, module: nn.Module, inputs: Tensor, output_grads: Tensor
) -> Vectors:
    """Return the gradient of a bias alone."""
    return Vectors(component, output_grads.flatten(2).sum(2))


def cut_patches(padded: Tensor, module: Conv | Transposed, places: Sequence[int]) -> Tensor:
    """Return what is under the kernel at each place, ``n c t`` in the order of the weight.

    Args:
        padded: Channels over one, two or three axes, the padding put on.
        module: Says kernel, stride and dilation.
        places: Number of places along each axis.
    """
    padded = padded.contiguous()
    count, channels, *_ = padded.shape
    by_example, by_channel, *steps = padded.stride()
    inner = [step * d for step, d in zip(steps, module.dilation, strict=True)]
    outer = [step * s for step, s in zip(steps, module.stride, strict=True)]
    windows = padded.as_strided(
        (count, channels, *module.kernel_size, *places), (by_example, by_channel, *inner, *outer)
    )
    return windows.reshape(count, channels * prod(module.kernel_size), prod(places))


def _by_group(channels: Tensor, groups: int) -> Tensor:
    """Return ``n c t`` as ``n t c``, or as ``n r t i`` with groups."""
    if groups == 1:
        return channels.mT
    return channels.unflatten(1, (groups, -1)).mT


def _pad(module: Conv, inputs: Tensor) -> Tensor:
    """Pad as the layer does, in any padding mode."""
    # NOTE: torch keeps the padding of both sides of each axis, last axis first, in a
    # private attribute; computing it again for padding="same" would be the same code.
    padding = cast(list[int], module._reversed_padding_repeated_twice)
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    return functional.pad(inputs, padding, mode=mode)
