r"""GIO: greedy choice of the rows that bring a training set nearest to a target.

Letters: ``n`` target rows or centroids, ``g`` candidates or their centroids, ``d`` dimensions.

Each step adds the candidate after which the divergence :math:`KL(X \| W)` between the
target ``X`` and what is chosen, ``W``, is estimated to be smallest. There are four
estimates; docs/gio.md says what each really orders by. The published code walks to the
minimum by gradient descent in embedding space and takes the candidate that lies nearest to
where it ends; here the minimum over the candidates is exact.

Not handled: embeddings on the fly; see `embed`.
"""

from dataclasses import dataclass
from math import nan
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float, Int

from projections import (
    Embeddings,
    as_embeddings,
    check_at_least,
    check_not_empty,
    check_one_of,
    describe,
)
from selection.clusters import Clusters, KMeans
from selection.gio.divergence import Targets, log_distances
from selection.gio.estimates import (
    Estimate,
    NearestDiscardedEstimate,
    NeighbourEstimate,
    PublishedEstimate,
)
from selection.gio.greedy import Greedy
from selection.gio.path import GIOPath
from selection.gio.starts import UNIFORM, RandomStart, UniformStart
from selection.gio.stopping import INCREASE, StoppingRule
from selection.pool import Pool

EstimateName = Literal["published", "nearest-discarded", "coverage", "knn"]
ESTIMATES = ("published", "nearest-discarded", "coverage", "knn")
COUNTS = ("rows", "centroids")
PLAIN = ("estimate", "num_neighbours", "num_centroids", "count", "seed")  # settings in provenance
MOST_BYTES = 1 << 32  # of distances between targets and candidates


