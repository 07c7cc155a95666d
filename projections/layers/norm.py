"""Normalisation layers: LayerNorm, RMSNorm, GroupNorm, and batch norm in evaluation mode.

Letters: ``n`` examples, ``o`` normalised features or channels.

RMSNorm layers of other libraries (the ``LayerNorm`` of T5 is one) are recognised by what
they compute: a class with ``Norm`` in its name, one vector called ``weight`` and nothing
else, whose output equals ``weight * x / rms(x)``, or ``(1 + weight)`` times that, on a
random input.
"""

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from projections.layers.base import Part, bias_part
from projections.layers.registry import RULES
from projections.per_example import Component, Vectors


@RULES.register(nn.LayerNorm)
def layer_norm(module: nn.Module, attributes: frozenset[str]) -> list[Part]:
    """Return weight and bias, each a vector."""
    assert isinstance(module, nn.LayerNorm)
    size = module.weight.numel()
    parts = []
    if "weight" in attributes:
        parts.append(Part(("weight",), ((size,),), _scaled(_layer_normalized), kind="vector"))
    if "bias" in attributes:
        parts.append(bias_part("bias", size, _summed))
    return parts


@RULES.register(nn.RMSNorm)
def rms_norm(module: nn.Module, attributes: frozenset[str]) -> list[Part]:
    """Return the weight, a vector."""
    assert isinstance(module, nn.RMSNorm)
    return rms_norm_part(module.weight.numel())


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


def rms_norm_part(size: int) -> list[Part]:
    """Return the part of any RMS normalisation over the last axes."""
    return [Part(("weight",), ((size,),), _scaled(_rms_normalized), kind="vector")]


def is_rms_norm(module: nn.Module) -> bool:
    """Tell whether a module of another library computes what RMSNorm computes."""
    weight = getattr(module, "weight", None)
    if "norm" not in type(module).__name__.lower() or not isinstance(weight, Tensor):
        return False
    if weight.dim() != 1 or list(module.state_dict()) != ["weight"] or any(module.children()):
        return False
    generator = torch.Generator().manual_seed(0)
    probe = torch.randn(4, len(weight), generator=generator).to(weight)
    with torch.no_grad():
        try:
            output = module(probe)
        except Exception:  # whatever it wants, it is not an RMSNorm
            return False
        normalized = functional.rms_norm(probe, [len(weight)], eps=1e-6)
        scales = (weight, 1 + weight)
        tolerance = 1e-3 if weight.dtype.itemsize >= 4 else 2e-2
        return isinstance(output, Tensor) and any(
            torch.allclose(output, normalized * scale, rtol=tolerance, atol=tolerance)
            for scale in scales
        )


def _scaled(
    normalize: Callable[[nn.Module, Tensor], Tensor],
) -> Callable[[Component, nn.Module, Tensor, Tensor], Vectors]:
    """Return the rule of a weight that multiplies normalised inputs."""

    def make_term(
        component: Component, module: nn.Module, inputs: Tensor, output_grads: Tensor
    ) -> Vectors:
        return _summed(component, module, inputs, normalize(module, inputs) * output_grads)

    return make_term


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


def _layer_normalized(module: nn.Module, inputs: Tensor) -> Tensor:
    """Return what LayerNorm multiplies with its weight."""
    assert isinstance(module, nn.LayerNorm)
    return functional.layer_norm(inputs, module.normalized_shape, eps=module.eps)


def _rms_normalized(module: nn.Module, inputs: Tensor) -> Tensor:
    """Return what RMSNorm multiplies with its weight, in the module's own precision."""
    if isinstance(module, nn.RMSNorm):
        return functional.rms_norm(inputs, module.normalized_shape, eps=module.eps)
    # The output is linear in the weight, or in one plus the weight.
    weight = cast(Tensor, module.weight)
    at_one = functional_call(module, {"weight": torch.ones_like(weight)}, (inputs,))
    return at_one - functional_call(module, {"weight": torch.zeros_like(weight)}, (inputs,))
