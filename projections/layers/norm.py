"""Normalisation layers: LayerNorm, GroupNorm, and batch norm in evaluation mode.

Letters: ``n`` examples, ``o`` normalised features or channels.
"""

from torch import Tensor, nn
from torch.nn import functional

from projections.components import Component
from projections.factors import Vectors
from projections.layers.base import Part, bias_part
from projections.layers.registry import RULES


@RULES.register(nn.LayerNorm)
def layer_norm(module: nn.Module, attributes: frozenset[str]) -> list[Part]:
    """Return weight and bias, each a vector."""
    assert isinstance(module, nn.LayerNorm)
    size = module.weight.numel()
    parts = []
    if "weight" in attributes:
        parts.append(Part(("weight",), ((size,),), _layer_scaled, kind="vector"))
    if "bias" in attributes:
        parts.append(bias_part("bias", size, _summed))
    return parts


@RULES.register(nn.GroupNorm, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
def channel_norm(module: nn.Module, attributes: frozenset[str]) -> list[Part]:
    """Return weight and bias of a normalisation with one weight a channel."""
    assert isinstance(module.weight, Tensor)
    size = module.weight.numel()
    parts = []
    if "weight" in attributes:
        parts.append(Part(("weight",), ((size,),), _channel_scaled, kind="vector"))
    if "bias" in attributes:
        parts.append(bias_part("bias", size, _channel_summed))
    return parts


def _layer_scaled(
    component: Component, module: nn.Module, inputs: Tensor, output_grads: Tensor
) -> Vectors:
    """Return the gradient of what multiplies the normalised inputs of a LayerNorm."""
    assert isinstance(module, nn.LayerNorm)
    normalized = functional.layer_norm(inputs, module.normalized_shape, eps=module.eps)
    return _summed(component, module, inputs, normalized * output_grads)


def _summed(
    component: Component, module: nn.Module, inputs: Tensor, output_grads: Tensor
) -> Vectors:
    """Return the gradient of an added vector."""
    positions = output_grads.numel() // max(1, len(output_grads) * component.size)
    by_position = output_grads.reshape(len(output_grads), positions, component.size)
    return Vectors(component, by_position.sum(1))


def _channel_scaled(
    component: Component, module: nn.Module, inputs: Tensor, output_grads: Tensor
) -> Vectors:
    """Return the gradient of one factor a channel, channels on the second axis."""
    normalized = _channel_normalized(module, inputs)
    return Vectors(component, _over_positions(normalized * output_grads))


def _channel_summed(
    component: Component, module: nn.Module, inputs: Tensor, output_grads: Tensor
) -> Vectors:
    """Return the gradient of one summand a channel."""
    return Vectors(component, _over_positions(output_grads))


def _over_positions(values: Tensor) -> Tensor:
    """Sum ``n o ...`` over all axes but the first two."""
    return values.flatten(2).sum(2) if values.dim() > 2 else values


def _channel_normalized(module: nn.Module, inputs: Tensor) -> Tensor:
    """Return what the layer multiplies with its weight."""
    if isinstance(module, nn.GroupNorm):
        return functional.group_norm(inputs, module.num_groups, eps=module.eps)
    assert isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d)
    mean, variance = module.running_mean, module.running_var
    return functional.batch_norm(inputs, mean, variance, training=False, eps=module.eps)
