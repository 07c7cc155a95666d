"""The gradient of one use of a component, in the factors that it is made of.

Letters: ``n`` examples, ``t`` positions, ``i`` input features, ``o`` output features,
``r`` groups (absent for a layer with one group), ``c`` entries of a piece.

A linear map ``y = W a`` used at positions ``t`` has the gradient ``sum_t g_t a_t^T``. It is
never formed unless that is the cheapest way to what was asked, and then piece by piece in
one small buffer: what is read back from a cache costs half of what is read from memory.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from math import prod

import torch
from jaxtyping import Float, Int
from torch import Tensor

from projections.components import Component, Parameter

PIECE_ENTRIES = 1 << 22  # gradient entries formed at a time: 16 MB in float32
PIECE_EXAMPLES = 8  # least examples in a piece, so that there is work for every core

# One working buffer of each dtype, kept because the first touch of fresh memory costs more
# than what is done with it. Whoever uses it takes it out meanwhile.
_spare_buffers: dict[torch.dtype, Tensor] = {}


@dataclass(frozen=True)
class Piece:
    """Neighbouring entries of the gradient of one parameter, for some of the examples.

    Args:
        parameter: Whose gradient.
        examples: Which examples.
        start: The first entry, counted in the flattened parameter.
        values: The entries, ``n c``. The next piece overwrites them.
    """

    parameter: Parameter
    examples: slice
    start: int
    values: Float[Tensor, "n c"]


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
    def num_rows(self) -> int:
        """Length of the first axis."""
        return len(self.inputs)

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

    def pieces(self) -> Iterator[Piece]:
        """Yield the gradient in pieces; the squared norm is had on the way."""
        weight, *bias = self.component.parameters
        squares = self.output_grads.new_zeros(len(self.inputs))
        for piece in self._weight_pieces(weight):
            squares[piece.examples] += torch.linalg.vector_norm(piece.values, dim=1).square()
            yield piece
        if bias:
            values = self.bias_vector.flatten(1)
            squares += values.square().sum(1)
            yield Piece(bias[0], slice(0, len(values)), 0, values)
        self.__dict__["_sq_norm"] = squares

    def _weight_pieces(self, weight: Parameter) -> Iterator[Piece]:
        """Yield some rows of the weight's gradient, for some examples, at a time."""
        count, num_in = len(self.inputs), self.inputs.shape[-1]
        if "weight_matrix" in self.__dict__ or self.inputs.dim() > 3:
            yield Piece(weight, slice(0, count), 0, self.weight_matrix.flatten(1))
            return
        num_examples = min(count, max(PIECE_EXAMPLES, PIECE_ENTRIES // weight.size))
        num_rows = min(weight.shape[0], max(1, PIECE_ENTRIES // max(1, num_examples * num_in)))
        grads = self.output_grads.mT
        with _buffer(grads, num_examples * num_rows * num_in) as buffer:
            for first in range(0, count, max(1, num_examples)):
                examples = slice(first, min(first + num_examples, count))
                inputs = self.inputs[examples]
                for row in range(0, weight.shape[0], num_rows):
                    factor = grads[examples, row : row + num_rows]
                    shape = (*factor.shape[:2], num_in)
                    formed = torch.bmm(factor, inputs, out=buffer[: prod(shape)].view(shape))
                    yield Piece(weight, examples, row * num_in, formed.flatten(1))

    def sq_norm(self) -> Float[Tensor, " n"]:
        """Return the exact squared norm, by the cheapest of what is there and what could be."""
        if "_sq_norm" in self.__dict__:
            return self.__dict__["_sq_norm"]
        positions, num_in = self.inputs.shape[-2:]
        num_out = self.output_grads.shape[-1]
        if positions == 1:
            inputs = self.inputs.square().sum((-1, -2)) + self.has_bias
            return _to_rows(self.output_grads.square().sum((-1, -2)) * inputs)
        formed = "weight_matrix" in self.__dict__
        if formed or num_out * num_in < positions * (num_in + num_out):
            for _ in self.pieces():
                pass
            return self.__dict__["_sq_norm"]
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

    @property
    def num_rows(self) -> int:
        """Length of the first axis."""
        return len(self.ids)

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

    @property
    def num_rows(self) -> int:
        """Length of the first axis."""
        return len(self.values)

    def pieces(self) -> Iterator[Piece]:
        """Yield the gradient, which is small, as one piece."""
        (parameter,) = self.component.parameters
        yield Piece(parameter, slice(0, len(self.values)), 0, self.values)

    def blocks(self) -> list[Float[Tensor, "n ..."]]:
        """Return the gradient in the parameter's shape."""
        (parameter,) = self.component.parameters
        return [self.values.reshape(len(self.values), *parameter.shape)]

    def sq_norm(self) -> Float[Tensor, " n"]:
        """Return the exact squared norm."""
        return self.values.square().sum(1)


@dataclass(frozen=True)
class Formed:
    """The gradient entry by entry, for what acts on entries one by one, such as Adam's scaling.

    Args:
        component: Any component.
        values: The gradient of each parameter, ``n`` by its shape.
    """

    component: Component
    values: tuple[Float[Tensor, "n ..."], ...]

    @property
    def num_rows(self) -> int:
        """Length of the first axis."""
        return len(self.values[0])

    def blocks(self) -> list[Float[Tensor, "n ..."]]:
        """Return the gradient of each parameter."""
        return list(self.values)

    def pieces(self) -> Iterator[Piece]:
        """Yield each parameter as one piece."""
        for parameter, values in zip(self.component.parameters, self.values, strict=True):
            yield Piece(parameter, slice(0, len(values)), 0, values.flatten(1))

    def sq_norm(self) -> Float[Tensor, " n"]:
        """Return the exact squared norm."""
        return torch.stack([value.flatten(1).square().sum(1) for value in self.values]).sum(0)


Term = OuterProducts | TableRows | Vectors | Formed


@contextmanager
def _buffer(like: Tensor, size: int) -> Iterator[Float[Tensor, " c"]]:
    """Lend a flat working buffer, on the CPU the one that was used before."""
    if like.device.type != "cpu":  # other devices keep memory themselves
        yield like.new_empty(size)
        return
    buffer = _spare_buffers.pop(like.dtype, None)
    if buffer is None or len(buffer) < size:
        buffer = like.new_empty(size)
    try:
        yield buffer
    finally:
        _spare_buffers[like.dtype] = buffer


def _to_rows(values: Float[Tensor, "n *r"]) -> Float[Tensor, " n"]:
    """Sum over groups."""
    return values.flatten(1).sum(1) if values.dim() > 1 else values
