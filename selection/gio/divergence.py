r"""What :math:`KL(X \| W)` is estimated from: logarithms of distances, held as whole numbers.

Letters: ``n`` targets ``x``, ``g`` candidates, ``m`` rows in ``W``, ``k`` neighbours, ``d``
dimensions.

Each estimate (`selection.gio.estimates`) compares two logarithms for each target: of its
distance to points of ``W``, and of its distance to its own ``k``-th neighbour among the
targets. Logarithms are held as whole multiples of 2**-26, so that sums are exact: ties are
ties, the order of targets does not matter, and a sum that is kept up to date equals one that
is taken afresh.

A candidate may stand for several rows, its copies: they all count in the estimate.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from math import inf, lgamma, log

import numpy as np
from jaxtyping import Bool, Float, Int

TICKS = 1 << 26  # in one unit of the logarithm
LEAST, MOST = 1e-10, 1e20  # squared distances are cut to this range
EPS = 1e-8  # added to distances before the logarithm
FAR = 1 << 40  # in ticks; farther than any distance
BLOCK_ENTRIES = 1 << 21  # distances worked on at a time


@dataclass(frozen=True)
class Targets:
    """The targets: where they are, how many rows each stands for, how dense they lie.

    Args:
        points: One target a row, ``n d``.
        copies: Number of rows that each stands for.
        num_neighbours: The ``k`` of every estimate, less than ``n``.
    """

    points: Float[np.ndarray, "n d"]
    copies: Int[np.ndarray, " n"]
    num_neighbours: int

    @cached_property
    def own_distance(self) -> float:
        r"""The mean of :math:`\log \rho_k`, over the distance to the ``k``-th other target."""
        k, total = self.num_neighbours, 0
        for start, block in blocks(self.points, len(self.points)):
            found = np.partition(log_distances(block, self.points), k, axis=1)[:, k]
            total += int(self.copies[start : start + len(block)] @ found)
        return total / TICKS / int(self.copies.sum())

    def total_distances(self, points: Float[np.ndarray, "g d"]) -> Int[np.ndarray, " g"]:
        """Return the sum over the targets of the log distance to each point, in ticks."""
        parts = [
            log_distances(block, self.points) @ self.copies
            for _, block in blocks(points, len(self.points))
        ]
        return np.concatenate(parts) if parts else np.zeros(0, np.int64)

    def excess(self, total: float) -> float:
        """Return a mean log distance over the targets' own, times ``d``, from a sum in ticks."""
        mean = total / TICKS / int(self.copies.sum())
        return self.points.shape[1] * (mean - self.own_distance)


def mean_divergence(targets: Targets, total: int, num_columns: int, num_rows: int) -> float:
    """Return the published estimate for the sum of ``num_columns`` log distances a target."""
    if num_columns == 0:
        return inf
    n, k = len(targets.points), targets.num_neighbours
    return (
        targets.excess(total / num_columns)
        + log(k * num_rows / (n - 1))
        - lgamma(num_rows + 1) / num_rows
    )


def best_candidate(
    available: Bool[np.ndarray, " g"],
    costs: Float[np.ndarray, " g"] | Int[np.ndarray, " g"],
    tie_break: Callable[[Int[np.ndarray, " c"]], Int[np.ndarray, " c"]],
) -> int:
    """Return the available candidate of least cost, then of least second cost, then the first."""
    left = np.flatnonzero(available)
    tied = left[costs[left] == costs[left].min()]
    return int(tied[0]) if len(tied) == 1 else int(tied[tie_break(tied).argmin()])


def log_distances(
    points: Float[np.ndarray, "a d"], others: Float[np.ndarray, "b d"]
) -> Int[np.ndarray, "a b"]:
    """Return the logarithms of all distances, in ticks."""
    points, others = points.astype(np.float64), others.astype(np.float64)
    squares = (points**2).sum(axis=1)[:, None] + (others**2).sum(axis=1)
    squares -= 2 * points @ others.T
    distances = np.sqrt(np.clip(squares, LEAST, MOST)) + EPS
    return np.rint(np.log(distances) * TICKS).astype(np.int64)


def blocks(
    rows: Float[np.ndarray, "a d"] | Int[np.ndarray, "a d"], width: int
) -> Iterator[tuple[int, np.ndarray]]:
    """Yield rows, so many at a time that a block with ``width`` columns stays small."""
    height = max(1, BLOCK_ENTRIES // max(1, width))
    for start in range(0, len(rows), height):
        yield start, rows[start : start + height]
