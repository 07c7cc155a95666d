"""Exact metagradients of a short training run, by replaying it backwards.

Letters: ``q`` queries, ``n`` training examples, ``d`` parameters, ``k`` steps.

This is what influence approximates: what a query's loss after training would have been, had an
example counted a little more. It keeps the parameters of every step, and walks back with
Hessian products of each step's batch; it is the oracle for short runs of small models, not a
method for large ones. The replay is plain gradient descent, with momentum and weight decay.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from influence.hessian import Hessian
from influence.parameter_space import Directions
from influence.products import Products
from influence.richardson import drawn_rows
from projections import (
    PassSettings,
    QueryTask,
    Scores,
    Sketch,
    StoreMismatchError,
    Task,
    as_rows,
    check_at_least,
    check_between,
    describe,
    fingerprint_model,
    run_pass,
    track,
)


@dataclass(frozen=True, kw_only=True)
class Metagradients:
    r"""Differentiate the loss of a query after training by the weight of each example.

    Training starts at the model's parameters and takes steps of
    :math:`v \leftarrow \beta v + \frac{1}{|B|} \sum_{n \in B} w_n \nabla \ell_n + \gamma \theta`,
    :math:`\theta \leftarrow \theta - \eta v`. The score is :math:`-N\, dL_q / dw_n` at
    :math:`w = 1`, with the number :math:`N` of examples: for a run that converges, with
    :math:`\gamma` for damping, it is the influence of the inverse Hessian.

    Args:
        learning_rate: The step :math:`\eta`.
        num_steps: Number of steps; the parameters of each are kept.
        batch_size: Rows of each step; None for all.
        momentum: :math:`\beta`.
        weight_decay: :math:`\gamma`.
        seed: Seed of the rows of each step.

    Example:
        >>> from projections import Regression
        >>> task = Regression(torch.nn.Linear(1, 1, bias=False))
        >>> _ = torch.nn.init.zeros_(task.model.weight)
        >>> data = [(torch.ones(1), torch.ones(1))]
        >>> run = Metagradients(learning_rate=0.5, num_steps=1, seed=0).fit(task, data)
        >>> run.path.flatten(), run.scores(task, data, data).values
        (tensor([0.0000, 0.5000]), array([[0.25]]))

    References:
        Engstrom et al., Optimizing ML training with metagradient descent (2025),
        arXiv:2503.13751, Sec. 2; Ilyas and Engstrom, MAGIC (2025), arXiv:2504.16430.
    """

    learning_rate: float
    num_steps: int
    batch_size: int | None = None
    momentum: float = 0.0
    weight_decay: float = 0.0
    seed: int

    def __post_init__(self) -> None:
        """Check the arguments."""
        if not self.learning_rate > 0:
            raise ValueError(f"`learning_rate` must be positive. Got {self.learning_rate}.")
        check_at_least("num_steps", self.num_steps, 1)
        check_between("momentum", self.momentum, 0, 1 - 1e-9)
        check_at_least("weight_decay", self.weight_decay, 0)
        if self.batch_size is not None:
            check_at_least("batch_size", self.batch_size, 1)

    def fit(
        self, task: Task, data: Any, *, settings: PassSettings | None = None
    ) -> "FittedMetagradients":
        """Train, and keep the parameters of every step; the model is left as it was.

        Args:
            task: The model, from whose parameters training starts, and its loss.
            data: The training data.
            settings: Layers, of which the others stay fixed, and batching.
        """
        whole = Hessian().of(task, data, settings=settings)
        draw = drawn_rows(
            whole, self.batch_size or whole.num_rows, seed=self.seed, name="metagradients"
        )
        place = whole.space.read()
        speed = torch.zeros_like(place)
        path = [place]
        for step in track(range(self.num_steps), "training", total=self.num_steps, unit="steps"):
            batch = draw(step)
            assert isinstance(batch, Products)
            with whole.space.moved_to(place):
                slope = batch.mean_gradient()
            speed = self.momentum * speed + slope + self.weight_decay * place
            place = place - self.learning_rate * speed
            path.append(place)
        how = {
            "method": describe(self),
            "model": fingerprint_model(task.model),
            "data": whole.rows.fingerprint,
        }
        return FittedMetagradients(self, whole, torch.stack(path), how)


@dataclass(frozen=True)
class FittedMetagradients:
    """A training run that can be walked backwards.

    Args:
        settings: How it was trained.
        matrix: The Hessian over all rows, and the space of the parameters.
        path: The parameters before the first step and after each.
        provenance: How it was made, as plain JSON values.
    """

    settings: Metagradients
    matrix: Products
    path: Float[Tensor, "k d"]
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def scores(
        self, task: Task, queries: Any, data: Any, *, settings: PassSettings | None = None
    ) -> Scores:
        """Return the effect of every training example on every query, ``q n``.

        Args:
            task: The model, whose parameters are those at the start; its `measurements` at the
                end of the run are the queries.
            queries: A dataset of queries.
            data: The training data of the run.
            settings: Batching; the layers are those of the run.

        Raises:
            StoreMismatchError: The model or the data is not that of the run.
        """
        rows, asked = as_rows(data), as_rows(queries)
        self._check(task, rows.fingerprint)
        reading, space = self.matrix.reading(settings), self.matrix.space
        values = np.zeros((len(asked), len(rows)))
        with space.moved_to(self.path[0]):  # and back again, whatever is raised below
            with space.moved_to(self.path[-1]):
                column = Sketch(space.coordinates)
                table = run_pass(QueryTask(task), asked, [column], settings=reading)
            adjoint = torch.from_numpy(table.columns["sketch"]).to(self.path)
            for batch, directions in self._backward(adjoint):
                some = rows.fetch(batch.positions)
                column = Sketch(Directions(space, directions), name="influence")
                part = run_pass(task, some, [column], settings=reading).columns["influence"].T
                values[:, list(batch.positions)] -= part * (len(rows) / len(some))
        return Scores(rows.ids, {"influence": values}, asked.ids, self.provenance)

    def _backward(
        self, adjoint: Float[Tensor, "q d"]
    ) -> Iterator[tuple[Products, Float[Tensor, "q d"]]]:
        """Yield the rows of each step, last first, and what their gradients are multiplied by.

        Inside the loop the model has the parameters before that step.
        """
        how, speed = self.settings, torch.zeros_like(adjoint)
        draw = drawn_rows(
            self.matrix,
            how.batch_size or self.matrix.num_rows,
            seed=how.seed,
            name="metagradients",
        )
        steps = range(how.num_steps - 1, -1, -1)
        for step in track(steps, "backwards", total=how.num_steps, unit="steps"):
            batch = draw(step)
            assert isinstance(batch, Products)
            with self.matrix.space.moved_to(self.path[step]):
                # What the step's gradient does: through the step, and through later momentum.
                speed = how.momentum * speed - how.learning_rate * adjoint
                yield batch, speed
                adjoint = adjoint + batch.apply(speed) + how.weight_decay * speed

    def _check(self, task: Task, data: str) -> None:
        """Refuse another model, and other data."""
        found = {"model": fingerprint_model(task.model), "data": data}
        for kind, value in found.items():
            if value != self.provenance[kind] or task.model is not self.matrix.task.model:
                raise StoreMismatchError(
                    f"metagradients must be asked with the {kind} of the run, which was "
                    f"{self.provenance[kind]}. Got {value}. Train again with `fit`."
                )
