"""Estimates of a divergence, kept up to date while candidates are added.

Letters: ``n`` targets, ``g`` candidates, ``s`` points at the start, ``m`` rows in ``W``, ``k``
neighbours.

Each has `value`, `value_with` a candidate, the `best` available candidate, and `add`. What is
summed are whole numbers; see `selection.gio.divergence`.
"""

from dataclasses import dataclass, field
from math import inf, log

import numpy as np
from jaxtyping import Bool, Int

from selection.gio.divergence import (
    FAR,
    TICKS,
    Targets,
    best_candidate,
    blocks,
    mean_divergence,
)


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
