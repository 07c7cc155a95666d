r"""TRAK as published: log-odds instead of losses, and several models.

Letters: ``q`` queries, ``n`` training examples, ``k`` projected dimensions, ``m`` models.

For rows :math:`\phi` of projected gradients of the log-odds, and :math:`p` the probability of
the label,

.. math::
    \tau(q, i) = \Big[ \frac1M \sum_m \phi_m(q)^\top (\Phi_m^\top \Phi_m / n + \lambda I)^{-1}
    \phi_m(i) \Big] \Big[ \frac1M \sum_m (1 - p_m(i)) \Big].

Models, trained on random halves or from other seeds, have projections of their own, and both
means are taken apart. Differs from the reference implementation: float64 for the kernel, a
damping at its noise floor, and no division of each model's kernel by the mean size of its
entries, which there keeps half precision from overflowing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from influence.checkpoints import ModelCheckpoint
from influence.row_influence import FittedRowInfluence, RowInfluence
from influence.trak import TRAK
from projections import LogOdds, PassSettings, Projector, Scores, Task, as_rows, check_not_empty


@dataclass(frozen=True, kw_only=True)
class TRAKEnsemble:
    """Attribute by the kernels of several models of one architecture.

    Args:
        checkpoints: The models; learning rates are not looked at.
        projector: The map of gradients, with its seed raised by one from model to model;
            gradients as they are if left out, for small models.
        damping: As in `TRAK`.
        path: A folder that keeps the rows of each model in a store.

    Example:
        >>> import torch
        >>> from influence import ModelCheckpoint, copy_state
        >>> from projections import Classification
        >>> task = Classification(torch.nn.Linear(1, 2, bias=False))
        >>> _ = torch.nn.init.zeros_(task.model.weight)
        >>> data = [(torch.ones(1), 0), (torch.ones(1), 1)]
        >>> models = [ModelCheckpoint(state=copy_state(task.model))]
        >>> fitted = TRAKEnsemble(checkpoints=models, damping=1.0).fit(task, data)
        >>> fitted.scores(task, data[:1], data).values.round(3)
        array([[ 0.333, -0.333]], dtype=float32)

    References:
        Park et al., TRAK: attributing model behavior at scale (ICML 2023), arXiv:2303.14186,
        Sec. 3 and Alg. 1.
    """

    checkpoints: Sequence[ModelCheckpoint] = field(repr=False)
    projector: Projector | None = None
    damping: float | None = None
    path: str | Path | None = None

    def __post_init__(self) -> None:
        """Check the argument."""
        check_not_empty("checkpoints", len(self.checkpoints))

    def fit(
        self, task: Task, data: Any, *, settings: PassSettings | None = None
    ) -> "FittedTRAKEnsemble":
        """Compute the rows and the kernel of each model: a pass each.

        Args:
            task: The model and a loss with labels; it is left as it was.
            data: The training data, all of it for every model.
            settings: Layers and batching.

        Raises:
            ConvergenceError: The damped kernel of a model is singular.
            StoreMismatchError: A checkpoint is of another model, or the folder holds others.
            TypeError: The task has no labels.
        """
        share = 1 / len(self.checkpoints)
        rows = RowInfluence(
            metric=TRAK(damping=self.damping),
            projector=self.projector,
            checkpoints=[replace(one, learning_rate=share) for one in self.checkpoints],
            path=self.path,
        )
        odds = LogOdds(task)
        fitted = rows.fit_with(odds, data, settings=settings, statistics=("doubt",))
        doubts = np.mean([member.rows.column("doubt") for member in fitted.members], axis=0)
        how = {**fitted.provenance, "method": "TRAKEnsemble"}
        return FittedTRAKEnsemble(replace(fitted, provenance=how), doubts)


@dataclass(frozen=True)
class FittedTRAKEnsemble:
    """The kernels of several models.

    Args:
        kernels: Rows and kernel of each.
        doubts: One less the probability of each example's label, mean over models.
    """

    kernels: FittedRowInfluence
    doubts: Float[np.ndarray, " n"]

    @property
    def provenance(self) -> Mapping[str, Any]:
        """How it was fitted, as plain JSON values."""
        return self.kernels.provenance

    def scores(
        self, task: Task, queries: Any, data: Any, *, settings: PassSettings | None = None
    ) -> Scores:
        """Return the influence of every training example on every query, ``q n``.

        Args:
            task: The model. Queries are asked about their log-odds, or about the task's
                `measurements` where it has some of its own.
            queries: A dataset of queries.
            data: The data of the fit.
            settings: Batching; the layers are those of the fit.

        Raises:
            StoreMismatchError: The model or the data is not that of the fit.
        """
        found = self.kernels.scores(LogOdds(task), queries, data, settings=settings)
        return replace(found, columns={"influence": found.values * self.doubts})

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
        found = self.kernels.self_influence(task, as_rows(data))
        return replace(found, columns={"self_influence": found.values * self.doubts})
