"""Rows of gradients at several states of a model, and scores that add up over them.

Letters: ``q`` queries, ``n`` rows, ``k`` dimensions of a row.

What TracIn, TRAK with ensembles and LESS share on projected gradients: rows at each state,
kept in memory or in a store of its own, a metric on them, and a weight in the sum.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import nn

from influence.base import FittedMetric
from influence.checkpoints import ModelCheckpoint, at_checkpoint
from influence.parameter_space import parameter_space
from projections import (
    GradientNorm,
    MemoryRows,
    PassSettings,
    Projector,
    QueryTask,
    Rows,
    Sketch,
    Statistic,
    StoredRows,
    StoreMismatchError,
    Task,
    fingerprint_model,
    index_gradients,
    run_pass,
)

ROWS = "sketch"


@dataclass(frozen=True)
class Member:
    """Rows of all training examples at one state of the model, and how they are compared.

    Args:
        checkpoint: The state; None for the model as it is.
        weight: What its scores are multiplied by in the sum.
        projector: The map of queries.
        rows: The rows of the training examples.
        metric: The metric, fitted to them.
    """

    checkpoint: ModelCheckpoint | None
    weight: float
    projector: Projector
    rows: StoredRows
    metric: FittedMetric

    def scores(self, task: Task, queries: Rows, settings: PassSettings) -> Float[np.ndarray, "q n"]:
        """Return the scores of all rows, times the weight."""
        with at_state(task.model, self.checkpoint):
            asked = projected_rows(QueryTask(task), queries, self.projector, settings=settings)
        return self.weight * row_scores(self.metric, asked.rows, self.rows)


@contextmanager
def at_state(model: nn.Module, checkpoint: ModelCheckpoint | None) -> Iterator[None]:
    """Load a checkpoint for a while; None leaves the model as it is."""
    if checkpoint is None:
        yield
        return
    with at_checkpoint(model, checkpoint.state):
        yield


def projected_rows(
    task: Task,
    rows: Rows,
    projector: Projector,
    *,
    settings: PassSettings,
    statistics: Sequence[str] = (),
) -> MemoryRows:
    """Return projected gradients in memory, in the precision of the model.

    Args:
        task: The model and its loss.
        rows: The examples.
        projector: The map.
        settings: Layers and batching.
        statistics: Names of statistics of the task to keep beside the rows.
    """
    columns = [Sketch(projector, ROWS), GradientNorm(), *map(Statistic, statistics)]
    table = run_pass(task, rows, columns, settings=settings, description="gradients")
    return MemoryRows.of(table, ROWS)


def training_rows(
    task: Task,
    rows: Rows,
    projector: Projector,
    *,
    settings: PassSettings,
    path: Path | None,
    statistics: Sequence[str] = (),
) -> StoredRows:
    """Return projected gradients of training examples: in a store if there is a path."""
    if path is None:
        return projected_rows(task, rows, projector, settings=settings, statistics=statistics)
    return index_gradients(
        task,
        rows,
        projector,
        path=path,
        settings=settings,
        statistics=("loss", *statistics),
    )


def row_scores(
    metric: FittedMetric, queries: Float[np.ndarray, "q k"], rows: StoredRows
) -> Float[np.ndarray, "q n"]:
    """Return the score of every row for every query under a metric."""
    wanted, scales = metric.map_queries(queries), metric.row_scales()
    parts = [wanted @ np.asarray(block, dtype=wanted.dtype).T for block in rows.blocks()]
    values = np.concatenate(parts, axis=1)
    return values if scales is None else values * scales


def folder_of(path: str | Path | None, number: int) -> Path | None:
    """Return where the rows of one state are kept."""
    return None if path is None else Path(path) / f"checkpoint-{number}"


def whole_projector(task: Task, settings: PassSettings) -> Projector:
    """Return the projector that keeps gradients as they are."""
    return parameter_space(task, settings).coordinates


def reseeded(projector: Projector, number: int) -> Projector:
    """Return a projector with its seed raised by a number, so that states err independently.

    One without a seed of its own, such as coordinates, is returned as it is.
    """
    names = {one.name for one in fields(projector)} if is_dataclass(projector) else set()
    changeable: Any = projector
    if "projector" in names:
        return replace(changeable, projector=reseeded(changeable.projector, number))
    if "seed" in names:
        return replace(changeable, seed=changeable.seed + number)
    return projector


def check_fitted_to(task: Task, rows: Rows, provenance: Mapping[str, Any]) -> None:
    """Refuse another model or other data than those whose rows are kept.

    Raises:
        StoreMismatchError: Says which of them differs.
    """
    check_fitted_model(task, provenance)
    check_fitted_data(rows, provenance)


def check_fitted_data(rows: Rows, provenance: Mapping[str, Any]) -> None:
    """Refuse other data than that of the fit.

    Raises:
        StoreMismatchError: The fingerprints differ.
    """
    if rows.fingerprint != provenance["data"]:
        raise StoreMismatchError(
            "scores must be asked for the data of the fit, of which something is kept. That was "
            f"{provenance['data']}; this is {rows.fingerprint}. Fit again."
        )


def check_fitted_model(task: Task, provenance: Mapping[str, Any]) -> None:
    """Refuse another model than that of the fit, or one that has changed.

    Raises:
        StoreMismatchError: The fingerprints differ.
    """
    found = fingerprint_model(task.model)
    if found != provenance["model"]:
        raise StoreMismatchError(
            f"scores must be asked with the model of the fit, {provenance['model']}. This one is "
            f"{found}. Load that model, or fit again."
        )
