"""The command that builds an index."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro

from gradsift.commands.options import (
    CONFIG,
    READING,
    Reading,
    command_from_json,
    pass_settings,
    summary,
    write_config,
)
from gradsift.models import ModelSource, load_task
from gradsift.projecting import ProjectionName, make_projector
from influence import EKFAC, BasisName, build_index
from projections import (
    GradientStore,
    Projector,
    StoreMismatchError,
    Task,
    current_ranks,
    index_gradients,
    read_dataset,
    read_json,
)
from selection import layer_slices

RowsName = Literal["sketch", "ekfac"]


@dataclass(frozen=True, kw_only=True)
class Index:
    """Index the projected gradients of a dataset, to retrieve from it later."""

    source: tyro.conf.OmitArgPrefixes[ModelSource]

    data: str
    """The training data: jsonl, parquet or csv (also .gz, .zst), a datasets folder or name."""

    out: Path
    """Folder of the index. A run that was stopped goes on."""

    rows: RowsName = "sketch"
    """What is kept of a gradient: a random sketch of all layers, in one pass, or the main
    directions of the linear layers under their curvature, in three, which attribute better."""

    num_dims: int = 4096
    """Numbers kept of each gradient."""

    projection: ProjectionName = "sjlt"
    """How sketches are drawn; docs/choosing_a_projection.md compares them."""

    basis: BasisName = "auto"
    """What rows of ekfac are: principal directions, learned from a sample of the data, or
    single coordinates of most curvature; auto for directions where there are enough rows."""

    optimizer_state: Path | None = None
    """State of Adam, such as a trainer's optimizer.pt: sketches are of gradients over the root
    of its second moment, those of queries too."""

    seed: int = 0
    """Seed of the random projection, or of the labels that the curvature draws."""

    row_dtype: Literal["float32", "float16", "bfloat16", "int8"] = "float32"
    """Type of the rows on disk."""

    memory: str | None = None
    """Bytes for the curvature behind ekfac rows, such as "8GB": where the factors of all layers do
    not fit, a plan fits them in parts, in two passes each."""

    reading: tyro.conf.OmitArgPrefixes[Reading] = READING

    def run(self) -> Iterator[str]:
        """Build the index."""
        if self.rows == "ekfac" and (self.projection != "sjlt" or self.optimizer_state):
            raise ValueError(
                "`--projection` and `--optimizer-state` must be used with `--rows sketch`. Rows of "
                "ekfac have a basis of their own."
            )
        if self.rows == "sketch" and self.basis != "auto":
            raise ValueError("`--basis` must be used with `--rows ekfac`. Sketches have none.")
        data = read_dataset(self.data)
        task = load_task(self.source)
        store = self._sketch(task, data) if self.rows == "sketch" else self._curvature(task, data)
        if not current_ranks().is_first:
            return
        write_config(self, self.out / CONFIG)
        losses, norms = store.column("loss"), store.column("grad_norm")
        yield f"indexed {len(store):,} rows of {store.num_dims:,} numbers: {self.out}"
        yield f"loss {summary(losses)}; gradient norm {summary(norms)}"
        yield f"next: gradsift retrieve {self.out} --query '...'"

    def projector(self, task: Task) -> Projector:
        """Return the map of the sketches."""
        return make_projector(
            self.projection,
            task.model,
            num_dims=self.num_dims,
            seed=self.seed,
            settings=pass_settings(self.reading, task.model),
            optimizer_state=self.optimizer_state,
        )

    def layer_slices(self) -> dict[str, slice] | None:
        """Return which numbers of a row belong to which layer, where these are kept apart."""
        if self.rows == "ekfac" or self.projection != "two-sided" or self.optimizer_state:
            return None
        return layer_slices(self.projector(load_task(self.source)))

    def _sketch(self, task: Task, data: Any) -> GradientStore:
        """Build a store of random sketches."""
        return index_gradients(
            task,
            data,
            self.projector(task),
            path=self.out / "store",
            settings=pass_settings(self.reading, task.model),
            dtype=self.row_dtype,
        )

    def _curvature(self, task: Task, data: Any) -> GradientStore:
        """Fit EK-FAC and build an influence index."""
        settings = pass_settings(self.reading, task.model)
        fitted = EKFAC(seed=self.seed).fit(
            task, data, settings=settings, path=self.out / "fit", memory=self.memory
        )
        index = build_index(
            fitted,
            task,
            data,
            num_dims=self.num_dims,
            path=self.out,
            basis=self.basis,
            row_dtype=self.row_dtype,
            seed=self.seed,
        )
        return index.store


def read_index_config(folder: Path) -> Index:
    """Return the options that an index was built with.

    Raises:
        StoreMismatchError: The folder was not made by `gradsift index`, or is unfinished.
    """
    if (folder / "store").exists() and not (folder / CONFIG).exists():
        raise StoreMismatchError(
            f"{folder} must be a finished index. Run the `gradsift index` that began it again."
        )
    values = read_json(folder / CONFIG, "an index made by `gradsift index`")
    if values.pop("command", None) != "index":
        raise StoreMismatchError(f"{folder / CONFIG} must be that of an index. It is not.")
    return command_from_json(Index, values)
