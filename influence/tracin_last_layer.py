r"""TracIn of the last layer, by the factors of its gradients.

Letters: ``q`` queries, ``n`` training examples, ``t`` and ``s`` positions, ``i`` inputs of the
layer (with a trailing one for its bias), ``o`` outputs.

The gradient of a linear layer is :math:`\sum_t \delta_t a_t^\top`, so the product of two is
:math:`\sum_{t, s} (a_t \cdot a'_s)(\delta_t \cdot \delta'_s)`: with one position two short inner
products, and nothing of the size of the layer is formed. For a language model with many tokens
and queries, `TracIn` with ``layers`` of its settings is the quicker way to the same numbers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad

from influence.checkpoints import (
    ModelCheckpoint,
    at_checkpoint,
    check_checkpoints,
    describe_checkpoints,
)
from influence.hidden_similarity import last_linear
from influence.linear_layers import linear_uses
from influence.members import check_fitted_model
from projections import (
    Batch,
    Gradient,
    GradientNorm,
    PassSettings,
    QueryTask,
    Scores,
    Task,
    as_rows,
    check_not_empty,
    find_components,
    fingerprint_model,
    run_pass,
)

PAIR_ENTRIES = 1 << 24  # products of positions held at a time


@dataclass(frozen=True, kw_only=True)
class LastLayerTracIn:
    r"""Attribute by :math:`\sum_k \eta_k (a \cdot a')(\delta \cdot \delta')` of one layer.

    Args:
        checkpoints: States along training, with their learning rates.
        layer: Name of the layer; the last linear one, in the order of the model's modules, if
            left out.

    Example:
        >>> from influence import ModelCheckpoint, copy_state
        >>> from projections import Regression
        >>> task = Regression(torch.nn.Linear(1, 1, bias=False))
        >>> _ = torch.nn.init.zeros_(task.model.weight)
        >>> data = [(torch.ones(1), torch.ones(1))]
        >>> here = ModelCheckpoint(state=copy_state(task.model), learning_rate=0.1)
        >>> fitted = LastLayerTracIn(checkpoints=[here], layer="").fit(task, data)
        >>> fitted.scores(task, data, data).values
        array([[0.1]], dtype=float32)

    References:
        Pruthi et al., Estimating training data influence by tracing gradient descent (NeurIPS
        2020), arXiv:2002.08484, Sec. 4 (layers) and its appendix on fast products of the last
        fully connected layer. Yeh et al., First is better than last for language data influence
        (NeurIPS 2022), arXiv:2202.11844, on when the last layer is a poor choice.
    """

    checkpoints: Sequence[ModelCheckpoint] = field(repr=False)
    layer: str | None = None

    def __post_init__(self) -> None:
        """Check the argument."""
        check_not_empty("checkpoints", len(self.checkpoints))

    def fit(
        self, task: Task, data: Any = None, *, settings: PassSettings | None = None
    ) -> "FittedLastLayerTracIn":
        """Find the layer and compare the checkpoints with the model; nothing is computed.

        Args:
            task: The model and its loss.
            data: Not looked at.
            settings: Batching; its layers are not looked at.

        Raises:
            StoreMismatchError: A checkpoint is of another model.
            ValueError: The model has no linear layer of this name with a weight of its own; one
                that is tied to an embedding has not.
        """
        check_checkpoints(task.model, self.checkpoints)
        layer = last_linear(task.model) if self.layer is None else self.layer
        patterns = (layer or "weight", f"{layer}.*" if layer else "bias")
        reading = replace(settings or PassSettings(), layers=patterns, kinds=("linear",))
        find_components(task.model, reading.layers, kinds=reading.kinds)  # refuses none
        how = {
            "method": "LastLayerTracIn",
            "layer": layer,
            "checkpoints": describe_checkpoints(self.checkpoints),
            "model": fingerprint_model(task.model),
        }
        return FittedLastLayerTracIn(tuple(self.checkpoints), reading, how)


@dataclass(frozen=True)
class FittedLastLayerTracIn:
    """Checkpoints of one model, of which one layer is looked at.

    Args:
        checkpoints: The checkpoints.
        settings: The layer, and batching.
        provenance: What they are, as plain JSON values.
    """

    checkpoints: tuple[ModelCheckpoint, ...]
    settings: PassSettings
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def scores(
        self, task: Task, queries: Any, data: Any, *, settings: PassSettings | None = None
    ) -> Scores:
        """Return the influence of every training example on every query, ``q n``.

        Args:
            task: The model; its `measurements` are the queries.
            queries: A dataset of queries, the factors of all of which are held.
            data: The training examples to score: a pass for each checkpoint.
            settings: Batching.

        Raises:
            StoreMismatchError: The model is not that of the fit.
        """
        check_fitted_model(task, self.provenance)
        rows, asked = as_rows(data), as_rows(queries)
        reading = self.settings.with_batching(settings)
        total = 0.0
        for checkpoint in self.checkpoints:
            with at_checkpoint(task.model, checkpoint.state):
                found = Factors()
                run_pass(
                    QueryTask(task),
                    asked.numbered(),
                    accumulators=[found],
                    settings=reading,
                    description="queries",
                )
                column = FactorProducts(*found.stacked())
                table = run_pass(task, rows, [column], settings=reading, description="influence")
            total = total + checkpoint.learning_rate * table.columns["influence"].T
        values = np.asarray(total)
        return Scores(rows.ids, {"influence": values}, asked.ids, self.provenance)

    def self_influence(
        self, task: Task, data: Any, *, settings: PassSettings | None = None
    ) -> Scores:
        """Return the score of each example with itself, ``n``.

        Args:
            task: The model and its loss.
            data: The examples: a pass for each checkpoint.
            settings: Batching.

        Raises:
            StoreMismatchError: The model is not that of the fit.
        """
        check_fitted_model(task, self.provenance)
        rows, reading = as_rows(data), self.settings.with_batching(settings)
        total = np.zeros(len(rows))
        for checkpoint in self.checkpoints:
            with at_checkpoint(task.model, checkpoint.state):
                table = run_pass(task, rows, [GradientNorm()], settings=reading)
            total += checkpoint.learning_rate * table.columns["grad_norm"].astype(np.float64) ** 2
        return Scores(rows.ids, {"self_influence": total}, provenance=self.provenance)


class Factors:
    """An accumulator of the factors of a few examples; their ids must be their positions."""

    name = "factors"

    def __init__(self) -> None:
        """Start with nothing."""
        self.rows: dict[int, tuple[Tensor, Tensor]] = {}

    def begin(self, batch: Batch) -> None:
        """Remember the rows of the batch."""
        self._ids = batch.ids.tolist()

    def observe(self, gradient: Gradient) -> None:
        """Keep the factors of the layer."""
        for use in linear_uses(gradient):
            pairs = zip(use.inputs.clone(), use.output_grads.clone(), strict=True)
            self.rows.update(zip(self._ids, pairs, strict=True))

    def end(self, batch: Batch) -> None:
        """Do nothing."""

    def stacked(self) -> tuple[Float[Tensor, "q s i"], Float[Tensor, "q s o"]]:
        """Return inputs and output gradients, positions filled up with zeros."""
        longest = max(len(inputs) for inputs, _ in self.rows.values())
        order = [self.rows[place] for place in range(len(self.rows))]
        sides = zip(*order, strict=True)
        inputs, grads = (
            torch.stack([pad(one, (0, 0, 0, longest - len(one))) for one in side]) for side in sides
        )
        return inputs, grads

    def state(self) -> dict[str, Tensor]:
        """Return what was kept."""
        return {
            f"{place}|{side}": value
            for place, pair in self.rows.items()
            for side, value in enumerate(pair)
        }

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a state."""
        self.rows = {}
        self.merge(state)

    def merge(self, state: Mapping[str, Tensor]) -> None:
        """Add rows that were read elsewhere."""
        places = {int(key.partition("|")[0]) for key in state}
        self.rows |= {place: (state[f"{place}|0"], state[f"{place}|1"]) for place in places}


