"""The influence index: rows of an eigenbasis on disk, answered by inner products.

Letters: ``n`` rows, ``q`` queries, ``k`` neighbours.

A folder with the curvature, the store of rows, and the Gram matrix of the kept
coordinates. Influence is the inner product of a row with a whitened query; the best few
hundred can be scored again by the full curvature, for those candidates only.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from influence.curvature import FittedCurvature
from influence.damping import RelativeDamping, noise_floor
from influence.eigen_index import EigenProjector, RowGram, Whitening, choose_coordinates
from influence.ekfac import FisherName, pick_labels
from influence.pairwise import SelfInfluence
from influence.queries import Preconditioned
from projections import (
    FolderCheckpoint,
    GradientNorm,
    GradientStore,
    PassSettings,
    QueryTask,
    Rows,
    SearchIndex,
    Sketch,
    Statistic,
    StoreWriter,
    Task,
    TopK,
    as_rows,
    check_at_least,
    check_between,
    read_json,
    replacing,
    run_pass,
    write_json,
)

CURVATURE, STORE, GRAM, CONFIG = "curvature.safetensors", "store", "gram.npy", "index.json"
KIND = "an influence index"


@dataclass(frozen=True)
class InfluenceIndex:
    """An index that was built, ready for queries.

    Args:
        curvature: The full curvature, for re-ranking and exact scores.
        projector: The kept coordinates.
        store: The rows, unwhitened, with norms, losses and exact self-influence beside them.
        gram: Gram matrix of the kept coordinates, ``D D``; None to whiten by eigenvalues.
        damping: Added to the eigenvalues of the Gram matrix, in its own units.
    """

    curvature: FittedCurvature
    projector: EigenProjector
    store: GradientStore
    gram: Float[np.ndarray, "D D"] | None
    damping: float

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.store)

    def with_damping(self, damping: float) -> "InfluenceIndex":
        """Return the same index with another damping; nothing is computed."""
        check_at_least("damping", damping, 0)
        return replace(self, damping=damping)

    @cached_property
    def whitening(self) -> Whitening:
        """What queries are multiplied by."""
        matrix = self.projector.eigenvalues if self.gram is None else torch.from_numpy(self.gram)
        return Whitening(matrix, self.damping)

    @cached_property
    def _candidates(self) -> Whitening:
        """The same for candidates: the full curvature, on the kept coordinates alone.

        What a score is to be computed again for must be found by that score's own metric.
        """
        damped = self.projector.eigenvalues.double().clone()
        for name, kept in self.projector.kept.items():
            damped[kept.slots] += self.curvature.dampings[name]
        return Whitening(damped, 0.0)

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
        return self._whitened(self.whitening, task, queries, settings)

    def _whitened(
        self, whitening: Whitening, task: Task, queries: Any, settings: PassSettings | None
    ) -> Float[np.ndarray, "q D"]:
        """Return the rows of queries in one metric."""
        self.curvature.check_model(task)
        table = run_pass(
            QueryTask(task),
            queries,
            [Sketch(self.projector)],
            settings=self.curvature.reading(settings),
            description="queries",
        )
        return whitening.apply(torch.from_numpy(table.columns["sketch"])).numpy()

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
                curvature; 0 for none. They are found by the eigenvalues, which come nearest to
                that score, and their gradients are recomputed.
            data: The indexed data, needed for re-ranking.
            settings: Batching.

        Returns:
            The top, best first, and the bottom, worst first.

        Raises:
            ValueError: ``k`` is larger than the number of rows or of candidates.
        """
        check_between("k", k, 1, len(self), "the number of rows")
        if rerank:
            check_between("rerank", rerank, k, len(self), "from k to the number of rows")
            if data is None:
                raise ValueError("`data` must be given to re-rank: its gradients are recomputed.")
            self.store.require(data=as_rows(data).fingerprint)
        whitening = self._candidates if rerank else self.whitening
        rows = self._whitened(whitening, task, queries, settings)
        top, bottom = SearchIndex(self.store).search_both(rows, max(k, rerank))
        if not rerank:
            return top, bottom
        asked = as_rows(queries)
        best, worst = [], []
        for query in range(len(asked)):
            gradients = self.curvature.query_gradients(
                task, asked.fetch([query]), settings=settings
            )
            candidates = np.union1d(top.positions[query], bottom.positions[query])
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
        curvature = FittedCurvature.load(folder / CURVATURE)
        projector = choose_coordinates(curvature.layers, config["num_dims"], model=curvature.model)
        gram = np.load(folder / GRAM) if (folder / GRAM).exists() else None
        store = GradientStore.open(folder / STORE)
        store.require(projector=projector.describe())
        return cls(curvature, projector, store, gram, config["damping"])


