r"""TracIn over checkpoints, on gradients that are neither projected nor kept.

Letters: ``q`` queries, ``n`` training examples, ``d`` parameters.

The gradients of the queries at a checkpoint are held, and those of the training examples meet
them a batch at a time. For rows that are projected and kept, so that many queries share them,
put `RowInfluence` around `GradientDot`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from influence.checkpoints import (
    ModelCheckpoint,
    at_checkpoint,
    check_checkpoints,
    describe_checkpoints,
)
from influence.members import check_fitted_model
from influence.parameter_space import parameter_space
from influence.raw_gradients import VECTOR_BYTES, gradient_blocks, gradient_products
from projections import (
    GradientNorm,
    PassSettings,
    QueryTask,
    Scores,
    Task,
    as_rows,
    check_not_empty,
    fingerprint_model,
    run_pass,
)


@dataclass(frozen=True, kw_only=True)
class TracIn:
    r"""Attribute by :math:`\sum_k \eta_k\, g_k(q) \cdot g_k(z)` with gradients at checkpoints.

    What a run of plain stochastic gradient descent did to the loss of the query each time it met
    the example, to first order, as checkpoints show it.

    Args:
        checkpoints: States along training, with their learning rates.

    Example:
        >>> import torch
        >>> from influence import ModelCheckpoint, copy_state
        >>> from projections import Regression
        >>> task = Regression(torch.nn.Linear(1, 1, bias=False))
        >>> _ = torch.nn.init.zeros_(task.model.weight)
        >>> data = [(torch.ones(1), torch.ones(1))]
        >>> first = ModelCheckpoint(state=copy_state(task.model), learning_rate=0.1)
        >>> fitted = TracIn(checkpoints=[first, first]).fit(task, data)
        >>> fitted.scores(task, data, data).values
        array([[0.2]], dtype=float32)

    References:
        Pruthi et al., Estimating training data influence by tracing gradient descent (NeurIPS
        2020), arXiv:2002.08484, Sec. 3 (TracInCP).
    """

    checkpoints: Sequence[ModelCheckpoint] = field(repr=False)

    def __post_init__(self) -> None:
        """Check the argument."""
        check_not_empty("checkpoints", len(self.checkpoints))

    def fit(
        self, task: Task, data: Any = None, *, settings: PassSettings | None = None
    ) -> "FittedTracIn":
        """Compare the checkpoints with the model; nothing is computed.

        Args:
            task: The model and its loss.
            data: Not looked at.
            settings: Layers and batching.

        Raises:
            StoreMismatchError: A checkpoint is of another model.
        """
        check_checkpoints(task.model, self.checkpoints)
        how = {
            "method": "TracIn",
            "checkpoints": describe_checkpoints(self.checkpoints),
            "model": fingerprint_model(task.model),
        }
        return FittedTracIn(tuple(self.checkpoints), settings or PassSettings(), how)


@dataclass(frozen=True)
class FittedTracIn:
    """Checkpoints of one model.

    Args:
        checkpoints: The checkpoints.
        settings: Layers and batching.
        provenance: What they are, as plain JSON values.
    """

    checkpoints: tuple[ModelCheckpoint, ...]
    settings: PassSettings
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def scores(
        self,
        task: Task,
        queries: Any,
        data: Any,
        *,
        settings: PassSettings | None = None,
        memory: int = VECTOR_BYTES,
    ) -> Scores:
        """Return the influence of every training example on every query, ``q n``.

        Args:
            task: The model; its `measurements` are the queries.
            queries: A dataset of queries.
            data: The training examples to score: a pass for each checkpoint.
            settings: Batching; the layers are those of the fit.
            memory: Bytes of query gradients held at a time. More queries than fit take
                another pass for each checkpoint.

        Raises:
            StoreMismatchError: The model is not that of the fit.
        """
        check_fitted_model(task, self.provenance)
        rows, asked = as_rows(data), as_rows(queries)
        reading = self.settings.with_batching(settings)
        space = parameter_space(task, reading)
        total = np.zeros((len(asked), len(rows)))
        for checkpoint in self.checkpoints:
            start = 0
            with at_checkpoint(task.model, checkpoint.state):
                blocks = gradient_blocks(
                    QueryTask(task), asked, space, settings=reading, memory=memory
                )
                for vectors in blocks:
                    part = gradient_products(task, rows, space, vectors, settings=reading)
                    total[start : start + len(part)] += checkpoint.learning_rate * part
                    start += len(part)
        values = total.astype(part.dtype)
        return Scores(rows.ids, {"influence": values}, asked.ids, self.provenance)

    def self_influence(
        self, task: Task, data: Any, *, settings: PassSettings | None = None
    ) -> Scores:
        r"""Return :math:`\sum_k \eta_k |\nabla \ell(\theta_k, z)|^2` of each example, ``n``.

        Args:
            task: The model and its loss.
            data: The examples: a pass for each checkpoint.
            settings: Batching; the layers are those of the fit.

        Raises:
            StoreMismatchError: The model is not that of the fit.
        """
        check_fitted_model(task, self.provenance)
        rows, reading = as_rows(data), self.settings.with_batching(settings)
        total = np.zeros(len(rows))
        for checkpoint in self.checkpoints:
            with at_checkpoint(task.model, checkpoint.state):
                table = run_pass(
                    task, rows, [GradientNorm()], settings=reading, description="self-influence"
                )
            total += checkpoint.learning_rate * table.columns["grad_norm"].astype(np.float64) ** 2
        return Scores(rows.ids, {"self_influence": total}, provenance=self.provenance)
