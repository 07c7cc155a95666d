"""From a dataset to a store of projected gradients, and from queries to rows like its.

Letters: ``q`` queries, ``k`` dimensions of a row.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from projections.base import Projector
from projections.columns import GradientNorm, Sketch, Statistic
from projections.data import as_rows
from projections.fingerprint import describe, fingerprint_model
from projections.passes import PassSettings, run_pass
from projections.store import ROWS, GradientStore, StoreWriter
from projections.task import QueryTask, Task


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
    rows = as_rows(data)
    settings = settings or PassSettings()
    description = {
        **describe_rows(task, projector, settings),
        "data": rows.fingerprint,
        "shard_size": settings.shard_size,
        "notes": dict(notes or {}),
    }
    writer = StoreWriter(path, description, num_rows=len(rows), dtype=dtype)
    columns = [Sketch(projector, ROWS), GradientNorm(), *map(Statistic, statistics)]
    run_pass(task, rows, columns, settings=settings, sink=writer, description="gradients")
    return GradientStore.open(path)


def query_rows(
    task: Task,
    queries: Any,
    projector: Projector,
    *,
    settings: PassSettings | None = None,
    store: GradientStore | None = None,
) -> Float[np.ndarray, "q k"]:
    """Return the projected gradients of the measurements of queries.

    Args:
        task: The model, and what its `measurements` are.
        queries: A dataset of queries.
        projector: The map of the store.
        settings: How to read them; with the layers of the store.
        store: The store to be searched, which is checked to fit.

    Raises:
        StoreMismatchError: The store was built with another model or map.
    """
    settings = settings or PassSettings()
    if store is not None:
        store.require(**describe_rows(task, projector, settings))
    table = run_pass(
        QueryTask(task), queries, [Sketch(projector)], settings=settings, description="queries"
    )
    return table.columns["sketch"]


def describe_rows(task: Task, projector: Projector, settings: PassSettings) -> dict[str, Any]:
    """Return what rows must share to be compared: model, map and components."""
    return {
        "model": fingerprint_model(task.model),
        "projector": describe(projector),
        "layers": list(settings.layers) if settings.layers is not None else None,
        "kinds": list(settings.kinds) if settings.kinds is not None else None,
    }