@dataclass
class FactorProducts:
    """A column with the products of each row's gradient with those of queries, ``n q``.

    Args:
        inputs: Inputs of the layer for the queries.
        output_grads: Gradients of its outputs.
    """

    inputs: Float[Tensor, "q s i"]
    output_grads: Float[Tensor, "q s o"]
    name: str = "influence"
    needs_gradients: bool = field(default=True, init=False)
    _out: Tensor = field(default_factory=lambda: torch.empty(0), init=False)

    def begin(self, batch: Batch) -> None:
        """Start from zero."""
        self._out = torch.zeros(
            len(batch), len(self.inputs), dtype=batch.dtype, device=batch.device
        )

    def observe(self, gradient: Gradient) -> None:
        """Add the products of the layer, a few queries at a time."""
        for use in linear_uses(gradient):
            a, g = use.inputs.to(self._out), use.output_grads.to(self._out)
            pairs = a.shape[0] * a.shape[1] * self.inputs.shape[1]
            height = max(1, PAIR_ENTRIES // pairs)
            sides = zip(
                self.inputs.split(height),
                self.output_grads.split(height),
                self._out.split(height, 1),
                strict=True,
            )
            for inputs, grads, out in sides:
                left = torch.einsum("nti,qsi->nqts", a, inputs.to(a))
                out += (left * torch.einsum("nto,qso->nqts", g, grads.to(g))).sum((2, 3))

    def values(self, batch: Batch) -> Float[Tensor, "n q"]:
        """Return the products."""
        return self._out
