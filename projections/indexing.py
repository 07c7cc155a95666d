"""From a dataset to a store of projected gradients.

Letters: ``k`` dimensions of a row.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from projections.base import Projector
from projections.columns import GradientNorm, Sketch, Statistic
from projections.data import Rows, as_rows
from projections.fingerprint import describe, fingerprint_model
from projections.pass_settings import PassSettings
from projections.passes import run_pass
from projections.ranks import current_ranks
from projections.row_types import ROWS
from projections.store import GradientStore
from projections.store_writer import StoreWriter
from projections.task import Task


def index_gradients(
    task: Task,
    data: Any,
    projector: Projector,
    *,
    path: str | Path,
    settings: PassSettings | None = None,
    dtype: str = "float32",
    statistics: tuple[str, ...] = ("loss",),
    notes: Mapping[str, Any] | None = None,
) -> GradientStore:
    """Compute the projected gradient of every row and keep them in a store.

    A store that was begun with the same model, data and settings is continued, and one
    that is finished is opened.

    Args:
        task: The model and its loss.
        data: The dataset.
        projector: The map to ``k`` dimensions.
        path: Folder of the store.
        settings: How to read the data.
        dtype: Type of the rows on disk.
        statistics: Names of the task's statistics to keep beside the rows. The exact
            gradient norm is always kept.
        notes: More entries for the manifest, such as where the data came from.

    Returns:
        The finished store, with the columns ``grad_norm`` and the statistics.

    Raises:
        StoreMismatchError: The folder holds a store of something else.
    """
    rows, settings = as_rows(data), settings or PassSettings()
    description = _describe_store(task, rows, projector, settings, notes)
    writer = current_ranks().first_then_others(
        lambda: StoreWriter(path, description, num_rows=len(rows), dtype=dtype), "opening a store"
    )
    return _fill(writer, task, rows, projector, settings, statistics)


def append_gradients(
    task: Task,
    data: Any,
    projector: Projector,
    *,
    path: str | Path,
    settings: PassSettings | None = None,
    notes: Mapping[str, Any] | None = None,
) -> GradientStore:
    """Add the projected gradients of more rows to a finished store.

    Rows have the type and the columns of the store. Adding that was stopped goes on, and
    data that was added before is not added again.

    Args:
        task: The model and loss that the store was built with.
        data: More data, whose ids are not in the store.
        projector: The map of the store.
        path: Folder of the store.
        settings: How to read the data; with the layers of the store.
        notes: Where the data came from, kept with the entry of these rows.

    Returns:
        The store, with the new rows after the old.

    Raises:
        StoreMismatchError: The store was built with another model or map, is unfinished, or
            has one of the ids.
    """
    rows, settings = as_rows(data), settings or PassSettings()
    description = _describe_store(task, rows, projector, settings, notes)
    writer = current_ranks().first_then_others(
        lambda: StoreWriter.extend(path, description, num_rows=len(rows)), "opening a store"
    )
    writer.check_ids(rows.ids)
    columns = GradientStore.open(path, allow_unfinished=True).column_names
    statistics = tuple(name for name in columns if name != GradientNorm().name)
    return _fill(writer, task, rows, projector, settings, statistics)


def _describe_store(
    task: Task,
    rows: Rows,
    projector: Projector,
    settings: PassSettings,
    notes: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """Return what the rows of a store are made of."""
    return {
        **describe_rows(task, projector, settings),
        "data": rows.fingerprint,
        "shard_size": settings.shard_size,
        "notes": dict(notes or {}),
    }


def _fill(
    writer: StoreWriter,
    task: Task,
    rows: Rows,
    projector: Projector,
    settings: PassSettings,
    statistics: tuple[str, ...],
) -> GradientStore:
    """Run the pass that writes the rows, and open the store."""
    columns = [Sketch(projector, ROWS), GradientNorm(), *map(Statistic, statistics)]
    run_pass(task, rows, columns, settings=settings, sink=writer, description="gradients")
    return GradientStore.open(writer.path)


def describe_rows(task: Task, projector: Projector, settings: PassSettings) -> dict[str, Any]:
    """Return what rows must share to be compared: model, map and components."""
    return {
        "model": fingerprint_model(task.model),
        "projector": describe(projector),
        "layers": list(settings.layers) if settings.layers is not None else None,
        "kinds": list(settings.kinds) if settings.kinds is not None else None,
        **settings.describe_gradients(),
    }
