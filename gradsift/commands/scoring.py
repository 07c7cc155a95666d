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
    GradientNorm,
    GradientStore,
    Rows,
    Scores,
    Sketch,
    Statistic,
    StoreWriter,
    Task,
    describe,
    fingerprint_model,
    read_dataset,
    run_pass,
)

MethodName = Literal["loss", "el2n", "margin", "grad-norm", "self-influence", "ekfac-self"]


@dataclass(frozen=True, kw_only=True)
class Score:
    """Score every example of a dataset, by one or more methods in one pass."""

    source: tyro.conf.OmitArgPrefixes[ModelSource]

    data: str
    """The data: jsonl, parquet or csv (also .gz, .zst), a datasets folder or name."""

    out: Path
    """The table of scores (.parquet). A run that was stopped goes on."""

    method: tuple[MethodName, ...] = ("loss", "grad-norm")
    """What to compute; el2n and margin need a classification task, ekfac-self two more passes."""

    num_dims: int = 2048
    """Dimensions of the sketch that self-influence is computed in."""

    damping: float | None = None
    """Damping of self-influence, as a multiple of the mean eigenvalue; by a rule if left out."""

    seed: int = 0
    """Seed of the random projection, and of the labels that ekfac-self draws."""

    reading: tyro.conf.OmitArgPrefixes[Reading] = READING

    def run(self) -> Iterator[str]:
        """Compute the scores."""
        data = read_dataset(self.data)
        task = load_task(self.source)
        work = self.out.with_name(self.out.name + ".work")
        store = self._compute(task, Rows(data), work)
        columns = {name: self._column(store, name) for name in self.method}
        provenance = {"score": as_json(self), "model": store.manifest["model"]}
        scores = Scores(store.ids, columns, provenance=provenance)
        scores.save(self.out)
        write_config(self, config_beside(self.out))
        shutil.rmtree(work)
        yield f"scored {len(scores):,} rows: {self.out}"
        for name, values in columns.items():
            yield f"  {name:16} {summary(values)}"
        yield f"next: gradsift prune {self.out} --data {self.data} --keep 0.9 --out kept.jsonl"

    def _compute(self, task: Task, rows: Rows, work: Path) -> GradientStore:
        """Run the pass, or go on with one that was stopped."""
        columns: list[Any] = [
            Statistic(name) for name in self.method if name in ("loss", "el2n", "margin")
        ]
        if "grad-norm" in self.method or "self-influence" in self.method:
            columns.append(GradientNorm())
        if "self-influence" in self.method:
            columns.append(Sketch(SJLT(num_dims=self.num_dims, seed=self.seed)))
        settings = pass_settings(self.reading, task.model)
        if "ekfac-self" in self.method:
            damping = RelativeDamping() if self.damping is None else RelativeDamping(self.damping)
            method = EKFAC(seed=self.seed, damping=damping)
            fitted = method.fit(task, rows, settings=settings, path=work / "fit")
            columns.append(SelfInfluence(fitted.layers, fitted.inverses, name="ekfac_self"))
        description = {
            "model": fingerprint_model(task.model),
            "data": rows.fingerprint,
            "columns": [column.name for column in columns],
            "settings": describe(replace(settings, batch_size=1, max_tokens=None)),
            "options": [self.num_dims, self.seed, self.damping],
        }
        writer = StoreWriter(work / "scores", description, num_rows=len(rows))
        run_pass(task, rows, columns, settings=settings, sink=writer, description="scores")
        return GradientStore.open(work / "scores")

    def _column(self, store: GradientStore, name: str) -> np.ndarray:
        """Return the values of one method."""
        if name == "self-influence":
            return TRAK(damping=self.damping).fit(store).self_scores()
        return store.column(name.replace("-", "_"))
