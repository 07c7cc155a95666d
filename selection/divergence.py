r"""Estimates of :math:`KL(X \| W)` from distances, while points are added to ``W``.

Letters: ``n`` targets ``x``, ``g`` candidates, ``m`` rows in ``W``, ``k`` neighbours, ``d``
dimensions.

All estimates compare two logarithms for each target: of its distance to points of ``W``,
and of its distance to its own ``k``-th neighbour among the targets. Logarithms are held as
whole multiples of 2**-26, so that sums are exact: ties are ties, the order of targets does
not matter, and a sum that is kept up to date equals one that is taken afresh.

A candidate may stand for several rows, its copies: they all count in the estimate.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
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


@dataclass
class PublishedEstimate:
    r"""The mean over all points of ``W``, which is what the published package computes.

    .. math:: \frac{d}{n m} \sum_{i, w} \log|x_i - w| - \frac{d}{n} \sum_i \log \rho_i
              + \frac{1}{m} \sum_{l=1}^{m} \log \frac{k m}{l (n - 1)}

    A candidate enters by its own mean alone, :math:`s(c) = \frac{1}{n} \sum_i \log|x_i - c|`,
    whatever ``W`` holds: the order of picks is the order of that score.

    Args:
        targets: The targets.
        scores: The sum of log distances to each candidate, ``g``, in ticks.
        copies: Number of rows that each candidate stands for.
        start: The sums of the points that ``W`` starts with.
    """

    targets: Targets
    scores: Int[np.ndarray, " g"]
    copies: Int[np.ndarray, " g"]
    start: Int[np.ndarray, " s"]

    def __post_init__(self) -> None:
        """Sort the candidates, and take the points that are there from the start."""
        self.order = np.argsort(self.scores, kind="stable")
        self.num_rows, self._total = len(self.start), int(self.start.sum())
        self._next = 0

    @property
    def value(self) -> float:
        """The estimate now; infinite for no points."""
        return mean_divergence(self.targets, self._total, self.num_rows, self.num_rows)

    def value_with(self, candidate: int) -> float:
        """Return the estimate after adding a candidate."""
        copies = int(self.copies[candidate])
        total = self._total + int(self.scores[candidate]) * copies
        num_rows = self.num_rows + copies
        return mean_divergence(self.targets, total, num_rows, num_rows)

    def best(self, available: Bool[np.ndarray, " g"]) -> int:
        """Return the available candidate with the smallest score; of equals the first."""
        while not available[self.order[self._next]]:
            self._next += 1
        return int(self.order[self._next])

    def refill(self) -> None:
        """Look again at candidates that were chosen before."""
        self._next = 0

    def add(self, candidate: int) -> None:
        """Add a candidate with its copies."""
        self._total += int(self.scores[candidate]) * int(self.copies[candidate])
        self.num_rows += int(self.copies[candidate])


@dataclass
class NearestDiscardedEstimate:
    r"""The published mean without the nearest point of each target (``discard_nearest_for_xy``).

    Meant for targets that are themselves among the candidates, whose distance to themselves
    would count for everything. With :math:`\mu_i = \min_{w \in W} \log|x_i - w|` a pick has
    the cost :math:`\frac{1}{n} \sum_i \max(\log|x_i - c|, \mu_i)`: being near a target pays
    only as far as another point of ``W`` is near it already. Picks therefore gather; it is
    the least diverse of the estimates.

    Args:
        targets: The targets.
        distances: Log distances, ``n g``, in ticks.
        copies: Number of rows that each candidate stands for.
        start: Log distances to the points that ``W`` starts with, ``n s``.
    """

    targets: Targets
    distances: Int[np.ndarray, "n g"]
    copies: Int[np.ndarray, " g"]
    start: Int[np.ndarray, "n s"]

    def __post_init__(self) -> None:
        """Take the points that are there from the start."""
        weights = self.targets.copies
        self.num_rows = self.start.shape[1]
        self._total = int(weights @ self.start.sum(axis=1))
        self._scores = weights @ self.distances
        self._nearest = self.start.min(axis=1, initial=FAR)
        self._costs = self._capped(slice(None))

    @property
    def value(self) -> float:
        """The estimate now; infinite for fewer than two points."""
        if self.num_rows < 2:
            return inf
        total = self._total - int(self.targets.copies @ self._nearest)
        return mean_divergence(self.targets, total, self.num_rows - 1, self.num_rows)

    def value_with(self, candidate: int) -> float:
        """Return the estimate after adding a candidate."""
        copies = int(self.copies[candidate])
        if self.num_rows + copies < 2:
            return inf
        nearest = np.minimum(self._nearest, self.distances[:, candidate])
        total = self._total + int(self._scores[candidate]) * copies
        total -= int(self.targets.copies @ nearest)
        num_rows = self.num_rows + copies
        return mean_divergence(self.targets, total, num_rows - 1, num_rows)

    def best(self, available: Bool[np.ndarray, " g"]) -> int:
        """Return the available candidate with the smallest cost; of equals by score."""
        return best_candidate(available, self._costs, lambda tied: self._scores[tied])

    def refill(self) -> None:
        """Look again at candidates that were chosen before."""

    def add(self, candidate: int) -> None:
        """Add a candidate with its copies."""
        column = self.distances[:, candidate]
        self._total += int(self._scores[candidate]) * int(self.copies[candidate])
        self.num_rows += int(self.copies[candidate])
        changed = np.flatnonzero(column < self._nearest)
        self._costs -= self._capped(changed)
        self._nearest[changed] = column[changed]
        self._costs += self._capped(changed)

    def _capped(self, which: Int[np.ndarray, " r"] | slice) -> Int[np.ndarray, " g"]:
        """Return the part of the costs that some targets have."""
        weights, nearest = self.targets.copies[which], self._nearest[which, None]
        total = np.zeros(self.distances.shape[1], np.int64)
        for start, rows in blocks(self.distances[which], self.distances.shape[1]):
            here = slice(start, start + len(rows))
            total += weights[here] @ np.maximum(rows, nearest[here])
        return total


@dataclass
class NeighbourEstimate:
    r"""The estimate of Wang, Kulkarni and Verdu, from the ``k``-th point of ``W`` only.

    .. math:: \frac{d}{n} \sum_i \log \frac{\nu_i}{\rho_i} + \log \frac{m}{n - 1}

    with :math:`\nu_i` the distance of target ``i`` to its ``k``-th nearest row of ``W``. It
    depends on the set: a point near targets that have ``k`` near rows adds nothing. Among
    candidates that change it alike, such as the first ``k - 1``, the one with the smallest
    sum over the ``k`` nearest is best. While ``W`` has fewer than ``k`` rows, the missing
    ones count as being as far as the farthest candidate.

    Args:
        targets: The targets.
        distances: Log distances, ``n g``, in ticks.
        copies: Number of rows that each candidate stands for.
        start: Log distances to the points that ``W`` starts with, ``n s``.

    References:
        Wang, Kulkarni and Verdu, Divergence estimation for multidimensional densities via
        k-nearest-neighbor distances (IEEE Trans. Inf. Theory 2009), Eq. 5.
    """

    targets: Targets
    distances: Int[np.ndarray, "n g"]
    copies: Int[np.ndarray, " g"]
    start: Int[np.ndarray, "n s"]
    num_neighbours: int = field(default=0)

    def __post_init__(self) -> None:
        """Take the points that are there from the start."""
        self.num_neighbours = k = self.num_neighbours or self.targets.num_neighbours
        self.num_rows = self.start.shape[1]
        far = max(self.distances.max(initial=-FAR), self.start.max(initial=-FAR))
        padding = np.full((len(self.distances), k), far)
        self._nearest = np.sort(np.concatenate([self.start, padding], axis=1), axis=1)[:, :k]
        self._places = k - np.minimum(self.copies, k)  # where pushing that many copies lands
        self._gains = self._gained(slice(None))

    @property
    def value(self) -> float:
        """The estimate now; infinite for no points."""
        if self.num_rows == 0:
            return inf
        return self._value(int(self.targets.copies @ self._nearest[:, -1]), self.num_rows)

    def value_with(self, candidate: int) -> float:
        """Return the estimate after adding a candidate."""
        total = int(self.targets.copies @ self._nearest[:, -1]) - int(self._gains[candidate])
        return self._value(total, self.num_rows + int(self.copies[candidate]))

    def best(self, available: Bool[np.ndarray, " g"]) -> int:
        """Return the available candidate after which the estimate is smallest."""
        rows = int(self.targets.copies.sum())
        lower = self._gains / (TICKS * rows) * self.targets.points.shape[1]
        costs = np.log(self.num_rows + self.copies) - lower
        return best_candidate(available, costs, self._sums)

    def refill(self) -> None:
        """Look again at candidates that were chosen before."""

    def _sums(self, candidates: Int[np.ndarray, " c"]) -> Int[np.ndarray, " c"]:
        """Return the sum of the ``k`` smallest log distances with each candidate."""
        k, costs = self.num_neighbours, []
        for candidate in candidates.tolist():
            copies = min(int(self.copies[candidate]), k)
            column = np.repeat(self.distances[:, candidate, None], copies, axis=1)
            nearest = np.sort(np.concatenate([self._nearest, column], axis=1), axis=1)[:, :k]
            costs.append(int(self.targets.copies @ nearest.sum(axis=1)))
        return np.array(costs, np.int64)

    def add(self, candidate: int) -> None:
        """Add a candidate with its copies."""
        column, k = self.distances[:, candidate], self.num_neighbours
        copies = min(int(self.copies[candidate]), k)
        self.num_rows += int(self.copies[candidate])
        changed = np.flatnonzero(column < self._nearest[:, -1])
        self._gains -= self._gained(changed)
        more = np.repeat(column[changed, None], copies, axis=1)
        both = np.concatenate([self._nearest[changed], more], axis=1)
        self._nearest[changed] = np.sort(both, axis=1)[:, :k]
        self._gains += self._gained(changed)

    def _gained(self, which: Int[np.ndarray, " r"] | slice) -> Int[np.ndarray, " g"]:
        """Return by how much each candidate lowers the sum of some targets."""
        weights, nearest = self.targets.copies[which], self._nearest[which]
        floors = np.concatenate([np.full((len(nearest), 1), -FAR), nearest[:, :-1]], axis=1)
        total = np.zeros(self.distances.shape[1], np.int64)
        for start, rows in blocks(self.distances[which], self.distances.shape[1]):
            here = slice(start, start + len(rows))
            landed = np.maximum(rows, floors[here][:, self._places])
            total += weights[here] @ np.maximum(nearest[here, -1:] - landed, 0)
        return total

    def _value(self, total: int, num_rows: int) -> float:
        """Return the estimate for a sum of log distances."""
        return self.targets.excess(total) + log(num_rows / (len(self.targets.points) - 1))


Estimate = PublishedEstimate | NearestDiscardedEstimate | NeighbourEstimate


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
