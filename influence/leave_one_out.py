"""What ridge and logistic regression share when they are fitted without each example in turn.

Letters: ``n`` examples, ``q`` queries, ``i`` inputs (with a trailing one for a bias), ``o``
outputs.

The objective is the mean loss plus half the squared length of the weights times ``l2``; to
leave an example out is to take its loss away, still divided by ``n``.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from influence.parameter_space import ParameterSpace, parameter_space
from projections import (
    PassSettings,
    QueryTask,
    Rows,
    Scores,
    Statistic,
    StoreMismatchError,
    Task,
    as_rows,
    run_pass,
)


@dataclass(frozen=True)
class LinearProblem:
    """A linear model and all of its training data at once, in float64.

    Args:
        space: The parameters of the model.
        rows: The data.
        inputs: What goes in, with a trailing one if there is a bias.
        targets: What should come out.
    """

    space: ParameterSpace
    rows: Rows
    inputs: Float[Tensor, "n i"]
    targets: Tensor


@dataclass(frozen=True)
class FittedLeaveOneOut:
    """The weights of a linear model with all examples, and without each.

    Args:
        problem: The model and the data.
        weights: With all examples.
        without: Without each of them.
        provenance: How they were found, as plain JSON values.
    """

    problem: LinearProblem
    weights: Float[Tensor, "o i"]
    without: Float[Tensor, "n o i"]
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @property
    def vector(self) -> Float[Tensor, " d"]:
        """The weights with all examples, for ``problem.space.moved_to``."""
        return self._flat(self.weights[None])[0]

    def scores(
        self, task: Task, queries: Any, data: Any, *, settings: PassSettings | None = None
    ) -> Scores:
        """Return how much each query's measurement rises without each example, times ``n``.

        Args:
            task: The linear model; its own weights are not looked at, and stay.
            queries: A dataset of queries.
            data: The data of the fit.
            settings: Batching.

        Raises:
            StoreMismatchError: The model or the data is another.
        """
        rows, asked = as_rows(data), as_rows(queries)
        if rows.fingerprint != self.problem.rows.fingerprint:
            raise StoreMismatchError(
                "scores must be asked for the data of the fit, each row of which was left out "
                f"once. That was {self.problem.rows.fingerprint}; this is {rows.fingerprint}. Fit "
                "again."
            )
        if task.model is not self.problem.space.model:
            raise StoreMismatchError("scores must be asked with the model of the fit. Fit again.")
        whole = self._measure(task, asked, self.vector, settings)
        parts = [
            self._measure(task, asked, place, settings) - whole
            for place in self._flat(self.without)
        ]
        values = np.stack(parts, axis=1) * len(rows)
        return Scores(rows.ids, {"influence": values}, asked.ids, self.provenance)

    def _measure(
        self, task: Task, queries: Rows, place: Float[Tensor, " d"], settings: PassSettings | None
    ) -> Float[np.ndarray, " q"]:
        """Return the measurements of the queries under other weights."""
        with self.problem.space.moved_to(place):
            table = run_pass(QueryTask(task), queries, [Statistic("loss")], settings=settings)
        return table.columns["loss"].astype(np.float64)

    def _flat(self, weights: Float[Tensor, "m o i"]) -> Float[Tensor, "m d"]:
        """Return weights as vectors of parameters."""
        space = self.problem.space
        out = torch.zeros(len(weights), space.num_dims, dtype=weights.dtype)
        for component in space.layout.components.values():
            space.put(component, {component.name: weights}, out)
        return out


def linear_problem(task: Task, data: Any, kind: type[Task]) -> LinearProblem:
    """Collect the inputs and the targets of a linear model.

    Args:
        task: A task whose model is one `nn.Linear`.
        data: Pairs of inputs and targets.
        kind: The task that it must be.

    Raises:
        TypeError: It is not, or its model is not linear, or some of it is frozen.
    """
    model = task.model
    trainable = all(parameter.requires_grad for parameter in model.parameters())
    if not isinstance(task, kind) or type(model) is not nn.Linear or not trainable:
        raise TypeError(
            f"exact leave-one-out needs a {kind.__name__} task whose model is one "
            f"trainable nn.Linear. Got {type(task).__name__} of {type(model).__name__}. Use "
            "Metagradients for other models, on short runs."
        )
    rows = as_rows(data)
    batch = task.collate(task.encode(rows.fetch(range(len(rows)))))
    inputs, targets = batch
    inputs = inputs.double()
    if model.bias is not None:
        inputs = torch.cat([inputs, inputs.new_ones(len(inputs), 1)], 1)
    return LinearProblem(parameter_space(task, PassSettings()), rows, inputs, targets)
