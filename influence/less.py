r"""LESS: which training examples move Adam the way that a target asks for.

Letters: ``q`` queries, ``n`` training examples, ``k`` dimensions of a row.

With :math:`\Gamma` the direction that Adam takes for a training example and :math:`g` the plain
gradient of a query, both projected,

.. math:: \sum_k \eta_k \cos(\Gamma_k(z), g_k(q)),

over checkpoints weighed by their learning rates; for a target of several subtasks, the largest
of the subtasks' means. Meant for adapters (LoRA) after a short warm-up: the components are those
that are trainable. Differs from the authors' code: weights are divided by their sum, so that a
score is a mean of cosines, and each checkpoint has a projection of its own.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from influence.checkpoints import (
    ModelCheckpoint,
    at_checkpoint,
    check_checkpoints,
    describe_checkpoints,
)
from influence.gradient_dot import inverse_norms, unit_queries
from influence.members import (
    Member,
    folder_of,
    reseeded,
    training_rows,
    whole_projector,
)
from influence.row_influence import FittedRowInfluence
from projections import (
    AdamDirected,
    PassSettings,
    Projector,
    Scores,
    StoredRows,
    Task,
    as_rows,
    check_not_empty,
    describe,
    fingerprint_model,
    less_direction,
)


@dataclass(frozen=True, kw_only=True)
class LESS:
    """Attribute by cosines of Adam's directions with gradients of queries, over checkpoints.

    Args:
        checkpoints: States along the warm-up, each with its moments of Adam and the mean
            learning rate around it.
        projector: The map of gradients, with its seed raised by one from checkpoint to
            checkpoint; gradients as they are if left out. The authors take 8,192 random signs.
        path: A folder that keeps the rows of each checkpoint in a store.

    Example:
        >>> import torch
        >>> from influence import ModelCheckpoint, copy_state
        >>> from projections import Regression, read_adam_state
        >>> task = Regression(torch.nn.Linear(2, 1, bias=False))
        >>> adam = torch.optim.Adam(task.model.named_parameters())
        >>> data = [(torch.eye(2)[row], torch.ones(1)) for row in (0, 1)]
        >>> task.losses(task.collate(data)).sum().backward()
        >>> adam.step()
        >>> here = ModelCheckpoint(
        ...     state=copy_state(task.model), adam=read_adam_state(adam.state_dict(), task.model)
        ... )
        >>> fitted = LESS(checkpoints=[here]).fit(task, data)
        >>> fitted.scores(task, data, data).values.shape
        (2, 2)

    References:
        Xia et al., LESS: Selecting influential data for targeted instruction tuning (ICML
        2024), arXiv:2402.04333, Sec. 3 and 4.
    """

    checkpoints: Sequence[ModelCheckpoint] = field(repr=False)
    projector: Projector | None = None
    path: str | Path | None = None

    def __post_init__(self) -> None:
        """Check the arguments."""
        check_not_empty("checkpoints", len(self.checkpoints))
        if not sum(one.learning_rate for one in self.checkpoints) > 0:
            raise ValueError("`checkpoints` must have a learning rate above zero. All are zero.")
        without = [number for number, one in enumerate(self.checkpoints) if one.adam is None]
        if without:
            raise ValueError(
                f"every checkpoint must have the moments of Adam. Those at {without[:5]} have "
                "none. Read them with `read_adam_state`, or use TracIn, which needs none."
            )

    def fit(self, task: Task, data: Any, *, settings: PassSettings | None = None) -> "FittedLESS":
        """Compute the rows of the training examples at each checkpoint: a pass each.

        Args:
            task: The model and its loss; it is left as it was.
            data: The training data.
            settings: Layers and batching.

        Raises:
            StoreMismatchError: A checkpoint is of another model, or its moments lack a parameter.
        """
        rows, reading = as_rows(data), settings or PassSettings()
        check_checkpoints(task.model, self.checkpoints)
        projector = self.projector or whole_projector(task, reading)
        total = sum(one.learning_rate for one in self.checkpoints)
        members = []
        for number, checkpoint in enumerate(self.checkpoints):
            own = reseeded(projector, number)
            assert checkpoint.adam is not None
            directed = AdamDirected(projector=own, state=checkpoint.adam, direction=less_direction)
            folder = folder_of(self.path, number)
            with at_checkpoint(task.model, checkpoint.state):
                kept = training_rows(task, rows, directed, settings=reading, path=folder)
            weight = checkpoint.learning_rate / total
            members.append(Member(checkpoint, weight, own, kept, RowCosine().fit(kept)))
        how = {
            "method": "LESS",
            "projector": describe(projector),
            "checkpoints": describe_checkpoints(self.checkpoints),
            "model": fingerprint_model(task.model),
            "data": rows.fingerprint,
        }
        return FittedLESS(FittedRowInfluence(tuple(members), reading, how))


@dataclass(frozen=True)
class FittedLESS:
    """Rows of training examples at each checkpoint.

    Args:
        rows: The rows, and how they are compared.
    """

    rows: FittedRowInfluence

    @property
    def provenance(self) -> Mapping[str, Any]:
        """How it was fitted, as plain JSON values."""
        return self.rows.provenance

    def scores(
        self, task: Task, queries: Any, data: Any, *, settings: PassSettings | None = None
    ) -> Scores:
        """Return the score of every training example for every query, ``q n``, in [-1, 1].

        Args:
            task: The model; its `measurements` are the queries.
            queries: A dataset of queries.
            data: The data of the fit.
            settings: Batching; the layers are those of the fit.

        Raises:
            StoreMismatchError: The model or the data is not that of the fit.
            ValueError: A query has no gradient, and so no direction.
        """
        return self.rows.scores(task, queries, data, settings=settings)

    def subtask_scores(
        self,
        task: Task,
        subtasks: Mapping[str, Any],
        data: Any,
        *,
        settings: PassSettings | None = None,
    ) -> Scores:
        """Return the mean over the queries of each subtask, ``n``, and the largest as ``less``.

        The column ``less`` is what LESS selects by, as in ``prune(scores["less"], keep=0.05)``.

        Args:
            task: The model; its `measurements` are the queries.
            subtasks: A dataset of queries by name.
            data: The data of the fit.
            settings: Batching; the layers are those of the fit.

        Raises:
            StoreMismatchError: The model or the data is not that of the fit.
            ValueError: There is no subtask, or one is named ``less``.
        """
        check_not_empty("subtasks", len(subtasks))
        if "less" in subtasks:
            raise ValueError("`subtasks` must not have the name 'less', which the largest has.")
        means = {
            name: self.scores(task, queries, data, settings=settings).values.mean(0)
            for name, queries in subtasks.items()
        }
        columns = {**means, "less": np.max([*means.values()], axis=0)}
        return Scores(as_rows(data).ids, columns, provenance=self.provenance)


@dataclass(frozen=True)
class RowCosine:
    """The cosine of two rows as they are, with their own norms and not those of the gradients."""

    def fit(self, store: StoredRows) -> "FittedRowCosine":
        """Compute the norms of the rows."""
        parts = [
            np.linalg.norm(np.asarray(block, dtype=np.float64), axis=1) for block in store.blocks()
        ]
        return FittedRowCosine(np.concatenate(parts))


@dataclass(frozen=True)
class FittedRowCosine:
    """The cosine on one store.

    Args:
        norms: Norm of each row.
    """

    norms: Float[np.ndarray, " n"]

    def map_queries(self, queries: Float[np.ndarray, "q k"]) -> Float[np.ndarray, "q k"]:
        """Return the queries divided by their norms.

        Raises:
            ValueError: A query is zero and has no direction.
        """
        return unit_queries(queries)

    def row_scales(self) -> Float[np.ndarray, " n"]:
        """Return one over the norm; a row of zeros keeps the score 0."""
        return inverse_norms(self.norms)

    def self_scores(self) -> Float[np.ndarray, " n"]:
        """Return ones, and zero for rows of zeros."""
        return (self.norms > 0).astype(self.norms.dtype)
