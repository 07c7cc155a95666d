"""Per-example gradients of one component, kept in the factors they are made of.

Letters: ``n`` examples, ``t`` positions, ``i`` input features, ``o`` output features,
``d`` parameters of the component, ``r`` groups (absent for a layer with one group).

A linear map ``y = W a`` used at positions ``t`` has the gradient ``sum_t g_t a_t^T``. It is
never formed unless that is the cheapest way to what was asked.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Parameter:
    """One parameter of a component, in the layout that gradients have here.

    Args:
        name: Its name in ``model.named_parameters()``.
        shape: ``(o, i)`` for a weight, ``(o,)`` for a bias, also where a layer stores
            its weight in another shape.
    """

    name: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Number of entries."""
        return prod(self.shape)


@dataclass(frozen=True)
class Component:
    """A part of a model whose gradient is one object: a layer, or a single vector.

    Args:
        name: Name of the module, or of the parameter for a vector.
        parameters: What it is made of: a weight and perhaps a bias, a table, or a vector.
        kind: ``"linear"``, ``"table"`` or ``"vector"``, and ``"mixed"`` for a weight that
            serves both as a linear map and as a table.
    """

    name: str
    parameters: tuple[Parameter, ...]
    kind: str = "linear"

    @property
    def size(self) -> int:
        """Number ``d`` of parameters."""
        return sum(parameter.size for parameter in self.parameters)


@dataclass(frozen=True)
class OuterProducts:
    """The gradient ``sum_t g_t a_t^T`` of a weight, and ``sum_t g_t`` of its bias.

    Args:
        component: The weight, and the bias if there is one.
        inputs: What went into the layer, ``n t i`` or ``n r t i``.
        output_grads: Gradient of the summed loss with respect to its output, ``n t o`` or
            ``n r t o``. With groups, ``o`` and ``i`` are those of one group.
        input_key: Equal for the layers that read the same tensor in this forward, such as
            query, key and value; None where that is not known.
    """

    component: Component
    inputs: Float[Tensor, "n *r t i"]
    output_grads: Float[Tensor, "n *r t o"]
    input_key: int | None = None

    @property
    def has_bias(self) -> bool:
        """Whether the component has a bias beside its weight."""
        return len(self.component.parameters) == 2

    @cached_property
    def weight_matrix(self) -> Float[Tensor, "n *r o i"]:
        """The gradient of the weight, formed once however often it is asked for."""
        return self.output_grads.mT @ self.inputs

    @cached_property
    def bias_vector(self) -> Float[Tensor, "n *r o"]:
        """The gradient of the bias."""
        return self.output_grads.sum(-2)

    def blocks(self) -> list[Float[Tensor, "n ..."]]:
        """Return the gradient of each parameter as ``n`` by its shape."""
        count = len(self.inputs)
        weight, *bias = self.component.parameters
        blocks = [self.weight_matrix.reshape(count, *weight.shape)]
        if bias:
            blocks.append(self.bias_vector.reshape(count, *bias[0].shape))
        return blocks

    def sq_norm(self) -> Float[Tensor, " n"]:
        """Return the exact squared norm, by the cheaper of Gram matrices and the product."""
        positions, num_in = self.inputs.shape[-2:]
        num_out = self.output_grads.shape[-1]
        formed = "weight_matrix" in self.__dict__
        if positions == 1:
            inputs = self.inputs.square().sum((-1, -2)) + self.has_bias
            return _to_rows(self.output_grads.square().sum((-1, -2)) * inputs)
        if formed or num_out * num_in < positions * (num_in + num_out):
            return sum_of_squares(self.blocks())
        inputs = self.inputs @ self.inputs.mT
        if self.has_bias:
            inputs = inputs + 1
        return _to_rows(((self.output_grads @ self.output_grads.mT) * inputs).sum((-1, -2)))


@dataclass(frozen=True)
class TableRows:
    """The gradient of an embedding table, which is zero but for the rows that were looked up.

    Args:
        component: The table, of shape ``(rows, o)``.
        ids: The rows that were looked up, ``n t``.
        output_grads: Gradient with respect to what was looked up, ``n t o``.
    """

    component: Component
    ids: Int[Tensor, "n t"]
    output_grads: Float[Tensor, "n t o"]

    def blocks(self) -> list[Float[Tensor, "n ..."]]:
        """Return the whole table; for tests and small vocabularies only."""
        (table,) = self.component.parameters
        out = self.output_grads.new_zeros(len(self.ids), *table.shape)
        rows = self.ids[..., None].expand_as(self.output_grads)
        return [out.scatter_add_(1, rows, self.output_grads)]

    def sq_norm(self) -> Float[Tensor, " n"]:
        """Return the exact squared norm: products of gradients at positions of equal ids."""
        same = self.ids[:, :, None] == self.ids[:, None, :]
        return ((self.output_grads @ self.output_grads.mT) * same).sum((1, 2))


