"""Domains as regions of a space: k-means clusters, or the centres of named sources.

Letters: ``n`` examples, ``d`` dimensions of an embedding or of a projected gradient,
``m`` domains.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from projections import NonFiniteError, check_not_empty
from selection.clusters import Clusters

CHUNK = 1 << 24  # distances held at a time


@dataclass(frozen=True)
class Centers:
    """The centre of each domain; an example belongs to the nearest.

    Args:
        names: Names of the domains.
        points: Their centres.
        unit_length: Whether rows are divided by their length first, so that directions count.

    Example:
        >>> centers = Centers(("left", "right"), np.array([[-1.0, 0.0], [1.0, 0.0]]))
        >>> centers.nearest(np.array([[-3.0, 0.1], [0.2, 0.0]]))
        array([0, 1])
    """

    names: tuple[str, ...]
    points: Float[np.ndarray, "m d"]
    unit_length: bool = False

    def nearest(self, vectors: Float[np.ndarray, "n d"]) -> Int[np.ndarray, " n"]:
        """Return the position of the nearest centre of each row."""
        rows = _unit(vectors) if self.unit_length else vectors
        norms = np.square(self.points).sum(1)
        step = max(1, CHUNK // len(self.points))
        parts = [
            (norms - 2 * rows[start : start + step] @ self.points.T).argmin(1)
            for start in range(0, len(rows), step)
        ]
        return np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64)


def cluster_centers(clusters: Clusters, *, unit_length: bool = False) -> Centers:
    """Return the centres of k-means clusters, named by their numbers.

    Args:
        clusters: Clusters of embeddings, or of projected gradients from a store.
        unit_length: Whether the rows that were clustered had been divided by their length.

    Example:
        >>> from projections import Embeddings
        >>> from selection import KMeans
        >>> rows = np.array([[0.0], [0.1], [9.0], [9.2]], dtype=np.float32)
        >>> centers = cluster_centers(KMeans(num_clusters=2, seed=0).fit(Embeddings(rows)))
        >>> sorted(centers.points.ravel().round(2).tolist()), centers.names
        ([0.05..., 9.1...], ('cluster 0', 'cluster 1'))
    """
    names = tuple(f"cluster {number}" for number in range(len(clusters)))
    return Centers(names, np.asarray(clusters.centroids, dtype=float), unit_length)


def source_centers(
    sources: Mapping[str, Float[np.ndarray, "n d"]], *, unit_length: bool = False
) -> Centers:
    """Return the centres of named sources: the mean of the vectors of each.

    Args:
        sources: Vectors of the examples of each source.
        unit_length: Whether vectors are divided by their length first.
    """
    for name, vectors in sources.items():
        check_not_empty(name, len(vectors))
        check_vectors(vectors)
    rows = [_unit(vectors) if unit_length else vectors for vectors in sources.values()]
    return Centers(tuple(sources), np.stack([part.mean(0) for part in rows]), unit_length)


def check_vectors(vectors: Float[np.ndarray, "n d"]) -> None:
    """Refuse vectors with NaN or infinity, by their rows."""
    wrong = np.flatnonzero(~np.isfinite(vectors).all(1))
    if len(wrong):
        raise NonFiniteError(
            f"every vector must be finite. {len(wrong)} of {len(vectors)} are not, such as rows "
            f"{wrong[:5].tolist()}."
        )


def _unit(vectors: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n d"]:
    """Divide rows by their length; zero stays zero."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.divide(vectors, lengths, out=np.zeros_like(vectors), where=lengths > 0)
