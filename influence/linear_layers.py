"""The linear maps inside captured gradients, as curvature sees them.

Letters: ``n`` examples, ``t`` positions, ``i`` inputs with a trailing one for a bias,
``o`` outputs.

A convolution with groups is one linear map a group. Norms, lone biases, embedding tables
and a head tied to one are not linear maps alone; curvature holds them fixed, as Grosse et
al. (2023) do, and says in its provenance which parameters these are.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from projections import Gradient, OuterProducts

KINDS = ("linear",)


@dataclass(frozen=True)
class LinearUse:
    """One linear map in one batch.

    Args:
        name: Name of the component; with groups, the group's number in brackets.
        inputs: What went in, with ones for a bias.
        output_grads: Gradient of what came out.
        input_key: Equal for maps that read the same tensor and both or neither have a bias.
    """

    name: str
    inputs: Float[Tensor, "n t i"]
    output_grads: Float[Tensor, "n t o"]
    input_key: tuple[int, bool] | None

    @property
    def gradient(self) -> Float[Tensor, "n o i"]:
        """The gradient of each example."""
        return self.output_grads.mT @ self.inputs


def linear_uses(gradient: Gradient) -> Iterator[LinearUse]:
    """Yield the linear maps of one component: none if it is anything else beside."""
    (term, *others) = gradient.terms
    if others or not isinstance(term, OuterProducts):
        return
    inputs, name = term.inputs, gradient.component.name
    if term.has_bias:
        inputs = torch.cat([inputs, inputs.new_ones(*inputs.shape[:-1], 1)], -1)
    if inputs.dim() == 3:
        key = None if term.input_key is None else (term.input_key, term.has_bias)
        yield LinearUse(name, inputs, term.output_grads, key)
        return
    for group in range(inputs.shape[1]):
        yield LinearUse(f"{name}[{group}]", inputs[:, group], term.output_grads[:, group], None)
