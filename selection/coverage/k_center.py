r"""K-centre: rows such that no row is far from the nearest of them.

Letters: ``n`` rows, ``d`` dimensions.

Farthest-first traversal: each pick is the row that is farthest from those chosen so far.
The largest distance it leaves is at most twice the smallest possible. It is exact, in one
scan of the rows a pick, so :math:`O(n d)` each, and in memory for ``n`` distances.
Outliers come first, by definition; remove them before if they are errors.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, Real

from projections import Embeddings, check_one_of, describe, track
from selection.base import Selection
from selection.coverage.neighbours import SIMILARITIES, SimilarityName
from selection.pool import MASKED, Budget, Pool, marks_of

BLOCK_ENTRIES = 1 << 16  # numbers worked on at a time, few enough to stay in a cache


@dataclass(frozen=True, kw_only=True)
class KCenter:
    """Choose rows by farthest-first traversal, starting from the row nearest to the mean.

    Of equally far rows the one with the smaller id wins.

    Args:
        similarity: ``"euclidean"``, or ``"cosine"`` for distances between directions.

    Example:
        >>> chosen = KCenter().select(np.array([[0.0], [1], [9], [10]]), num_selected=2)
        >>> chosen.ids, chosen.weights, chosen.provenance["radius"]
        (array([1, 3]), array([2., 2.]), 1.0)

    References:
        Gonzalez, Clustering to minimize the maximum intercluster distance (TCS 1985); Sener
        and Savarese, Active learning for convolutional neural networks: a core-set approach
        (ICLR 2018), arXiv:1708.00489.
    """

    similarity: SimilarityName = "euclidean"

    def __post_init__(self) -> None:
        """Check the argument."""
        check_one_of("similarity", self.similarity, SIMILARITIES)

    def select(
        self,
        embeddings: Any,
        *,
        num_selected: int | None = None,
        num_tokens: float | None = None,
        tokens: Real[np.ndarray, " n"] | None = None,
        eligible: Bool[np.ndarray, " n"] | None = None,
    ) -> Selection:
        """Choose rows.

        Args:
            embeddings: `Embeddings`, a store or an array.
            num_selected: Most rows; with all of them, every row is ranked.
            num_tokens: Most tokens; rows are taken up to the first that does not fit.
            tokens: Number of tokens of each row, in the order of the data.
            eligible: Which rows may be chosen; the others are to be near them all the same.

        Returns:
            The rows in the order in which they were chosen. The weight of each is the number
            of rows that are nearest to it, itself among them. The provenance has the radius,
            the largest distance of a row to the nearest chosen one.
        """
        budget = Budget(num_selected=num_selected, num_tokens=num_tokens, tokens=tokens)
        pool = Pool.of(embeddings)
        budget.check(len(pool))
        allowed = marks_of(len(pool), eligible)[pool.positions]
        given = pool.embeddings.normalized() if self.similarity == "cosine" else pool.embeddings
        traversal = Traversal(given, allowed)
        ranking = budget.take(traversal.run(), pool.positions)
        total = min(int(allowed.sum()), len(pool) if num_selected is None else num_selected)
        picks = list(track(ranking, "cover", total=total, unit="picks"))
        owners, distances = traversal.assign(picks)
        ids = pool.embeddings.ids
        note = {
            **pool.embeddings.provenance,
            "k_center": describe(self),
            "radius": float(distances.max()) if picks else None,
            "budget": {"num_selected": num_selected, "num_tokens": num_tokens},
        }
        weights = np.bincount(owners[owners >= 0], minlength=len(ids))[picks].astype(np.float64)
        left = np.ones(len(ids), dtype=bool)
        left[picks] = False
        reasons = {
            ids[row].item(): MASKED
            if not allowed[row]
            else f"nearest to {ids[owners[row]]} (distance {distances[row]:.4g})"
            if picks
            else "no row was chosen"
            for row in np.flatnonzero(left).tolist()
        }
        return Selection(ids[picks], weights, reasons, note)


class Traversal:
    """The distance of each row to the nearest pick, as picks are made.

    Args:
        embeddings: The rows.
        allowed: Which may be picked.
    """

    def __init__(self, embeddings: Embeddings, allowed: Bool[np.ndarray, " n"]) -> None:
        """Begin with nothing."""
        self._rows, self._allowed = embeddings.rows, allowed
        self._nearest = np.full(len(allowed), np.inf)
        self._owners = np.full(len(allowed), -1)
        self._num_taken = 0
        self._squares = self._distances(self._rows, np.zeros_like(self._rows[:1]).sum(axis=0))
        # Twice what a product of d numbers can be off, relative to both squared lengths.
        precision = np.finfo(self._rows.dtype).eps
        self._slack = 2.0 * (self._rows.shape[1] + 4) * float(precision)

    def run(self) -> Iterator[int]:
        """Yield rows, the farthest first."""
        left = np.where(self._allowed, 0.0, -np.inf)
        if not self._allowed.any():
            return
        center = np.mean(self._rows, axis=0, dtype=np.float64).astype(self._rows.dtype)
        pick = int((self._distances(self._rows, center) - left).argmin())
        for _ in range(int(self._allowed.sum())):
            yield pick
            self._update(pick)
            left[pick] = -np.inf
            pick = int((self._nearest + left).argmax())

    def assign(self, picks: list[int]) -> tuple[Int[np.ndarray, " n"], Float[np.ndarray, " n"]]:
        """Return the nearest pick of each row and how far it is; each pick is its own."""
        for pick in picks[self._num_taken :]:
            self._update(pick)
        self._owners[picks] = picks
        return self._owners, np.sqrt(self._nearest)

    def _update(self, pick: int) -> None:
        """Take a pick into account."""
        point = self._rows[pick]
        sizes = self._squares + float(self._squares[pick])
        # A product is fast and rounds; only rows that may have come nearer are measured.
        least = sizes - 2.0 * (self._rows @ point) - self._slack * sizes
        maybe = np.flatnonzero(least < self._nearest)
        found = self._distances(self._rows[maybe] if len(maybe) < len(least) else self._rows, point)
        nearer = found < self._nearest[maybe]
        self._num_taken += 1
        self._nearest[maybe[nearer]] = found[nearer]
        self._owners[maybe[nearer]] = pick

    def _distances(
        self, rows: Float[np.ndarray, "n d"], point: Float[np.ndarray, " d"]
    ) -> Float[np.ndarray, " n"]:
        """Return the squared distance of each row to a point."""
        out = np.empty(len(rows))
        height = max(1, BLOCK_ENTRIES // max(1, rows.shape[1]))
        for start in range(0, len(out), height):
            away = rows[start : start + height] - point
            out[start : start + height] = np.einsum("nd,nd->n", away, away)
        return out