@dataclass(frozen=True, kw_only=True)
class GIO:
    """Choose rows whose distribution is near that of a target.

    Args:
        estimate: How the divergence is estimated. ``"published"``: as in the published
            package, the order of a score that does not depend on what was chosen;
            ``"nearest-discarded"``: its option for targets that are candidates themselves;
            ``"knn"``: from the ``num_neighbours``-th nearest chosen row of each target, so
            that what was chosen counts; ``"coverage"``: likewise from the nearest one, the
            most diverse.
        num_neighbours: Neighbours that densities are estimated from, ``k``.
        num_centroids: Centroids that candidates, and targets, are reduced to before; None
            takes each row as it is.
        count: What a chosen centroid counts for in the estimate: the ``"rows"`` of its
            cluster, or one of the ``"centroids"`` as in the published package.
        stop: When to stop; see `selection.gio.stopping`.
        start: What to start from where no initial data is given.
        seed: Seed of k-means and of the start.

    Example:
        >>> from selection.gio.stopping import DataShare
        >>> near, far = np.zeros((3, 2)) + [[0], [0.1], [0.2]], np.full((3, 2), 9.0)
        >>> gio = GIO(num_neighbours=1, stop=DataShare(1.0), seed=0)
        >>> path = gio.fit(np.concatenate([far, near]), near + 0.01)
        >>> sorted(path.select(num_selected=3).ids.tolist())
        [3, 4, 5]

    References:
        Everaert and Potts, GIO: Gradient information optimization for training dataset
        selection (ICLR 2024), arXiv:2306.11670.
    """

    estimate: EstimateName = "knn"
    num_neighbours: int = 5
    num_centroids: int | None = 1500
    count: Literal["rows", "centroids"] = "rows"
    stop: StoppingRule = INCREASE
    start: UniformStart | RandomStart = UNIFORM
    seed: int

    def __post_init__(self) -> None:
        """Check the arguments."""
        check_one_of("estimate", self.estimate, ESTIMATES)
        check_one_of("count", self.count, COUNTS)
        check_at_least("num_neighbours", self.num_neighbours, 1)
        if self.num_centroids is not None:
            check_at_least("num_centroids", self.num_centroids, 1)

    def fit(
        self,
        candidates: Any,
        target: Any,
        *,
        initial: Any = None,
        eligible: Bool[np.ndarray, " n"] | None = None,
        max_picks: int | None = None,
    ) -> GIOPath:
        """Rank candidates up to where the rule stops.

        Args:
            candidates: The rows to choose from: `Embeddings`, a store or an array.
            target: Rows like those that are wanted, embedded likewise.
            initial: Rows that are in the training set already; takes the place of a start.
            eligible: Which candidates may be chosen, in their order; all unless given.
            max_picks: Most picks, of rows or of centroids.

        Raises:
            ValueError: Dimensions differ, or there are too few targets, or too many
                distances would have to be held.
            NonFiniteError: An embedding is not finite.
        """
        pool, wanted = Pool.of(candidates, eligible), as_embeddings(target)
        others = None if initial is None else as_embeddings(initial)
        _check_widths(pool.embeddings, wanted, others)
        targets = self._targets(wanted)
        note = {
            **pool.embeddings.provenance,
            "gio": {**describe(self), "target": dict(wanted.provenance)},
        }
        if not len(pool):
            return GIOPath(pool, None, (), nan, "no row is eligible", note)
        clusters = self._cluster(pool.embeddings)
        copies = clusters.sizes if self.count == "rows" else np.ones_like(clusters.sizes)
        loop = Greedy(
            self._estimate(targets, clusters.centroids, copies, others), clusters.sizes, self.stop
        )
        drawn: Any = ()
        if others is None and isinstance(self.start, RandomStart):
            drawn = self.start.picks(len(clusters), self.seed).tolist()
        picks = [*loop.take(drawn), *loop.run(max_picks)]
        return GIOPath(pool, clusters, tuple(picks), loop.start, loop.ended, note)

    def describe(self) -> dict[str, Any]:
        """Return the settings as plain values."""
        plain = {name: getattr(self, name) for name in PLAIN}
        return {**plain, "stop": describe(self.stop), "start": describe(self.start)}

    def _cluster(self, embeddings: Embeddings) -> Clusters:
        """Reduce rows to centroids, or take each as its own."""
        number = len(embeddings) if self.num_centroids is None else self.num_centroids
        return KMeans(num_clusters=number, seed=self.seed).fit(embeddings)

    def _targets(self, wanted: Embeddings) -> Targets:
        """Reduce the targets likewise."""
        check_not_empty("target", len(wanted))
        clusters = self._cluster(wanted.by_id())
        if len(clusters) <= self.num_neighbours:
            raise ValueError(
                f"`num_neighbours` must be less than the number of targets (of their centroids), "
                f"{len(clusters)}. Got {self.num_neighbours}. A density needs at least 2 targets."
            )
        copies = clusters.sizes if self.count == "rows" else np.ones_like(clusters.sizes)
        return Targets(clusters.centroids, copies, self.num_neighbours)

    def _estimate(
        self,
        targets: Targets,
        points: Float[np.ndarray, "g d"],
        copies: Int[np.ndarray, " g"],
        initial: Embeddings | None,
    ) -> Estimate:
        """Return the estimate before the first pick."""
        width = targets.points.shape[1]
        start = np.empty((0, width))
        if initial is not None:
            start = initial.rows
        elif isinstance(self.start, UniformStart):
            start = self.start.points(width, self.seed)
        if self.estimate == "published":
            scores, begun = targets.total_distances(points), targets.total_distances(start)
            return PublishedEstimate(targets, scores, copies, begun)
        _check_memory(len(targets.points), len(points) + len(start))
        distances = log_distances(targets.points, points)
        begun = log_distances(targets.points, start)
        if self.estimate == "nearest-discarded":
            return NearestDiscardedEstimate(targets, distances, copies, begun)
        k = 1 if self.estimate == "coverage" else self.num_neighbours
        return NeighbourEstimate(targets, distances, copies, begun, k)


def _check_widths(given: Embeddings, wanted: Embeddings, others: Embeddings | None) -> None:
    """Refuse embeddings of different dimensions."""
    widths = [part.num_dims for part in (given, wanted, others) if part is not None]
    if len(set(widths)) > 1:
        raise ValueError(
            f"candidates, target and initial rows must have the same dimensions. Got {widths}. "
            "Embed them with one encoder."
        )


def _check_memory(num_targets: int, num_points: int) -> None:
    """Refuse more distances than can be held."""
    needed = 8 * num_targets * num_points
    if needed > MOST_BYTES:
        raise ValueError(
            f"targets and candidates must have at most {MOST_BYTES / 2**30:.0f} GiB of distances "
            f"between them. {num_targets:,} and {num_points:,} have {needed / 2**30:.1f}. Reduce "
            "both with `num_centroids`, or use the estimate 'published', which holds none."
        )
