"""The influence index: rows of an eigenbasis on disk, answered by inner products.

Letters: ``n`` rows, ``q`` queries, ``k`` neighbours.

A folder with the curvature, the store of rows, and the Gram matrix of the kept
coordinates. Influence is the inner product of a row with a whitened query; the best few
hundred can be scored again by the full curvature, for those candidates only.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from influence.curvature import FittedCurvature
from influence.eigen_index import IndexProjector, choose_coordinates
from influence.ekfac import FisherName
from influence.pairwise import SelfInfluence
from influence.principal import BasisName, Learner, PrincipalProjector, pick_sizes
from influence.queries import Preconditioned
from influence.row_gram import (
    TARGETS,
    check_gram_rank,
    default_damping,
    expected_gram,
    gram_file,
    gram_labels,
    gram_of_rows,
    pick_target,
    read_gram,
    write_gram,
)
from influence.whitening import LowRankGram, LowRankWhitening, Whitening, low_rank_gram
from projections import (
    GradientNorm,
    GradientStore,
    PassSettings,
    QueryTask,
    Rows,
    SearchIndex,
    Sketch,
    Statistic,
    StoreMismatchError,
    StoreWriter,
    Task,
    TopK,
    as_rows,
    check_at_least,
    check_between,
    current_ranks,
    describe,
    read_json,
    run_pass,
    write_json,
)

CURVATURE, STORE, CONFIG = "curvature.safetensors", "store", "index.json"
KIND = "an influence index"


@dataclass(frozen=True)
class InfluenceIndex:
    """An index that was built, ready for queries.

    Args:
        curvature: The full curvature, for re-ranking and exact scores.
        projector: The kept coordinates, or principal directions of more of them.
        store: The rows, unwhitened, with norms, losses and exact self-influence beside them.
        gram: Gram matrix of the kept coordinates, ``D D``, or its main directions; None to
            whiten by eigenvalues.
        target: What is added to it, times the damping.
        damping: How much of the target is added.
    """

    curvature: FittedCurvature
    projector: IndexProjector
    store: GradientStore
    gram: Float[np.ndarray, "D D"] | LowRankGram | None
    target: Float[Tensor, "D *D"] = field(repr=False)
    damping: float

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.store)

    def with_damping(self, damping: float) -> "InfluenceIndex":
        """Return the same index with another damping; nothing is computed."""
        check_at_least("damping", damping, 0)
        return replace(self, damping=damping)

    @cached_property
    def whitening(self) -> Whitening | LowRankWhitening:
        """What queries are multiplied by."""
        if isinstance(self.gram, LowRankGram):
            return LowRankWhitening(self.gram, self.damping)
        own = self.projector.within(self.projector.eigenvalues)
        matrix = own if self.gram is None else torch.from_numpy(self.gram)
        return Whitening(matrix, self.damping, self.target)

    @cached_property
    def _finders(self) -> list[Whitening | LowRankWhitening]:
        """What finds candidates: the full curvature on the kept coordinates, and the Gram matrix.

        The first is the metric that scores them again; where the kept coordinates hold little
        of that, the second finds more (measured in `benchmarks/index_speed.md`).
        """
        within = self.projector.within
        dampings = within(self.projector.dampings(self.curvature.dampings))
        own = Whitening(within(self.projector.eigenvalues), 1.0, dampings)
        return [own] if self.gram is None else [own, self.whitening]

    def query_rows(
        self, task: Task, queries: Any, *, settings: PassSettings | None = None
    ) -> Float[np.ndarray, "q D"]:
        """Return the whitened rows of queries.

        Args:
            task: The model; its `measurements` are the queries.
            queries: A dataset of queries.
            settings: Batching; the layers are those of the fit.

        Raises:
            StoreMismatchError: The model is not the one that was indexed.
        """
        return self._whitened([self.whitening], task, queries, settings)[0]

    def _whitened(
        self,
        metrics: Sequence[Whitening | LowRankWhitening],
        task: Task,
        queries: Any,
        settings: PassSettings | None,
    ) -> Float[np.ndarray, "m q D"]:
        """Return the rows of queries in each metric."""
        self.curvature.check_model(task)
        table = run_pass(
            QueryTask(task),
            queries,
            [Sketch(self.projector)],
            settings=self.curvature.reading(settings),
            description="queries",
        )
        rows = torch.from_numpy(table.columns["sketch"])
        return np.stack([metric.apply(rows).numpy() for metric in metrics])

    def search(
        self,
        task: Task,
        queries: Any,
        *,
        k: int = 10,
        rerank: int = 0,
        data: Any = None,
        settings: PassSettings | None = None,
    ) -> tuple[TopK, TopK]:
        """Return the most helpful and the most harmful rows for each query.

        Args:
            task: The model; its `measurements` are the queries.
            queries: A dataset of queries.
            k: Number of rows at each end.
            rerank: Number of candidates at each end that are scored again by the full
                curvature; 0 for none. The eigenvalues, which that score has too, and the Gram
                matrix find them in turns, and their gradients are recomputed.
            data: The indexed data, needed for re-ranking.
            settings: Batching.

        Returns:
            The top, best first, and the bottom, worst first.

        Raises:
            ValueError: ``k`` is larger than the number of rows or of candidates.
        """
        check_between("k", k, 1, len(self), "the number of rows")
        if not rerank:
            rows = self.query_rows(task, queries, settings=settings)
            return SearchIndex(self.store).search_both(rows, k)
        check_between("rerank", rerank, k, len(self), "from k to the number of rows")
        if data is None:
            raise ValueError("`data` must be given to re-rank: its gradients are recomputed.")
        self.store.require(data=as_rows(data).fingerprint)
        asked = as_rows(queries)
        rows = self._whitened(self._finders, task, asked, settings)
        found = SearchIndex(self.store).search_both(rows.reshape(-1, rows.shape[-1]), rerank)
        top, bottom = (_in_turns(end.positions.reshape(*rows.shape[:2], -1)) for end in found)
        best, worst = [], []
        for query in range(len(asked)):
            gradients = self.curvature.query_gradients(
                task, asked.fetch([query]), settings=settings
            )
            candidates = np.union1d(top[query], bottom[query])
            scores = self._exact(task, as_rows(data), candidates, gradients, settings)
            order = np.argsort(-scores, kind="stable")
            best.append((candidates[order[:k]], scores[order[:k]]))
            rising = np.argsort(scores, kind="stable")[:k]
            worst.append((candidates[rising], scores[rising]))
        return self._found(best), self._found(worst)

    def _exact(
        self,
        task: Task,
        data: Rows,
        candidates: np.ndarray,
        gradients: Preconditioned,
        settings: PassSettings | None,
    ) -> Float[np.ndarray, " c"]:
        """Return the full scores of some rows for one query."""
        return self.curvature.scores_of(
            task, gradients, data.fetch(data.find(self.store.ids[candidates])), settings=settings
        )[0]

    def _found(self, parts: list[tuple[np.ndarray, np.ndarray]]) -> TopK:
        """Return results of single queries as one."""
        positions = np.stack([where for where, _ in parts])
        return TopK(self.store.ids[positions], np.stack([s for _, s in parts]), positions)

    @classmethod
    def load(cls, path: str | Path) -> "InfluenceIndex":
        """Open a finished index.

        Raises:
            StoreMismatchError: The folder holds none, or an unfinished one.
        """
        folder = Path(path)
        config = read_json(folder / CONFIG, KIND)
        if "num_coordinates" not in config:
            raise StoreMismatchError(
                f"{folder} must hold an index that says what its numbers are made of. It was built "
                "by an earlier version: build it again in another folder."
            )
        curvature = FittedCurvature.load(folder / CURVATURE)
        inner = choose_coordinates(
            curvature.layers, config["num_coordinates"], model=curvature.model
        )
        projector = inner
        if config["directions"] is not None:
            file = folder / config["directions"]
            projector = PrincipalProjector.load(file, inner, metric=config["metric"])
        store = GradientStore.open(folder / STORE)
        store.require(projector=projector.describe())
        gram = None if config["gram_file"] is None else read_gram(folder / config["gram_file"])
        target = pick_target(config["target"], curvature, projector)
        return cls(curvature, projector, store, gram, target, config["damping"])


def _in_turns(ranked: Int[np.ndarray, "m q k"]) -> Int[np.ndarray, "q k"]:
    """Return the first of each ranking, then the second of each, and so on, none twice.

    Args:
        ranked: Rankings of the same rows, best first.

    Example:
        >>> _in_turns(np.array([[[5, 3, 1]], [[5, 7, 3]]]))
        array([[5, 3, 7]])
    """
    _, num_queries, k = ranked.shape
    found = np.empty((num_queries, k), dtype=ranked.dtype)
    for query, turns in enumerate(ranked.transpose(1, 2, 0).reshape(num_queries, -1)):
        _, first = np.unique(turns, return_index=True)
        found[query] = turns[np.sort(first)[:k]]
    return found


def build_index(
    curvature: FittedCurvature,
    task: Task,
    data: Any,
    *,
    num_dims: int,
    path: str | Path,
    basis: BasisName = "auto",
    num_coordinates: int | None = None,
    num_learned: int | None = None,
    gram: FisherName | None = "auto",
    gram_rank: int | None = None,
    damping: float | None = None,
    row_dtype: str = "float32",
    seed: int = 0,
    settings: PassSettings | None = None,
) -> InfluenceIndex:
    """Build an influence index, or go on with one that was stopped, or open it.

    Args:
        curvature: The fitted curvature.
        task: The model it was fitted to, and its loss.
        data: The training data.
        num_dims: Numbers kept of each gradient.
        path: Folder of the index.
        basis: What they are: single ``"coordinates"`` of the eigenbasis, or ``"principal"``
            directions of many coordinates, learned from a sample of the data, which tell more
            in fewer numbers. ``"auto"`` is principal where there are at least as many
            examples as numbers, and more coordinates than numbers.
        num_coordinates: Coordinates that the directions are made of; by default as many as
            make a map of 256 MB.
        num_learned: Examples that they are learned from; by default 4,096, or twice the
            numbers of a row.
        gram: Labels of the Gram matrix of the kept coordinates, as ``fisher`` in `EKFAC`;
            ``"auto"`` is exact for few labels, else those of the data, which need no pass
            of their own. None whitens by the eigenvalues.
        gram_rank: Keep only so many main directions of a Gram matrix of the data's labels,
            and never form the matrix, which takes ``8 D D`` bytes; None for all of it.
        damping: How much of its target is added to a Gram matrix before it is inverted. The
            target of exact labels is the identity, and the default its `noise_floor`. That
            of others is the damped eigenvalues of the curvature, and the default ten times
            the noise floor in units of it. Without a Gram matrix, a multiple of the
            curvature's own damping, by default 1.
        row_dtype: Type of the rows on disk.
        seed: Seed of drawn labels, and of the sample that directions are learned from.
        settings: Batching; the layers are those of the fit.

    Raises:
        ValueError: A rank is asked of a Gram matrix that is not that of the rows, or there
            are fewer coordinates or examples than numbers.
    """
    curvature.check_model(task)
    labels = None if gram is None else gram_labels(gram, task, seed)
    check_gram_rank(gram_rank, gram, labels)
    folder, rows = Path(path), as_rows(data)
    reading = curvature.reading(settings)
    how = {
        "model": curvature.model,
        "data": rows.fingerprint,
        "shard_size": reading.shard_size,
        "curvature_damping": describe(curvature.damping),  # self-influence beside the rows has it
    }
    target_name = "dampings" if labels is None else TARGETS[labels.kind]
    sizes = pick_sizes(basis, curvature, num_dims, len(rows), num_coordinates, num_learned)
    inner = choose_coordinates(curvature.layers, sizes.num_coordinates, model=curvature.model)
    projector, directions = inner, None
    if sizes.num_learned is not None:
        learner = Learner(
            inner,
            metric="ones" if target_name == "ones" else "curvature",
            num_dims=num_dims,
            num_learned=sizes.num_learned,
            seed=seed,
        )
        target = pick_target(learner.metric, curvature, inner)
        directions = learner.learn(task, rows, target, folder=folder, how=how, settings=reading)
        projector = PrincipalProjector.load(folder / directions, inner, metric=learner.metric)
    how["projector"] = projector.describe()

    def opened() -> StoreWriter:
        writer = StoreWriter(folder / STORE, how, num_rows=len(rows), dtype=row_dtype)
        if not (folder / CURVATURE).exists():
            curvature.save(folder / CURVATURE)
        return writer

    ranks = current_ranks()
    writer = ranks.first_then_others(opened, "opening an index")
    own = SelfInfluence(curvature.layers, curvature.inverses)
    columns = [Sketch(projector), GradientNorm(), own, Statistic("loss")]
    run_pass(task, rows, columns, settings=reading, sink=writer, description="index")
    store = GradientStore.open(folder / STORE)
    target = pick_target(target_name, curvature, projector)
    file = matrix = None
    if labels is not None:
        file = gram_file(labels, gram_rank)
        if not ranks.on_first((folder / file).exists, "looking for a Gram matrix"):
            if gram_rank is not None:
                found = low_rank_gram(store.blocks, target.numpy(), rank=gram_rank, seed=seed)
            elif labels.kind == "data":
                found = gram_of_rows(store)
            else:
                found = expected_gram(
                    task, rows, projector, labels=labels, settings=reading, folder=folder, how=how
                )
            ranks.on_first(partial(write_gram, folder / file, found), "writing a Gram matrix")
        matrix = read_gram(folder / file)
    chosen = damping
    if chosen is None:
        chosen = default_damping(matrix, target, len(rows), target_name)
    own_options = {"num_dims": num_dims, "damping": chosen, "gram": gram, "gram_file": file}
    made_of = {**asdict(sizes), "directions": directions, "metric": projector.metric}
    config = {**how, **own_options, **made_of, "target": target_name}
    ranks.on_first(lambda: write_json(folder / CONFIG, config), "writing an index")
    return InfluenceIndex(curvature, projector, store, matrix, target, chosen)
