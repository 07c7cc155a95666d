"""What GIO leaves: its picks in order, from which selections of any size are cut.

Letters: ``n`` rows, ``c`` clusters.
"""

from collections import Counter
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int, Real

from projections import Provenance
from selection.base import Selection
from selection.clusters import Clusters
from selection.gio.greedy import Pick
from selection.pool import Budget, Pool


@dataclass(frozen=True)
class GIOPath:
    """The picks of one run.

    Args:
        pool: The rows that could be chosen.
        clusters: The centroids that were chosen from; None if no row was eligible.
        picks: The picks in order, each with the divergence after it.
        start: The divergence before the first pick.
        ended: Why there are no more.
        provenance: Where the rows came from, and the settings.
    """

    pool: Pool
    clusters: Clusters | None
    picks: tuple[Pick, ...]
    start: float
    ended: str
    provenance: Provenance

    @property
    def divergences(self) -> list[float]:
        """The divergence at the start and after each pick."""
        return [self.start, *(pick.divergence for pick in self.picks)]

    def ranking(self) -> Int[np.ndarray, " n"]:
        """Return the rows of the pool in the order in which they are chosen.

        Clusters come in the order of their first pick, and in each the rows nearest to its
        centroid first.
        """
        if self.clusters is None or not self.picks:
            return np.zeros(0, np.int64)
        order = dict.fromkeys(pick.candidate for pick in self.picks)
        return np.concatenate([self.clusters.members(cluster) for cluster in order])

    def select(
        self,
        *,
        num_selected: int | None = None,
        num_tokens: float | None = None,
        tokens: Real[np.ndarray, " n"] | None = None,
    ) -> Selection:
        """Return the rows of the picks, as many as a budget allows.

        Args:
            num_selected: Most rows; all that were picked unless given, and no more than
                those. Use ``stop=DataShare(1.0)`` to have every row ranked.
            num_tokens: Most tokens; rows are taken up to the first that does not fit.
            tokens: Number of tokens of each candidate, in the order of the data.

        Returns:
            The rows in the order in which they were chosen, with the number of times that
            they were.
        """
        budget = Budget(num_selected=num_selected, num_tokens=num_tokens, tokens=tokens)
        budget.check(len(self.pool) + len(self.pool.masked))
        ranking = self.ranking()
        kept = budget.cut(self.pool.positions[ranking])
        chosen = ranking[:kept]
        times = Counter(pick.candidate for pick in self.picks)
        labels = self.clusters.labels[chosen].tolist() if self.clusters is not None else []
        weights = np.array([times[label] for label in labels], dtype=np.float64)
        rejected = {**self._reasons(ranking, kept, budget), **self.pool.masked}
        ids = self.pool.embeddings.ids[chosen]
        return Selection(ids, weights, rejected, self._note(budget))

    def _reasons(
        self, ranking: Int[np.ndarray, " n"], kept: int, budget: Budget
    ) -> dict[object, str]:
        """Return why each row of the pool that is left out is."""
        if self.clusters is None:
            return {}
        ids = self.pool.embeddings.ids
        missing = np.ones(len(ids), dtype=bool)
        missing[ranking] = False
        sizes = self.clusters.sizes
        reasons = [
            f"not chosen ({self.ended})"
            if size == 1
            else f"its cluster {cluster} of {size} rows was not chosen ({self.ended})"
            for cluster, size in enumerate(sizes.tolist())
        ]
        left = np.flatnonzero(missing)
        labels = self.clusters.labels[left].tolist()
        found = dict(zip(ids[left].tolist(), map(reasons.__getitem__, labels), strict=True))
        return {**found, **dict.fromkeys(ids[ranking[kept:]].tolist(), budget.reason)}

    def _note(self, budget: Budget) -> Provenance:
        """Return the provenance of a selection."""
        path = {
            "num_picks": len(self.picks),
            "ended": self.ended,
            "divergence": [_plain(self.divergences[0]), _plain(self.divergences[-1])],
        }
        limits = {"num_selected": budget.num_selected, "num_tokens": budget.num_tokens}
        return {**self.provenance, "path": path, "budget": limits}


def _plain(value: float) -> float | None:
    """Return a number that JSON has."""
    return value if np.isfinite(value) else None
