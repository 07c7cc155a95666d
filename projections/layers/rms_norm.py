"""RMS normalisation: `nn.RMSNorm`, and the layers of other libraries that compute the same.

Letters: ``n`` examples, ``t`` positions, ``o`` normalised features.

Layers of other libraries (the ``LayerNorm`` of T5 is one) are recognised by what they compute:
a class with ``Norm`` in its name, one vector called ``weight`` and nothing else, whose output
equals ``weight * x / rms(x)``, or ``(1 + weight)`` times that, on a random input. What keeps
``rms`` from 0 is found by its usual names, and tried out on a tiny input.
"""

from functools import partial
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from projections.components import Component
from projections.factors import Vectors
from projections.layers.base import Part, output_on
from projections.layers.registry import RULES

EPSILONS = ("eps", "variance_epsilon", "epsilon")  # names that libraries give it
TINY = 1e-3  # size of inputs whose mean square is not large beside an epsilon


@RULES.register(nn.RMSNorm)
def rms_norm(module: nn.Module, attributes: frozenset[str]) -> list[Part]:
    """Return the weight, a vector."""
    assert isinstance(module, nn.RMSNorm)
    return rms_norm_part(module)


def rms_norm_part(module: nn.Module) -> list[Part]:
    """Return the part of any RMS normalisation over the last axes."""
    epsilon = find_epsilon(module)
    rule = _scaled_by_calls if epsilon is None else partial(_scaled, epsilon=epsilon)
    return [Part(("weight",), ((cast(Tensor, module.weight).numel(),),), rule, kind="vector")]


def is_rms_norm(module: nn.Module) -> bool:
    """Tell whether a module of another library computes what RMSNorm computes."""
    weight = getattr(module, "weight", None)
    if "norm" not in type(module).__name__.lower() or not isinstance(weight, Tensor):
        return False
    if weight.dim() != 1 or list(module.state_dict()) != ["weight"] or any(module.children()):
        return False
    tolerance = 1e-3 if weight.dtype.itemsize >= 4 else 2e-2
    return _computes(module, _probe(weight), 1e-6, tolerance)


def find_epsilon(module: nn.Module) -> float | None:
    """Return what a layer adds to mean squares, or None where that is not known for sure."""
    weight = cast(Tensor, module.weight)
    if weight.dtype.itemsize < 4:
        return None  # what is rounded where is up to the layer
    rounding = torch.finfo(weight.dtype).eps
    if isinstance(module, nn.RMSNorm):
        return rounding if module.eps is None else module.eps
    # A layer that rounds more than its weight does has to normalise by itself.
    exact, probe = 100 * rounding, _probe(weight) * TINY
    for value in (getattr(module, name, None) for name in EPSILONS):
        if isinstance(value, float) and _computes(module, probe, value, exact):
            return value
    return None


def _probe(weight: Tensor) -> Float[Tensor, "4 o"]:
    """Return a random input."""
    return torch.randn(4, len(weight), generator=torch.Generator().manual_seed(0)).to(weight)


def _computes(
    module: nn.Module, inputs: Float[Tensor, "4 o"], epsilon: float, tolerance: float
) -> bool:
    """Tell whether a layer gives what RMSNorm gives."""
    weight = cast(Tensor, module.weight)
    output = output_on(module, inputs)
    if output is None:
        return False
    with torch.no_grad():
        normalized = functional.rms_norm(inputs, [len(weight)], eps=epsilon)
        return any(
            torch.allclose(output, normalized * scale, rtol=tolerance, atol=tolerance)
            for scale in (weight, 1 + weight)
        )


def _scaled(
    component: Component, module: nn.Module, inputs: Tensor, output_grads: Tensor, *, epsilon: float
) -> Vectors:
    r"""Return :math:`\sum_t g_t x_t / rms(x_t)`, without forming what is normalised."""
    shape = (len(output_grads), -1, component.size)
    if not output_grads.numel():
        return Vectors(component, output_grads.new_zeros(len(output_grads), component.size))
    inputs, output_grads = inputs.reshape(shape), output_grads.reshape(shape)
    squares = torch.linalg.vector_norm(inputs, dim=-1).square() / component.size
    scales = (squares + epsilon).rsqrt()
    return Vectors(component, (scales[:, None] @ (inputs * output_grads)).squeeze(1))


def _scaled_by_calls(
    component: Component, module: nn.Module, inputs: Tensor, output_grads: Tensor
) -> Vectors:
    """Return the same with the inputs normalised by the layer, in its own precision."""
    values = _normalized_by_calls(module, inputs) * output_grads
    positions = values.numel() // max(1, len(values) * component.size)
    return Vectors(component, values.reshape(len(values), positions, component.size).sum(1))


def _normalized_by_calls(module: nn.Module, inputs: Tensor) -> Tensor:
    """Return what the layer multiplies with its weight: its output is affine in that."""
    if isinstance(module, nn.RMSNorm):
        return functional.rms_norm(inputs, module.normalized_shape, eps=module.eps)
    weight = cast(Tensor, module.weight)
    with torch.no_grad():
        at_one = functional_call(module, {"weight": torch.ones_like(weight)}, (inputs,))
        return at_one - functional_call(module, {"weight": torch.zeros_like(weight)}, (inputs,))
