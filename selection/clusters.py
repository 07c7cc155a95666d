"""K-means by FAISS: rows as clusters with whole-number ids, sizes and members.

Letters: ``n`` rows, ``d`` dimensions, ``c`` clusters.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
from jaxtyping import Float, Int

from projections import Embeddings, check_at_least, check_not_empty, require

INSTALL_FAISS = "pip install 'gradsift[cpu]' (or 'gradsift[gpu]')"
BLOCK_BYTES = 1 << 27  # vectors that are assigned at a time


@dataclass(frozen=True)
class Clusters:
    """Rows in clusters; none is empty.

    Args:
        centroids: The mean of each cluster, ``c d``.
        labels: The cluster of each row, ``n``.
        distances: Squared distance of each row to its centroid, ``n``.
    """

    centroids: Float[np.ndarray, "c d"]
    labels: Int[np.ndarray, " n"]
    distances: Float[np.ndarray, " n"]

    def __len__(self) -> int:
        """Return the number ``c`` of clusters."""
        return len(self.centroids)

    @cached_property
    def sizes(self) -> Int[np.ndarray, " c"]:
        """Number of rows of each cluster."""
        return np.bincount(self.labels, minlength=len(self))

    @cached_property
    def _grouped(self) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " c"]]:
        """Rows by cluster, and where each cluster starts."""
        order = np.lexsort((self.distances, self.labels))
        return order, np.concatenate([[0], np.cumsum(self.sizes)])

    def members(self, cluster: int) -> Int[np.ndarray, " m"]:
        """Return the rows of a cluster, nearest to the centroid first, ties in their order."""
        order, starts = self._grouped
        return order[starts[cluster] : starts[cluster + 1]]


@dataclass(frozen=True, kw_only=True)
class KMeans:
    """Cluster rows by k-means.

    Centroids are learnt in rounds on a quarter of a sample, then in rounds on the sample.
    All rows are then assigned, and each centroid moves to the mean of its rows, which lowers
    the distances more than further rounds on the sample would. With as many clusters as rows,
    or more, every row is a cluster of its own.

    Args:
        num_clusters: Number ``c`` of clusters; those that stay empty are left out.
        num_iterations: Rounds of Lloyd's algorithm, two thirds of them on the quarter.
        sample: Rows a cluster that centroids are learnt from, drawn with the seed.
        spherical: Whether centroids are scaled to length 1, for rows of length 1.
        seed: Draws the sample and the first centroids.

    Raises:
        ImportError: FAISS is not installed.

    Example:
        >>> rows = np.array([[0.0, 0], [0, 1], [9, 0], [9, 1], [9, 2]], dtype=np.float32)
        >>> found = KMeans(num_clusters=2, seed=0).fit(Embeddings(rows))
        >>> sorted(found.sizes.tolist())
        [2, 3]

    References:
        Johnson et al., Billion-scale similarity search with GPUs (2017), arXiv:1702.08734.
    """

    num_clusters: int
    num_iterations: int = 6
    sample: int = 32
    spherical: bool = False
    seed: int

    def __post_init__(self) -> None:
        """Check the arguments."""
        check_at_least("num_clusters", self.num_clusters, 1)
        check_at_least("num_iterations", self.num_iterations, 1)
        check_at_least("sample", self.sample, 1)

    def fit(self, embeddings: Embeddings) -> Clusters:
        """Cluster the rows.

        Args:
            embeddings: One vector a row, at least one.
        """
        check_not_empty("embeddings", len(embeddings))
        rows = embeddings.rows
        if self.num_clusters >= len(rows):
            return Clusters(
                np.asarray(rows, np.float32), np.arange(len(rows)), np.zeros(len(rows), np.float32)
            )
        learnt = self._learnt(np.ascontiguousarray(rows, np.float32))
        found = list(embeddings.workers.map(partial(nearest, learnt), _blocks(rows)))
        used, labels = np.unique(np.concatenate(found), return_inverse=True)
        centroids = _means(rows, labels, len(used))
        if self.spherical:
            centroids = Embeddings(centroids).normalized().rows
        return Clusters(centroids, labels, _distances(rows, labels, centroids))

    def _learnt(self, rows: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "c d"]:
        """Return centroids learnt from a sample, most rounds on a quarter of it."""
        faiss = require("faiss", INSTALL_FAISS)
        centroids, rest = None, max(1, self.num_iterations // 3)
        for rounds, sample in (
            (self.num_iterations - rest, -(-self.sample // 4)),
            (rest, self.sample),
        ):
            if not rounds:
                continue
            kmeans = faiss.Kmeans(
                rows.shape[1],
                self.num_clusters,
                niter=rounds,
                spherical=self.spherical,
                seed=self.seed & 0x7FFFFFFF,
                min_points_per_centroid=1,
                max_points_per_centroid=sample,
            )
            kmeans.train(rows, init_centroids=centroids)
            centroids = kmeans.centroids
        return centroids


def nearest(
    centroids: Float[np.ndarray, "c d"], rows: Float[np.ndarray, "b d"]
) -> Int[np.ndarray, " b"]:
    """Return the nearest centroid of each row."""
    faiss = require("faiss", INSTALL_FAISS)
    index = faiss.IndexFlatL2(rows.shape[1])
    index.add(centroids)
    return index.search(rows, 1)[1][:, 0]


def _means(
    rows: np.ndarray, labels: Int[np.ndarray, " n"], num_clusters: int
) -> Float[np.ndarray, "c d"]:
    """Return the mean of the rows with each label, none of which is without rows."""
    sums, start = np.zeros((num_clusters, rows.shape[1])), 0
    for block in _blocks(rows):
        here = labels[start : start + len(block)]
        order = np.argsort(here, kind="stable")
        present, begins = np.unique(here[order], return_index=True)
        sums[present] += np.add.reduceat(block[order], begins, axis=0, dtype=np.float64)
        start += len(block)
    return (sums / np.bincount(labels)[:, None]).astype(np.float32)


def _distances(
    rows: np.ndarray, labels: Int[np.ndarray, " n"], centroids: Float[np.ndarray, "c d"]
) -> Float[np.ndarray, " n"]:
    """Return the squared distance of each row to the centroid of its cluster."""
    found, start = np.empty(len(rows), np.float32), 0
    for block in _blocks(rows):
        here = slice(start, start + len(block))
        apart = block - centroids[labels[here]]
        found[here] = np.einsum("nd,nd->n", apart, apart)
        start += len(block)
    return found


def _blocks(rows: np.ndarray) -> Iterator[Float[np.ndarray, "b d"]]:
    """Yield the rows as float32, some at a time."""
    height = max(1, BLOCK_BYTES // (4 * rows.shape[1]))
    for start in range(0, len(rows), height):
        yield np.ascontiguousarray(rows[start : start + height], np.float32)
