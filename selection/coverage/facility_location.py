r"""Facility location: rows such that every row has a similar one among them.

Letters: ``n`` rows.

The objective :math:`f(S) = \sum_i \max_{j \in S} s_{ij}` is monotone and submodular, so
greedy choice reaches at least :math:`1 - 1/e` of the best value. Similarities are those of
a `NeighbourGraph`: what is not an edge counts as 0, and the guarantee is for that
objective. It is less than the one over all pairs by at most what the dropped pairs could
add, which is below the smallest kept similarity of each row.
"""

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse
from jaxtyping import Bool, Int, Real

from projections import describe, track
from selection.base import Selection
from selection.coverage.neighbours import TICKS, NeighbourGraph
from selection.pool import MASKED, Budget, Pool, marks_of

UNREACHED = "no chosen row is among its neighbours"


@dataclass(frozen=True, kw_only=True)
class FacilityLocation:
    r"""Choose rows that represent all others, most useful first.

    Greedy by the gain :math:`f(S + j) - f(S)`. Gains only fall as ``S`` grows, so most need
    not be computed again: the best one is popped from a heap, brought up to date, and taken
    if it is still the best (Minoux 1978). Of equal gains the row with the smaller id wins.

    Args:
        graph: Which rows are compared with which.

    Example:
        >>> rows = np.array([[1.0, 0.1], [1, 0], [1, -0.1], [0, 1]])
        >>> chosen = FacilityLocation(graph=NeighbourGraph(seed=0)).select(rows, num_selected=2)
        >>> chosen.ids, chosen.weights
        (array([0, 3]), array([3., 1.]))

    References:
        Nemhauser, Wolsey and Fisher, An analysis of approximations for maximizing submodular
        set functions (Mathematical Programming 1978); Minoux, Accelerated greedy algorithms
        for maximizing submodular set functions (1978); Mirzasoleiman et al., Coresets for
        data-efficient training of machine learning models (ICML 2020), arXiv:1906.01827, for
        the weights.
    """

    graph: NeighbourGraph

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
            eligible: Which rows may be chosen; the others are represented all the same.

        Returns:
            The rows in the order in which they were chosen. The weight of each is the number
            of rows that it represents best, itself among them.
        """
        budget = Budget(num_selected=num_selected, num_tokens=num_tokens, tokens=tokens)
        pool = Pool.of(embeddings)
        budget.check(len(pool))
        allowed = marks_of(len(pool), eligible)[pool.positions]
        similarities = self.graph.build(pool.embeddings)
        ranking = budget.take(lazy_greedy(similarities, allowed), pool.positions)
        total = min(int(allowed.sum()), len(pool) if num_selected is None else num_selected)
        picks = list(track(ranking, "cover", total=total, unit="picks"))
        owners, best = representatives(similarities, picks)
        note = {
            **pool.embeddings.provenance,
            "facility_location": describe(self.graph),
            "value": int(best.sum()) / TICKS,
            "budget": {"num_selected": num_selected, "num_tokens": num_tokens},
        }
        weights = np.bincount(owners[owners >= 0], minlength=len(pool))[picks]
        ids = pool.embeddings.ids
        rejected = _reasons(ids, picks, allowed, owners, best)
        return Selection(ids[picks], weights.astype(np.float64), rejected, note)


def lazy_greedy(
    similarities: scipy.sparse.csr_array, allowed: Bool[np.ndarray, " n"]
) -> Iterator[int]:
    """Yield the allowed rows, each time one of largest gain; of equals the first.

    Args:
        similarities: Symmetric, in whole numbers.
        allowed: Which rows may be chosen.
    """
    starts, columns, values = similarities.indptr, similarities.indices, similarities.data
    best = np.zeros(len(allowed), values.dtype)
    gains = np.asarray(similarities.sum(axis=0, dtype=np.int64)).ravel()
    rows = np.flatnonzero(allowed)
    heap = list(zip((-gains[rows]).tolist(), rows.tolist(), strict=True))
    heapq.heapify(heap)
    while heap:
        row = heap[0][1]
        here = slice(starts[row], starts[row + 1])
        covered = columns[here]
        more = values[here] - best[covered]
        now = (-int(more[more > 0].sum(dtype=np.int64)), row)
        # A gain can only have fallen, so one that stays on top is the largest.
        heapq.heapreplace(heap, now)
        if heap[0] == now:
            heapq.heappop(heap)
            best[covered] = np.maximum(best[covered], values[here])
            yield row


def representatives(
    similarities: scipy.sparse.csr_array, picks: Sequence[int]
) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " n"]]:
    """Return, for each row, the pick that is most similar to it, or -1, and how similar it is.

    Of equals the earlier pick represents a row; each pick represents itself.
    """
    starts, columns, values = similarities.indptr, similarities.indices, similarities.data
    num_rows = len(starts) - 1
    best, owners = np.zeros(num_rows, np.int64), np.full(num_rows, -1)
    for pick in picks:
        here = slice(starts[pick], starts[pick + 1])
        better = values[here] > best[columns[here]]
        best[columns[here][better]] = values[here][better]
        owners[columns[here][better]] = pick
    owners[list(picks)] = picks
    return owners, best


def _reasons(
    ids: np.ndarray,
    picks: Sequence[int],
    allowed: Bool[np.ndarray, " n"],
    owners: Int[np.ndarray, " n"],
    best: Int[np.ndarray, " n"],
) -> dict[Any, str]:
    """Return why each row that was not chosen was not."""
    left = np.ones(len(ids), dtype=bool)
    left[list(picks)] = False
    reasons = {}
    for row in np.flatnonzero(left).tolist():
        if not allowed[row]:
            reasons[ids[row].item()] = MASKED
        elif owners[row] < 0:
            reasons[ids[row].item()] = UNREACHED
        else:
            owner, similarity = ids[owners[row]], best[row] / TICKS
            reasons[ids[row].item()] = f"represented by {owner} (similarity {similarity:.3f})"
    return reasons
