r"""SOURCE: influence along a training run, by segments in which the curvature stands still.

Letters: ``q`` queries, ``n`` training examples, ``o`` outputs, ``i`` inputs of a linear map.

In segment :math:`l` of :math:`K` steps of size :math:`\eta` with mean curvature
:math:`\bar H_l` and mean gradients :math:`\bar g_l`,

.. math::
    \tau(z) = \sum_l g_q^\top \Big[ \prod_{l' = L}^{l + 1} e^{-\eta K \bar H_{l'}} \Big]
    (I - e^{-\eta K \bar H_l}) \bar H_l^{-1}\, \bar g_l(z).

It does not assume that training has converged, and needs no damping: directions that training
had no time for count as little as they moved. Not handled: Adam, whose steps are scaled.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from influence.checkpoints import at_checkpoint
from influence.covariances import Covariances
from influence.diagonal import Identity
from influence.eigenvalues import CorrectedEigenvalues
from influence.ekfac import FisherName, decompose, linear_settings, pick_labels
from influence.kfac_math import LayerCurvature, precondition
from influence.pairwise import PairwiseScores
from influence.queries import FullQueries
from projections import (
    PassSettings,
    Rows,
    Scores,
    StoreMismatchError,
    Task,
    as_rows,
    check_at_least,
    check_between,
    check_not_empty,
    fingerprint_model,
    run_pass,
)

LayerGradients = Mapping[str, Float[Tensor, "q o i"]]


@dataclass(frozen=True, kw_only=True)
class Segment:
    r"""A stretch of training with one learning rate and nearly one curvature.

    Args:
        checkpoints: State dicts of the model along the stretch.
        learning_rate: Mean step size :math:`\eta`.
        num_steps: Number :math:`K` of optimiser steps.
        momentum: Momentum of SGD, which multiplies the step by ``1 / (1 - momentum)``.
    """

    checkpoints: Sequence[Mapping[str, Tensor]]
    learning_rate: float
    num_steps: int
    momentum: float = 0.0

    def __post_init__(self) -> None:
        """Check the arguments."""
        check_not_empty("checkpoints", len(self.checkpoints))
        check_at_least("num_steps", self.num_steps, 1)
        check_between("momentum", self.momentum, 0, 1 - 1e-9)
        if not self.learning_rate > 0:
            raise ValueError(f"`learning_rate` must be positive. Got {self.learning_rate}.")

    @property
    def time(self) -> float:
        r"""How long the stretch is: :math:`\eta K / (1 - \beta)`."""
        return self.learning_rate * self.num_steps / (1 - self.momentum)


@dataclass(frozen=True, kw_only=True)
class SOURCE:
    """Attribute along a training run, with EK-FAC for the curvature of each segment.

    Args:
        segments: In the order of training; a few of a few checkpoints each.
        fisher: Labels, as in `EKFAC`.
        num_label_samples: Number of draws for each example.
        seed: Seed of the drawn labels.

    Example:
        >>> from projections import Regression
        >>> task = Regression(torch.nn.Linear(1, 1, bias=False))
        >>> _ = torch.nn.init.zeros_(task.model.weight)
        >>> data = [(torch.ones(1), torch.ones(1))]
        >>> run = Segment(
        ...     checkpoints=[task.model.state_dict()], learning_rate=0.1, num_steps=10
        ... )
        >>> fitted = SOURCE(segments=[run], fisher="exact", seed=0).fit(task, data)
        >>> fitted.scores(task, data, data).values.round(4)  # 1 - exp(-1)
        array([[0.6321]])

    References:
        Bae et al., Training data attribution via approximate unrolling (NeurIPS 2024),
        arXiv:2405.12186, Sec. 3.
    """

    segments: Sequence[Segment] = field(repr=False)
    fisher: FisherName = "auto"
    num_label_samples: int = 1
    seed: int

    def __post_init__(self) -> None:
        """Check the arguments."""
        check_not_empty("segments", len(self.segments))
        check_at_least("num_label_samples", self.num_label_samples, 1)

    def fit(self, task: Task, data: Any, *, settings: PassSettings | None = None) -> "FittedSOURCE":
        """Fit the curvature of each segment: two passes over the data for each checkpoint.

        Args:
            task: The model at the end of training, and its loss; it is left as it was.
            data: The training data.
            settings: Layers and batching. Of these, linear maps and convolutions are taken.
        """
        rows, reading = as_rows(data), linear_settings(settings)
        fits = tuple(self._segment(task, rows, segment, reading) for segment in self.segments)
        how = {
            "method": "SOURCE",
            "fisher": self.fisher,
            "seed": self.seed,
            "segments": [
                {"checkpoints": len(segment.checkpoints), "time": segment.time}
                for segment in self.segments
            ],
            "model": fingerprint_model(task.model),
            "data": rows.fingerprint,
        }
        return FittedSOURCE(tuple(self.segments), fits, reading, how)

    def _segment(
        self, task: Task, rows: Rows, segment: Segment, settings: PassSettings
    ) -> dict[str, LayerCurvature]:
        """Fit EK-FAC to all checkpoints of a segment at once."""
        covariances = Covariances(None)
        self._walk(task, rows, segment, settings, covariances, "covariances")
        bases = {name: sides[:2] for name, sides in decompose(covariances).items()}
        eigenvalues = CorrectedEigenvalues(bases)
        self._walk(task, rows, segment, settings, eigenvalues, "eigenvalues")
        return {
            name: LayerCurvature(*bases[name], mean) for name, mean in eigenvalues.means().items()
        }

    def _walk(
        self,
        task: Task,
        rows: Rows,
        segment: Segment,
        settings: PassSettings,
        accumulator: Covariances | CorrectedEigenvalues,
        purpose: str,
    ) -> None:
        """Accumulate over the data at every checkpoint."""
        labels = pick_labels(
            self.fisher,
            task,
            num_samples=self.num_label_samples,
            seed=self.seed,
            purpose=purpose,
        )
        for checkpoint in segment.checkpoints:
            with at_checkpoint(task.model, checkpoint):
                run_pass(
                    task,
                    rows,
                    accumulators=[accumulator],
                    labels=labels,
                    settings=settings,
                    description=purpose,
                )


@dataclass(frozen=True)
class FittedSOURCE:
    """The curvature along a training run.

    Args:
        segments: The segments, in the order of training.
        curvatures: The curvature of each, by linear map.
        settings: Layers and batching of the fit.
        provenance: How it was fitted, as plain JSON values.
    """

    segments: tuple[Segment, ...]
    curvatures: tuple[Mapping[str, LayerCurvature], ...]
    settings: PassSettings
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def scores(
        self, task: Task, queries: Any, data: Any, *, settings: PassSettings | None = None
    ) -> Scores:
        """Return the influence of every training example on every query, ``q n``.

        Args:
            task: The model at the end of training; its `measurements` are the queries.
            queries: A dataset of queries, all of whose gradients are held.
            data: The training examples to score: a pass for each checkpoint.
            settings: Batching; the layers are those of the fit.

        Raises:
            StoreMismatchError: The model is not the one that was fitted.
        """
        if fingerprint_model(task.model) != self.provenance["model"]:
            raise StoreMismatchError(
                "scores must be asked with the model at the end of training that was fitted, "
                f"{self.provenance['model']}. Got another one. Load that, or fit again."
            )
        rows, asked = as_rows(data), as_rows(queries)
        reading = self.settings.with_batching(settings)
        values = np.zeros((len(asked), len(rows)))
        identity = Identity().fit(task, settings=self.settings)
        found = identity.query_gradients(task, asked, settings=reading)
        gradients = {
            name: query.gradients for name, query in found.items() if isinstance(query, FullQueries)
        }
        for segment, layers in reversed(list(zip(self.segments, self.curvatures, strict=True))):
            wanted = through(gradients, layers, segment.time, step_factor)
            for checkpoint in segment.checkpoints:
                with at_checkpoint(task.model, checkpoint):
                    part = self._products(task, rows, wanted, reading)
                values += part / len(segment.checkpoints)
            gradients = through(gradients, layers, segment.time, decay_factor)
        return Scores(rows.ids, {"influence": values}, asked.ids, self.provenance)

    def _products(
        self, task: Task, rows: Rows, directions: LayerGradients, settings: PassSettings
    ) -> Float[np.ndarray, "q n"]:
        """Return inner products of training gradients with directions."""
        queries = {name: FullQueries((values,)) for name, values in directions.items()}
        table = run_pass(
            task, rows, [PairwiseScores(queries)], settings=settings, description="influence"
        )
        return table.columns["influence"].T


def decay_factor(eigenvalues: Float[Tensor, "o i"], time: float) -> Float[Tensor, "o i"]:
    r"""Return :math:`e^{-\eta K \sigma}`: what a segment leaves of what came before."""
    return (-time * eigenvalues).exp()


def step_factor(eigenvalues: Float[Tensor, "o i"], time: float) -> Float[Tensor, "o i"]:
    r"""Return :math:`(1 - e^{-\eta K \sigma}) / \sigma`, which is :math:`\eta K` at zero."""
    exact = -torch.expm1(-time * eigenvalues) / eigenvalues
    return torch.where(time * eigenvalues > torch.finfo(eigenvalues.dtype).eps, exact, time)


def through(
    gradients: LayerGradients,
    layers: Mapping[str, LayerCurvature],
    time: float,
    factor: Any,
) -> dict[str, Float[Tensor, "q o i"]]:
    """Return gradients times a function of the curvature, computed in float64."""
    return {
        name: precondition(
            gradient,
            factor(layers[name].eigenvalues.double(), time).to(gradient),
            left=layers[name].left,
            right=layers[name].right,
        )
        for name, gradient in gradients.items()
    }