def build_index(
    curvature: FittedCurvature,
    task: Task,
    data: Any,
    *,
    num_dims: int,
    path: str | Path,
    gram: FisherName | None = "auto",
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
        num_dims: Number of coordinates kept of each gradient.
        path: Folder of the index.
        gram: Labels of the Gram matrix of the kept coordinates, as ``fisher`` in `EKFAC`;
            ``"auto"`` is exact for few labels, else those of the data, which need no pass
            of their own. None whitens by the eigenvalues.
        damping: Damping in units of the Gram matrix; by default its `noise_floor`, or a tenth
            of the mean eigenvalue without a Gram matrix.
        row_dtype: Type of the rows on disk.
        seed: Seed of drawn labels.
        settings: Batching; the layers are those of the fit.
    """
    curvature.check_model(task)
    folder, rows = Path(path), as_rows(data)
    projector = choose_coordinates(curvature.layers, num_dims, model=curvature.model)
    reading = curvature.reading(settings)
    how = {
        "model": curvature.model,
        "projector": projector.describe(),
        "data": rows.fingerprint,
        "shard_size": reading.shard_size,
    }
    writer = StoreWriter(folder / STORE, how, num_rows=len(rows), dtype=row_dtype)
    if not (folder / CURVATURE).exists():
        curvature.save(folder / CURVATURE)
    own = SelfInfluence(curvature.layers, curvature.inverses)
    columns = [Sketch(projector), GradientNorm(), own, Statistic("loss")]
    run_pass(task, rows, columns, settings=reading, sink=writer, description="index")
    store = GradientStore.open(folder / STORE)
    matrix = None
    if gram is not None:
        if not (folder / GRAM).exists():
            found = _gram(projector, task, rows, store, gram, seed, reading, folder, how)
            with replacing(folder / GRAM) as file:
                np.save(file, found)
        matrix = np.load(folder / GRAM)
    chosen = damping if damping is not None else default_damping(projector, matrix, len(rows))
    write_json(folder / CONFIG, {**how, "num_dims": num_dims, "damping": chosen, "gram": gram})
    return InfluenceIndex(curvature, projector, store, matrix, chosen)


def default_damping(
    projector: EigenProjector, gram: Float[np.ndarray, "D D"] | None, num_rows: int
) -> float:
    """Return the noise floor of a Gram matrix, or a tenth of the mean kept eigenvalue."""
    if gram is None:
        return RelativeDamping(0.1).of(float(projector.eigenvalues.double().mean()))
    return noise_floor(float(np.trace(gram)), num_rows).value


def _gram(
    projector: EigenProjector,
    task: Task,
    rows: Rows,
    store: GradientStore,
    fisher: FisherName,
    seed: int,
    reading: PassSettings,
    folder: Path,
    how: Mapping[str, Any],
) -> Float[np.ndarray, "D D"]:
    """Return the mean Gram matrix of the kept coordinates, in float64."""
    labels = pick_labels(fisher, task, num_samples=1, seed=seed, purpose="gram")
    if labels.kind == "data" or (fisher == "auto" and labels.kind == "sampled"):
        total = np.zeros((projector.num_dims, projector.num_dims))
        for block in store.blocks():
            wide = np.asarray(block, dtype=np.float32)
            total += wide.T @ wide
        return total / len(store)
    accumulator = RowGram(projector)
    run_pass(
        task,
        rows,
        accumulators=[accumulator],
        labels=labels,
        settings=reading,
        checkpoint=FolderCheckpoint(folder / "gram", {**how, "fisher": fisher, "seed": seed}),
        description="gram",
    )
    return accumulator.mean.numpy()
