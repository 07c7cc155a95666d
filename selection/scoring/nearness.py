"""How near a row lies to another, and to the centre of its cluster.

Letters: ``n`` rows, ``d`` dimensions.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from projections import Embeddings, Scores, as_embeddings, check_at_least
from selection.clusters import KMeans
from selection.coverage.neighbours import nearest_others


@dataclass(frozen=True)
class NearestRows:
    """The row that is most similar to each row.

    Args:
        ids: Ids of the rows.
        nearest: Id of the other row with the largest cosine.
        cosines: That cosine; 0 for a zero vector, which has no direction.
    """

    ids: np.ndarray
    nearest: np.ndarray
    cosines: Float[np.ndarray, " n"]

    def scores(self) -> Scores:
        """Return the cosines as the score ``near_duplicate``."""
        return Scores(self.ids, {"near_duplicate": self.cosines})


def find_nearest(embeddings: Any, *, seed: int = 0) -> NearestRows:
    """Find the most similar other row of each row: exactly up to 65,536 rows.

    Args:
        embeddings: `Embeddings`, a store or an array, at least two rows.
        seed: Draws what the search learns from where there are more rows; see
            `NeighbourGraph`.

    Raises:
        ValueError: There is only one row.

    Example:
        >>> found = find_nearest(np.array([[1.0, 0], [2, 0.1], [0, 1]]))
        >>> found.nearest, found.cosines.round(2)
        (array([1, 0, 1]), array([1.  , 1.  , 0.05]))
    """
    given = as_embeddings(embeddings)
    check_at_least("len(embeddings)", len(given), 2)
    pool = given.by_id()  # so that ties do not depend on the order of the rows
    places, cosines = nearest_others(pool, seed=seed)
    back = np.argsort(given.order)
    return NearestRows(given.ids, pool.ids[places][back], cosines[back])


def score_cluster_distance(embeddings: Any, *, num_clusters: int, seed: int) -> Scores:
    """Score rows by their distance to the centre of their cluster, of directions by k-means.

    Near rows are prototypes, far ones are rare or odd. With little data keep the near, with
    much the far.

    Args:
        embeddings: `Embeddings`, a store or an array; scaled to length 1 first.
        num_clusters: Number of clusters.
        seed: Seed of k-means.

    Returns:
        ``cluster_distance``, Euclidean between directions, and ``cluster``, its number.

    Example:
        >>> rows = np.array([[1.0, 0], [1, 0.1], [0, 1], [0.5, 1]])
        >>> score_cluster_distance(rows, num_clusters=2, seed=0)["cluster_distance"].values.round(2)
        array([0.05, 0.05, 0.23, 0.23])

    References:
        Sorscher et al., Beyond neural scaling laws: beating power law scaling via data pruning
        (NeurIPS 2022), arXiv:2206.14486, Sec. 5.
    """
    given = as_embeddings(embeddings)
    pool = given.by_id().normalized()
    found = KMeans(num_clusters=num_clusters, seed=seed).fit(pool)
    back = np.argsort(given.order)
    distances = _distances(pool, found.centroids, found.labels)[back]
    columns = {"cluster_distance": distances, "cluster": found.labels[back].astype(np.float64)}
    note = {"clusters": {"num_clusters": num_clusters, "seed": seed}}
    return Scores(given.ids, columns, provenance=note)


def _distances(
    pool: Embeddings, centroids: Float[np.ndarray, "c d"], labels: Int[np.ndarray, " n"]
) -> Float[np.ndarray, " n"]:
    """Return how far each row is from its centroid, measured and not by a rounded product."""
    away = pool.rows - centroids[labels]
    return np.sqrt(np.einsum("nd,nd->n", away, away, dtype=np.float64))
