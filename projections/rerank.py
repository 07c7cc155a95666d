"""Re-ranking: candidates from a fast index, scored again by the rows that are stored.

Letters: ``q`` queries, ``k`` neighbours, ``c`` candidates, ``d`` dimensions of a row.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from projections.base import RowIndex, TopK
from projections.checks import check_between
from projections.search import check_queries
from projections.store import GradientStore

NONE = -1  # position of a row that was not found


@dataclass(frozen=True)
class Reranked:
    """An index whose candidates are ordered by exact inner products with stored rows.

    Args:
        index: Finds the candidates; approximate.
        store: The rows. Their type on the disk limits how exact the inner products are.
        num_candidates: How many candidates each query gets, at each end.
        scales: A factor for each row, as in `SearchIndex`; candidates are found without it.
    """

    index: RowIndex
    store: GradientStore
    num_candidates: int
    scales: np.ndarray | None = None

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.store)

    def search(self, queries: Float[np.ndarray, "q d"], k: int) -> TopK:
        """Return the ``k`` best of the candidates with the largest scores.

        Args:
            queries: One query a row.
            k: Number of neighbours, at most the number of candidates.

        Raises:
            ValueError: ``k`` is larger than the number of candidates.
        """
        return self._ordered(*self._candidates(queries, k, both=False), k, 1)

    def search_both(self, queries: Float[np.ndarray, "q d"], k: int) -> tuple[TopK, TopK]:
        """Return both ends, each the best of all candidates."""
        found = self._candidates(queries, k, both=True)
        return self._ordered(*found, k, 1), self._ordered(*found, k, -1)

    def _candidates(
        self, queries: Float[np.ndarray, "q d"], k: int, *, both: bool
    ) -> tuple[Int[np.ndarray, "q c"], Float[np.ndarray, "q c"]]:
        """Return positions of candidates, ascending, and their exact scores; NaN for none."""
        check_between("num_candidates", self.num_candidates, k, len(self), "from k to the rows")
        queries = check_queries(queries, self.store.num_dims, k, len(self))
        if both:
            ends = self.index.search_both(queries, self.num_candidates)
            positions = np.concatenate([end.positions for end in ends], axis=1)
        else:
            positions = self.index.search(queries, self.num_candidates).positions
        positions = np.sort(positions, axis=1)
        positions[:, 1:][positions[:, 1:] == positions[:, :-1]] = NONE
        scores = np.full(positions.shape, np.nan, dtype=np.float32)
        for query, row in enumerate(positions):
            known = row[row != NONE]
            exact = self.store.rows(known) @ queries[query]
            scores[query, row != NONE] = (
                exact if self.scales is None else exact * self.scales[known]
            )
        return positions, scores

    def _ordered(
        self,
        positions: Int[np.ndarray, "q c"],
        scores: Float[np.ndarray, "q c"],
        k: int,
        sign: int,
    ) -> TopK:
        """Return the best by exact score, ties by position, rows that were not found last."""
        order = np.argsort(-sign * scores, axis=1, kind="stable")[:, :k]
        best, where = (np.take_along_axis(a, order, 1) for a in (scores, positions))
        ids = self.store.ids[where]
        ids[where == NONE] = -1 if ids.dtype.kind == "i" else ""
        return TopK(ids, best, where)
