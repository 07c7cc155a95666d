"""Linear layers: `nn.Linear` and its subclasses, and the `Conv1D` of Hugging Face.

Letters: ``n`` examples, ``t`` positions, ``i`` input features, ``o`` output features.
"""

from typing import cast

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from projections.components import Component
from projections.factors import OuterProducts, Vectors
from projections.layers.base import Part, batch_positions, bias_part
from projections.layers.registry import RULES


@RULES.register(nn.Linear)
def linear(module: nn.Module, attributes: frozenset[str]) -> list[Part]:
    """Return weight and bias as one part."""
    assert isinstance(module, nn.Linear)
    return affine(attributes, module.out_features, module.in_features)


@RULES.register(Conv1D)
def transposed_linear(module: nn.Module, attributes: frozenset[str]) -> list[Part]:
    """Return weight and bias of ``y = x W + b``, whose weight is stored as ``(i, o)``."""
    num_in, num_out = cast(Tensor, module.weight).shape
    return affine(attributes, num_out, num_in)


def affine(attributes: frozenset[str], num_out: int, num_in: int) -> list[Part]:
    """Return the parts of an affine map on the last axis."""
    if "weight" not in attributes:
        return [bias_part("bias", num_out, bias_term)] if "bias" in attributes else []
    if "bias" in attributes:
        return [Part(("weight", "bias"), ((num_out, num_in), (num_out,)), weight_term)]
    return [Part(("weight",), ((num_out, num_in),), weight_term)]


def weight_term(
    component: Component, module: nn.Module, inputs: Tensor, output_grads: Tensor
) -> OuterProducts:
    """Return the factors, the examples on the first axis."""
    return OuterProducts(component, batch_positions(inputs), batch_positions(output_grads))


def bias_term(
    component: Component, module: nn.Module, inputs: Tensor, output_grads: Tensor
) -> Vectors:
    """Return the output gradients summed over positions."""
    return Vectors(component, batch_positions(output_grads).sum(1))
