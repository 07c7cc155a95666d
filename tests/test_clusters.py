"""K-means: centroids are means of their rows, as near to them as long k-means over all rows."""

import faiss
import numpy as np
import pytest

from projections import Embeddings
from selection import KMeans


def groups(seed: int, count: int, dims: int = 8) -> Embeddings:
    random = np.random.default_rng(seed)
    centers = 4 * random.standard_normal((12, dims))
    rows = centers[random.integers(0, 12, count)] + random.standard_normal((count, dims))
    return Embeddings(rows.astype(np.float32))


def test_centroids_are_the_means_of_their_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = groups(0, 500)
    monkeypatch.setattr("selection.clusters.BLOCK_BYTES", 4 * 8 * 70)  # in parts of 70 rows
    found = KMeans(num_clusters=20, sample=8, seed=0).fit(rows)
    assert found.sizes.sum() == 500
    for cluster, centroid in enumerate(found.centroids):
        members = rows.rows[found.labels == cluster]
        np.testing.assert_allclose(centroid, members.mean(axis=0), atol=1e-5)
        apart = ((members - centroid) ** 2).sum(axis=1)
        np.testing.assert_allclose(found.distances[found.labels == cluster], apart, rtol=1e-4)
        assert set(found.members(cluster)) == set(np.flatnonzero(found.labels == cluster))


def test_spherical_centroids_have_length_one() -> None:
    rows = groups(1, 300).normalized()
    found = KMeans(num_clusters=10, spherical=True, seed=0).fit(rows)
    np.testing.assert_allclose(np.linalg.norm(found.centroids, axis=1), 1, atol=1e-5)
    means = np.stack([rows.rows[found.labels == one].mean(axis=0) for one in range(len(found))])
    cosines = (means * found.centroids).sum(axis=1) / np.linalg.norm(means, axis=1)
    np.testing.assert_allclose(cosines, 1, atol=1e-5)


def test_rows_are_as_near_to_centroids_as_after_twenty_rounds_over_all_rows() -> None:
    rows = groups(2, 4000, 16)
    long = faiss.Kmeans(16, 60, niter=20, seed=0, max_points_per_centroid=4000)
    long.train(rows.rows)
    theirs = float(long.index.search(rows.rows, 1)[0].mean())
    assert KMeans(num_clusters=60, seed=0).fit(rows).distances.mean() < 1.05 * theirs


def test_the_seed_alone_decides_and_few_rows_are_their_own_clusters() -> None:
    rows, settings = groups(3, 200), KMeans(num_clusters=15, seed=4)
    first, second = settings.fit(rows), settings.fit(rows)
    np.testing.assert_array_equal(first.labels, second.labels)
    np.testing.assert_array_equal(first.centroids, second.centroids)
    alone = KMeans(num_clusters=300, seed=0).fit(rows)
    np.testing.assert_array_equal(alone.labels, np.arange(200))
    assert KMeans(num_clusters=15, num_iterations=1, seed=4).fit(rows).sizes.sum() == 200
