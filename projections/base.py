"""The seams of this package: what others implement, and what travels between them.

Letters: ``n`` examples, ``q`` queries, ``k`` projected dimensions or neighbours.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from projections.per_example import Gradient


@dataclass(frozen=True)
class Batch:
    """One batch of a pass, as its columns and accumulators see it.

    Args:
        ids: The ids of its ``n`` rows.
        statistics: Numbers per example from the forward, ``"loss"`` among them, detached.
        token_mask: Which positions are real, ``n t``, where the task knows.
        device: Where the model is.
        dtype: Floating-point type of the losses.
        draw: Number of this draw of labels; 0 unless labels are drawn several times, when
            each draw is begun and ended on its own.
    """

    ids: np.ndarray
    device: torch.device
    dtype: torch.dtype
    token_mask: Tensor | None = None
    statistics: Mapping[str, Tensor] = field(default_factory=dict)
    draw: int = 0

    def __len__(self) -> int:
        """Return the number ``n`` of examples."""
        return len(self.ids)


@runtime_checkable
class Column(Protocol):
    """Something computed for each row on its own: a number, or a vector of fixed length."""

    @property
    def name(self) -> str:
        """Name of the column."""
        ...

    @property
    def needs_gradients(self) -> bool:
        """Whether `observe` has to be called, and so a backward pass to be run."""
        ...

    def begin(self, batch: Batch) -> None:
        """Start a batch."""
        ...

    def observe(self, gradient: Gradient) -> None:
        """Take the gradient of one component, in the order in which backward reaches them."""
        ...

    def values(self, batch: Batch) -> Float[Tensor, "n *k"]:
        """End the batch and return its values."""
        ...


@runtime_checkable
class Accumulator(Protocol):
    """A statistic of the whole dataset. It merges, so work on it can be split and resumed."""

    @property
    def name(self) -> str:
        """Name under which its state is kept."""
        ...

    def begin(self, batch: Batch) -> None:
        """Start a batch."""
        ...

    def observe(self, gradient: Gradient) -> None:
        """Take the gradient of one component."""
        ...

    def end(self, batch: Batch) -> None:
        """End the batch."""
        ...

    def state(self) -> dict[str, Tensor]:
        """Return all that was accumulated."""
        ...

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a state."""
        ...

    def merge(self, state: Mapping[str, Tensor]) -> None:
        """Add the state of a part of the data that was worked on elsewhere."""
        ...


@runtime_checkable
class Summed(Accumulator, Protocol):
    """An accumulator whose state is made of sums, which ranks reduce in place."""

    def is_sum(self, key: str) -> bool:
        """Tell whether this entry of the state is a sum; others are the same on all ranks."""
        ...


@runtime_checkable
class Stateful(Protocol):
    """What grows along a pass and can be saved on the way; accumulators are."""

    @property
    def name(self) -> str:
        """Name under which its state is kept."""
        ...

    def state(self) -> dict[str, Tensor]:
        """Return all that was accumulated."""
        ...

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a state."""
        ...


@runtime_checkable
class Projector(Protocol):
    """A linear map of gradients to ``k`` numbers, a pure function of its settings.

    The map of a component depends on the settings and on the names and shapes of its
    parameters, and on nothing else: not on the device, the batch or other components.
    """

    @property
    def num_dims(self) -> int:
        """Number ``k`` of dimensions."""
        ...

    def project(self, gradient: Gradient, out: Float[Tensor, "n k"]) -> None:
        """Add the projection of one component to ``out``, whose dtype it computes in."""
        ...


@dataclass(frozen=True)
class Table:
    """Columns of numbers by row id: what a pass returns.

    Args:
        ids: One id a row.
        columns: Arrays with the rows on the first axis.
    """

    ids: np.ndarray
    columns: Mapping[str, np.ndarray]

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.ids)


@dataclass(frozen=True)
class TopK:
    """The best candidates of each query, best first, ties in the order of the rows.

    Args:
        ids: Ids of the candidates, ``q k``.
        scores: Their scores, ``q k``; larger is better where the top was asked for.
        positions: Their row numbers in the store, ``q k``.
    """

    ids: np.ndarray
    scores: np.ndarray
    positions: np.ndarray


@runtime_checkable
class RowIndex(Protocol):
    """Something that finds the rows with the largest inner products with queries."""

    def __len__(self) -> int:
        """Return the number of rows."""
        ...

    def search(self, queries: Float[np.ndarray, "q d"], k: int) -> TopK:
        """Return the ``k`` rows with the largest inner products for each query."""
        ...

    def search_both(self, queries: Float[np.ndarray, "q d"], k: int) -> tuple[TopK, TopK]:
        """Return the rows with the largest and with the smallest inner products."""
        ...


def concatenate_top(parts: Sequence[TopK]) -> TopK:
    """Return the results of several groups of queries as one."""
    return TopK(
        np.concatenate([part.ids for part in parts]),
        np.concatenate([part.scores for part in parts]),
        np.concatenate([part.positions for part in parts]),
    )


Provenance = Mapping[str, Any]
"""Where a result came from: plain JSON values."""
