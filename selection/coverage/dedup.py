r"""Semantic deduplication: of rows that say nearly the same, keep one.

Letters: ``n`` rows, ``d`` dimensions.

Rows are clustered by k-means, and compared within their cluster only, a block at a time:
no more than a block of similarities is ever held. Two near rows that fall into different
clusters are therefore both kept; fewer clusters find more, for more work.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float, Int

from projections import Embeddings, check_at_least, check_between, check_one_of, describe, track
from selection.base import Selection
from selection.clusters import Clusters, KMeans
from selection.pool import Pool

ORDERS = ("far", "near", "first")
ROWS_PER_CLUSTER = 1000  # on average, where the number of clusters is not given
BLOCK = 2048  # rows that are compared with the kept ones at a time


@dataclass(frozen=True, kw_only=True)
class SemanticDedup:
    """Drop rows whose cosine with a kept row of their cluster is above a threshold.

    Rows of a cluster are looked at in an order, and each is kept unless a row that was kept
    before is too similar. So every row that is dropped has a kept row near it. (The
    published code drops a row that is near any earlier one, be that kept or not, so a chain
    of neighbours may lose its end.)

    Args:
        threshold: The largest cosine that two kept rows of a cluster may have.
        num_clusters: Number of clusters; one for a thousand rows unless given.
        keep: Which of two similar rows is looked at first: the one that is ``"far"`` from
            the centroid (as published), the one ``"near"`` to it, or the ``"first"`` by id.
        seed: Seed of k-means.

    Example:
        >>> rows = np.array([[1.0, 0], [0.99, 0.01], [0, 1]])
        >>> chosen = SemanticDedup(threshold=0.9, keep="first", seed=0).select(rows)
        >>> chosen.ids, chosen.rejected
        (array([0, 2]), {1: 'cosine 1.000 with 0, which is kept'})

    References:
        Abbas et al., SemDeDup: Data-efficient learning at web-scale through semantic
        deduplication (2023), arXiv:2303.09540.
    """

    threshold: float = 0.95
    num_clusters: int | None = None
    keep: Literal["far", "near", "first"] = "far"
    seed: int

    def __post_init__(self) -> None:
        """Check the arguments."""
        check_between("threshold", self.threshold, -1, 1, "a cosine")
        check_one_of("keep", self.keep, ORDERS)
        if self.num_clusters is not None:
            check_at_least("num_clusters", self.num_clusters, 1)

    def select(
        self, embeddings: Any, *, eligible: Bool[np.ndarray, " n"] | None = None
    ) -> Selection:
        """Return the rows that are kept, in the order of their ids.

        Args:
            embeddings: `Embeddings`, a store or an array. A zero vector has no direction,
                and is like no other row.
            eligible: Which rows are looked at; the others are left out.

        Returns:
            The kept rows. The weight of each is the number of rows that it stands for.
        """
        pool = Pool.of(embeddings, eligible)
        note = {**pool.embeddings.provenance, "dedup": describe(self)}
        if not len(pool):
            return Selection(pool.embeddings.ids, np.zeros(0), pool.masked, note)
        given = pool.embeddings.normalized()
        number = self.num_clusters or -(-len(pool) // ROWS_PER_CLUSTER)
        clusters = self._cluster(given, number)
        owners, cosines = np.full(len(pool), -1), np.zeros(len(pool))
        groups = [self._ordered(clusters, cluster) for cluster in range(len(clusters))]
        compared = given.workers.map(
            partial(first_similar, threshold=self.threshold), (given.rows[one] for one in groups)
        )
        both = zip(groups, compared, strict=True)
        for members, (kept, found) in track(both, "dedup", unit="clusters", total=len(groups)):
            owners[members], cosines[members] = members[kept], found
        ids = pool.embeddings.ids
        kept_rows = np.flatnonzero(owners == np.arange(len(pool)))
        dropped = np.flatnonzero(owners != np.arange(len(pool))).tolist()
        reasons = {
            ids[row].item(): f"cosine {cosines[row]:.3f} with {ids[owners[row]]}, which is kept"
            for row in dropped
        }
        weights = np.bincount(owners, minlength=len(pool))[kept_rows].astype(np.float64)
        return Selection(ids[kept_rows], weights, {**reasons, **pool.masked}, note)

    def _cluster(self, given: Embeddings, number: int) -> Clusters:
        """Cluster directions; as many clusters as rows would compare nothing."""
        number = min(number, max(1, len(given) // 2))
        return KMeans(num_clusters=number, spherical=True, seed=self.seed).fit(given)

    def _ordered(self, clusters: Clusters, cluster: int) -> Int[np.ndarray, " m"]:
        """Return the rows of a cluster in the order in which they are looked at."""
        members = clusters.members(cluster)
        if self.keep == "first":
            return np.sort(members)
        sign = -1 if self.keep == "far" else 1
        return members[np.lexsort((members, sign * clusters.distances[members]))]


def first_similar(
    rows: Float[np.ndarray, "n d"], threshold: float
) -> tuple[Int[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """Return, for each row, the most similar kept row before it, or itself if it is kept.

    Args:
        rows: Vectors of length 1 or 0, those that come first are kept rather.
        threshold: The largest cosine between kept rows.

    Returns:
        Positions of kept rows, and the cosine with each.
    """
    owners, cosines = np.arange(len(rows)), np.ones(len(rows))
    kept = np.zeros(0, np.int64)
    for start in range(0, len(rows), BLOCK):
        block = rows[start : start + BLOCK]
        for before in range(0, len(kept), BLOCK):
            some = kept[before : before + BLOCK]
            _compare(block @ rows[some].T, some, start, threshold, owners, cosines)
        inside = block @ block.T
        new: list[int] = []
        for row in range(len(block)):
            if owners[start + row] != start + row:
                continue
            values = inside[row, new]
            if len(values) and values.max() > threshold:
                best = int(values.argmax())
                owners[start + row], cosines[start + row] = start + new[best], values[best]
            else:
                new.append(row)
        kept = np.concatenate([kept, start + np.array(new, np.int64)])
    return owners, cosines


def _compare(
    values: Float[np.ndarray, "b k"],
    kept: Int[np.ndarray, " k"],
    start: int,
    threshold: float,
    owners: Int[np.ndarray, " n"],
    cosines: Float[np.ndarray, " n"],
) -> None:
    """Note the most similar kept row of each row of a block that has one."""
    best = values.argmax(axis=1)
    found = values[np.arange(len(values)), best]
    rows = start + np.arange(len(values))
    better = (found > threshold) & ((owners[rows] == rows) | (found > cosines[rows]))
    owners[rows[better]], cosines[rows[better]] = kept[best[better]], found[better]