@dataclass(frozen=True)
class Vectors:
    """The gradient of a vector (a norm's weight, a lone bias), summed over positions.

    Args:
        component: The one parameter.
        values: The gradients, ``n o``.
    """

    component: Component
    values: Float[Tensor, "n o"]

    def blocks(self) -> list[Float[Tensor, "n ..."]]:
        """Return the gradient in the parameter's shape."""
        (parameter,) = self.component.parameters
        return [self.values.reshape(len(self.values), *parameter.shape)]

    def sq_norm(self) -> Float[Tensor, " n"]:
        """Return the exact squared norm."""
        return self.values.square().sum(1)


Term = OuterProducts | TableRows | Vectors


@dataclass(frozen=True)
class Gradient:
    """The gradient of one component for every example of a batch.

    It is a sum of terms: one for each kind of use, so more than one only for a weight
    that several modules share (an embedding tied to the output head).

    Args:
        component: What it is the gradient of.
        terms: The summands, all of this component.
    """

    component: Component
    terms: tuple[Term, ...]

    @cached_property
    def _blocks(self) -> list[Float[Tensor, "n ..."]]:
        """Gradients of the parameters, formed once."""
        first, *others = [term.blocks() for term in self.terms]
        for blocks in others:
            first = [a + b for a, b in zip(first, blocks, strict=True)]
        return first

    def materialize(self) -> dict[str, Float[Tensor, "n ..."]]:
        """Return the full gradient by parameter name: ``n`` times the parameters in memory."""
        names = [parameter.name for parameter in self.component.parameters]
        return dict(zip(names, self._blocks, strict=True))

    @cached_property
    def sq_norms(self) -> Float[Tensor, " n"]:
        """The exact squared norm of each example's gradient, formed only if that is cheaper."""
        if len(self.terms) == 1:
            return self.terms[0].sq_norm()
        total = torch.stack([term.sq_norm() for term in self.terms]).sum(0)
        for position, term in enumerate(self.terms):
            for other in self.terms[:position]:
                total = total + 2 * cross_product(term, other)
        return total


def cross_product(left: Term, right: Term) -> Float[Tensor, " n"]:
    """Return the inner product of two terms of the same component, example by example."""
    if isinstance(left, TableRows) and isinstance(right, OuterProducts):
        return cross_product(right, left)
    if isinstance(left, OuterProducts) and isinstance(right, TableRows):
        # <sum_s g_s a_s^T, sum_t e_{id_t} h_t^T> = sum_{s,t} g_s[id_t] (a_s . h_t)
        count, positions, _ = left.output_grads.shape
        columns = right.ids[:, None, :].expand(count, positions, right.ids.shape[1])
        picked = left.output_grads.gather(2, columns)
        return (picked * (left.inputs @ right.output_grads.mT)).sum((1, 2))
    pairs = zip(left.blocks(), right.blocks(), strict=True)
    return torch.stack([(a * b).flatten(1).sum(1) for a, b in pairs]).sum(0)


def merge_terms(component: Component, terms: Sequence[Term]) -> Gradient:
    """Return the sum of the uses of one component, with uses of one kind put in one term.

    Several uses of a linear layer are more positions of one use.

    Args:
        component: What the terms are gradients of.
        terms: One term for each use in the forward pass.
    """
    outer = [term for term in terms if isinstance(term, OuterProducts)]
    table = [term for term in terms if isinstance(term, TableRows)]
    vectors = [term for term in terms if isinstance(term, Vectors)]
    merged: list[Term] = []
    if outer:
        merged.append(
            outer[0]
            if len(outer) == 1
            else OuterProducts(
                component,
                torch.cat([term.inputs for term in outer], -2),
                torch.cat([term.output_grads for term in outer], -2),
            )
        )
    if table:
        merged.append(
            table[0]
            if len(table) == 1
            else TableRows(
                component,
                torch.cat([term.ids for term in table], 1),
                torch.cat([term.output_grads for term in table], 1),
            )
        )
    if vectors:
        merged.append(Vectors(component, torch.stack([term.values for term in vectors]).sum(0)))
    return Gradient(component, tuple(merged))


def sum_of_squares(blocks: Sequence[Float[Tensor, "n ..."]]) -> Float[Tensor, " n"]:
    """Return the squared norm of each example over all blocks."""
    return torch.stack([block.flatten(1).square().sum(1) for block in blocks]).sum(0)


def _to_rows(values: Float[Tensor, "n *r"]) -> Float[Tensor, " n"]:
    """Sum over groups."""
    return values.flatten(1).sum(1) if values.dim() > 1 else values
