"""Sums over the gradients of a dataset that are not kept: squared norms, and weighted sums.

Letters: ``q`` vectors, ``n`` examples of a batch, ``d`` parameters.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from influence.parameter_space import Directions, ParameterSpace
from projections import Batch, Gradient, TableRows


class SquaredNorms:
    """An accumulator of the squared norms of gradients, by component."""

    name = "squared norms"

    def __init__(self) -> None:
        """Start with nothing."""
        self.totals: dict[str, Tensor] = {}

    def begin(self, batch: Batch) -> None:
        """Do nothing."""

    def observe(self, gradient: Gradient) -> None:
        """Add a component."""
        name, squares = gradient.component.name, gradient.sq_norms.double().sum().cpu()
        self.totals[name] = self.totals.get(name, torch.zeros_like(squares)) + squares

    def end(self, batch: Batch) -> None:
        """Do nothing."""

    def state(self) -> dict[str, Tensor]:
        """Return the sums."""
        return dict(self.totals)

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a state."""
        self.totals = dict(state)

    def merge(self, state: Mapping[str, Tensor]) -> None:
        """Add sums over other rows."""
        for name, value in state.items():
            self.totals[name] = self.totals.get(name, torch.zeros_like(value)) + value


class SwappedSums:
    r"""An accumulator of :math:`\sum_i g_i\, (g_i^\top v) / (\lambda + |g_i|^2)` of vectors.

    Args:
        space: The layout of vectors.
        vectors: The vectors.
        dampings: By component.
    """

    name = "swapped sums"

    def __init__(
        self,
        space: ParameterSpace,
        vectors: Float[Tensor, "q d"],
        dampings: Mapping[str, float],
    ) -> None:
        """Start from zero."""
        self.space, self.dampings = space, dampings
        self.directions = Directions(space, vectors)
        self.total = torch.zeros_like(vectors)

    def begin(self, batch: Batch) -> None:
        """Do nothing."""

    def observe(self, gradient: Gradient) -> None:
        """Add a component."""
        squares = gradient.sq_norms.to(self.total)
        weights = self.total.new_zeros(len(squares), len(self.total))
        self.directions.project(gradient, weights)
        weights /= (self.dampings[gradient.component.name] + squares)[:, None]
        add_weighted(gradient, weights, self.space, self.total)

    def end(self, batch: Batch) -> None:
        """Do nothing."""

    def state(self) -> dict[str, Tensor]:
        """Return the sums."""
        return {"total": self.total}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a state."""
        self.total = state["total"].clone()

    def merge(self, state: Mapping[str, Tensor]) -> None:
        """Add sums over other rows."""
        self.total += state["total"]


def add_weighted(
    gradient: Gradient,
    weights: Float[Tensor, "n q"],
    space: ParameterSpace,
    out: Float[Tensor, "q d"],
) -> None:
    """Add weighted sums of the gradients of a batch to vectors, in place.

    Args:
        gradient: The gradient of one component.
        weights: A weight for each example and vector.
        space: The layout of vectors.
        out: The vectors.
    """
    for term in gradient.terms:
        if isinstance(term, TableRows):
            (part,) = term.component.parameters
            for table, weight in zip(space.block(out, part), weights.mT, strict=True):
                values = term.output_grads.to(out) * weight[:, None, None]
                table.index_add_(0, term.ids.flatten(), values.flatten(0, 1))
            continue
        for piece in term.pieces():
            start = space.coordinates.starts[piece.parameter.name] + piece.start
            some = out[:, start : start + piece.values.shape[1]]
            some += weights[piece.examples].mT @ piece.values.to(out)
