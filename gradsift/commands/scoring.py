"""The command that scores every example of a dataset."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro

from gradsift.commands.options import (
    READING,
    Reading,
    as_json,
    config_beside,
    pass_settings,
    summary,
    write_config,
)
from gradsift.models import ModelSource, load_task
from influence import EKFAC, TRAK, RelativeDamping, SelfInfluence
from projections import (
    SJLT,
    Embeddings,
    GradientNorm,
    GradientStore,
    LayerInputs,
    Rows,
    Scores,
    Sketch,
    Statistic,
    StoreWriter,
    Task,
    WeightAlignment,
    current_ranks,
    describe,
    fingerprint_model,
    read_dataset,
    run_pass,
)
from selection import (
    find_nearest,
    guess_statistics,
    score_agreement,
    score_cluster_distance,
    untrained,
)

MethodName = Literal[
    "loss",
    "el2n",
    "margin",
    "correct",
    "grad-norm",
    "weight-alignment",
    "agreement",
    "self-influence",
    "near-duplicate",
    "cluster-distance",
    "ekfac-self",
]
STATISTICS = ("loss", "el2n", "margin", "correct")
OF_SKETCHES = ("agreement", "self-influence")
OF_FEATURES = ("near-duplicate", "cluster-distance")


@dataclass(frozen=True, kw_only=True)
class Score:
    """Score every example of a dataset, by any number of methods in one pass."""

    source: tyro.conf.OmitArgPrefixes[ModelSource]

    data: str
    """The data: jsonl, parquet or csv (also .gz, .zst), a datasets folder or name."""

    out: Path
    """The table of scores (.parquet). A run that was stopped goes on."""

    method: tuple[MethodName, ...] = ("loss", "grad-norm")
    """What to compute. el2n, margin and correct need a classification task. weight-alignment is
    that of the output layer; agreement that with the sum of all other gradients; near-duplicate
    and cluster-distance compare what goes into the output layer. All come from one pass but
    ekfac-self, which needs two more."""

    num_dims: int = 2048
    """Dimensions of the sketch behind self-influence and agreement."""

    num_clusters: int = 10
    """Clusters of which cluster-distance measures the distance to the centre."""

    damping: float | None = None
    """Damping of self-influence, as a multiple of the mean eigenvalue; by a rule if left out."""

    seed: int = 0
    """Seed of the random projection, and of the labels that ekfac-self draws."""

    memory: str | None = None
    """Bytes for the curvature behind ekfac-self, such as "8GB": where the factors of all layers do
    not fit, a plan fits them in parts, in two passes each."""

    reading: tyro.conf.OmitArgPrefixes[Reading] = READING

    def run(self) -> Iterator[str]:
        """Compute the scores."""
        data = read_dataset(self.data)
        task = load_task(self.source)
        work = self.out.with_name(self.out.name + ".work")
        self._compute(task, Rows(data), work)
        if not current_ranks().is_first:
            return
        store = GradientStore.open(work / "scores")
        columns = {name: self._values(store, name) for name in self.method}
        provenance = {"score": as_json(self), "model": store.manifest["model"]}
        scores = Scores(store.ids, columns, provenance=provenance)
        scores.save(self.out)
        write_config(self, config_beside(self.out))
        sentence = self._doubt(task, store)
        shutil.rmtree(work)
        if sentence:
            yield f"warning: {sentence}"
        yield f"scored {len(scores):,} rows: {self.out}"
        for name, values in columns.items():
            yield f"  {name:16} {summary(values)}"
        column = f" --column {self.method[0]}" if len(columns) > 1 else ""
        kept = f"{column} --keep 0.9 --out kept.jsonl"
        yield f"next: gradsift prune {self.out} --data {self.data}{kept}"

    def _compute(self, task: Task, rows: Rows, work: Path) -> None:
        """Run the pass, or go on with one that was stopped."""
        columns = self._columns(task)
        settings = pass_settings(self.reading, task.model)
        if "ekfac-self" in self.method:
            damping = RelativeDamping() if self.damping is None else RelativeDamping(self.damping)
            method = EKFAC(seed=self.seed, damping=damping)
            fitted = method.fit(
                task, rows, settings=settings, path=work / "fit", memory=self.memory
            )
            columns.append(SelfInfluence(fitted.layers, fitted.inverses, name="ekfac_self"))
        description = {
            "model": fingerprint_model(task.model),
            "data": rows.fingerprint,
            "columns": [column.name for column in columns],
            "settings": describe(replace(settings, batch_size=1, max_tokens=None)),
            "options": [self.num_dims, self.seed, self.damping],
        }
        writer = current_ranks().first_then_others(
            lambda: StoreWriter(work / "scores", description, num_rows=len(rows)), "opening scores"
        )
        run_pass(task, rows, columns, settings=settings, sink=writer, description="scores")

    def _columns(self, task: Task) -> list[Any]:
        """Return what the pass computes of each row."""
        asked = set(self.method)
        statistics = {name for name in STATISTICS if name in asked}
        columns: list[Any] = []
        if asked & {"grad-norm", *OF_SKETCHES}:
            columns.append(GradientNorm())
            # So that norms of a model that has learnt nothing are not taken at their word.
            statistics |= set(guess_statistics(task))
        if asked & set(OF_SKETCHES):
            columns.append(Sketch(SJLT(num_dims=self.num_dims, seed=self.seed)))
        if "weight-alignment" in asked:
            columns.append(WeightAlignment(task.model))
        if asked & set(OF_FEATURES):
            columns.append(LayerInputs(task.model))
        return [*map(Statistic, sorted(statistics)), *columns]

    def _values(self, store: GradientStore, name: str) -> np.ndarray:
        """Return the values of one method."""
        if name == "self-influence":
            return TRAK(damping=self.damping).fit(store).self_scores()
        if name == "agreement":
            return score_agreement(store)["agreement"].values
        if name in OF_FEATURES:
            features = Embeddings(store.column("features"), store.ids)
            if name == "near-duplicate":
                return find_nearest(features, seed=self.seed).cosines
            found = score_cluster_distance(features, num_clusters=self.num_clusters, seed=self.seed)
            return found["cluster_distance"].values
        return store.column(name.replace("-", "_"))

    def _doubt(self, task: Task, store: GradientStore) -> str | None:
        """Return a warning where gradient norms say nothing yet."""
        known = store.column_names
        if "grad-norm" not in self.method or "loss" not in known:
            return None
        tokens = store.column("num_tokens") if "num_tokens" in known else None
        return untrained(task, store.column("loss"), tokens)
