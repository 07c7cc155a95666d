"""Influence by any metric on projected gradients, at one state of a model or at several.

Letters: ``q`` queries, ``n`` training examples.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from influence.base import Metric
from influence.checkpoints import (
    ModelCheckpoint,
    check_checkpoints,
    describe_checkpoints,
)
from influence.members import (
    Member,
    at_state,
    check_fitted_to,
    folder_of,
    reseeded,
    training_rows,
    whole_projector,
)
from projections import (
    PassSettings,
    Projector,
    Rows,
    Scores,
    Task,
    as_rows,
    describe,
    fingerprint_model,
)


@dataclass(frozen=True, kw_only=True)
class RowInfluence:
    r"""Attribute by :math:`\sum_k \eta_k\, s_k(P g_k(q), P g_k(z))` over states of a model.

    Args:
        metric: What compares rows, such as `GradientDot`, `TRAK`, `TrackStar` or `MFACRows`.
        projector: The map of gradients, with its seed raised by one from state to state;
            gradients as they are if left out, for small models and adapters.
        checkpoints: The states, whose learning rates are the weights; the model as it is if
            left out.
        path: A folder that keeps the rows of each state in a store, which goes on where it was
            stopped. Without it they are in memory, in the precision of the model.

    Example:
        >>> import torch
        >>> from influence import GradientDot
        >>> from projections import Regression
        >>> task = Regression(torch.nn.Linear(1, 1, bias=False))
        >>> _ = torch.nn.init.zeros_(task.model.weight)
        >>> data = [(torch.ones(1), torch.ones(1)), (torch.ones(1), -torch.ones(1))]
        >>> fitted = RowInfluence(metric=GradientDot()).fit(task, data)
        >>> fitted.scores(task, data[:1], data).values
        array([[ 1., -1.]], dtype=float32)

    References:
        Pruthi et al., Estimating training data influence by tracing gradient descent (NeurIPS
        2020), arXiv:2002.08484, Sec. 3 and 4, for sums over checkpoints of projected gradients.
    """

    metric: Metric
    projector: Projector | None = None
    checkpoints: Sequence[ModelCheckpoint] = field(default=(), repr=False)
    path: str | Path | None = None

    def fit(
        self, task: Task, data: Any, *, settings: PassSettings | None = None
    ) -> "FittedRowInfluence":
        """Compute the rows of the training examples at each state: a pass each.

        Args:
            task: The model and its loss; it is left as it was.
            data: The training data.
            settings: Layers and batching.

        Raises:
            StoreMismatchError: A checkpoint is of another model, or the folder holds others.
        """
        return self.fit_with(task, data, settings=settings)

    def fit_with(
        self,
        task: Task,
        data: Any,
        *,
        settings: PassSettings | None = None,
        statistics: Sequence[str] = (),
    ) -> "FittedRowInfluence":
        """Do the same, and keep statistics of the task beside the rows.

        Args:
            task: The model and its loss; it is left as it was.
            data: The training data.
            settings: Layers and batching.
            statistics: Names of the statistics.
        """
        rows, reading = as_rows(data), settings or PassSettings()
        if self.checkpoints:
            check_checkpoints(task.model, self.checkpoints)
        projector = self.projector or whole_projector(task, reading)
        members = []
        for number, checkpoint in enumerate(self.checkpoints or [None]):
            own = reseeded(projector, number)
            with at_state(task.model, checkpoint):
                kept = training_rows(
                    task,
                    rows,
                    own,
                    settings=reading,
                    path=folder_of(self.path, number),
                    statistics=statistics,
                )
            weight = 1.0 if checkpoint is None else checkpoint.learning_rate
            members.append(Member(checkpoint, weight, own, kept, self.metric.fit(kept)))
        how = {
            "method": "RowInfluence",
            "metric": describe(self.metric),
            "projector": describe(projector),
            "checkpoints": describe_checkpoints(self.checkpoints),
            "model": fingerprint_model(task.model),
            "data": rows.fingerprint,
        }
        return FittedRowInfluence(tuple(members), reading, how)


@dataclass(frozen=True)
class FittedRowInfluence:
    """Rows and metrics at each state.

    Args:
        members: One a state.
        settings: Layers and batching of the fit.
        provenance: How it was fitted, as plain JSON values.
    """

    members: tuple[Member, ...]
    settings: PassSettings
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def scores(
        self, task: Task, queries: Any, data: Any, *, settings: PassSettings | None = None
    ) -> Scores:
        """Return the influence of every training example on every query, ``q n``.

        Args:
            task: The model; its `measurements` are the queries.
            queries: A dataset of queries.
            data: The data of the fit.
            settings: Batching; the layers are those of the fit.

        Raises:
            StoreMismatchError: The model or the data is not that of the fit.
        """
        rows, asked = as_rows(data), as_rows(queries)
        check_fitted_to(task, rows, self.provenance)
        reading = self.settings.with_batching(settings)
        parts = [member.scores(task, asked, reading) for member in self.members]
        values = np.sum(parts, axis=0)
        return Scores(rows.ids, {"influence": values}, asked.ids, self.provenance)

    def self_influence(
        self, task: Task, data: Any, *, settings: PassSettings | None = None
    ) -> Scores:
        """Return the score of each example with itself, ``n``, from the rows that are kept.

        Args:
            task: The model.
            data: The data of the fit.
            settings: Not used: nothing is computed anew.

        Raises:
            StoreMismatchError: The model or the data is not that of the fit.
        """
        rows: Rows = as_rows(data)
        check_fitted_to(task, rows, self.provenance)
        parts = [member.weight * member.metric.self_scores() for member in self.members]
        values = np.sum(parts, axis=0)
        return Scores(rows.ids, {"self_influence": values}, provenance=self.provenance)
