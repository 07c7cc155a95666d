"""Influence by solving linear systems with the curvature, whatever solves them.

Letters: ``q`` right-hand sides (queries), ``n`` training examples, ``d`` parameters.

A `Matrix` says which curvature, a `Solver` how ``(H + damping) x = g`` is solved with its
products alone; `Inverse` puts them together behind the calls that EK-FAC answers. The score of
a pair is ``g_q^T (H + damping)^-1 g_n``, in the unit and with the sign of EK-FAC.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from influence.parameter_space import ParameterSpace
from influence.products import Matrix, Products
from influence.raw_gradients import VECTOR_BYTES, gradient_blocks, gradient_products
from influence.solver import PreparedSolver, Solution, Solver, check_damping
from projections import (
    PassSettings,
    QueryTask,
    Rows,
    Scores,
    StoreMismatchError,
    Task,
    as_rows,
    describe,
    fingerprint_model,
)


@dataclass(frozen=True, kw_only=True)
class Inverse:
    r"""Attribute by :math:`g_q^\top (H + \lambda I)^{-1} g_n` with one solve a query.

    Args:
        matrix: Which curvature, such as `GaussNewton`.
        solver: How systems with it are solved.
        damping: What is added to every eigenvalue, in units of the squared gradient of one
            example.

    Example:
        >>> from influence import ConjugateGradients, GaussNewton
        >>> from projections import Regression
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> _ = torch.nn.init.zeros_(model.weight)
        >>> data = [(torch.eye(2)[row], torch.ones(1)) for row in (0, 1)]
        >>> curvature = GaussNewton(fisher="exact", seed=0)
        >>> method = Inverse(matrix=curvature, solver=ConjugateGradients(), damping=0.5)
        >>> fitted = method.fit(Regression(model), data)
        >>> fitted.scores(Regression(model), data, data).values  # over 1/2 + 1/2
        array([[1., 0.],
               [0., 1.]], dtype=float32)

    References:
        Koh and Liang, Understanding black-box predictions via influence functions (ICML
        2017), arXiv:1703.04730, Sec. 3.
    """

    matrix: Matrix
    solver: Solver
    damping: float

    def __post_init__(self) -> None:
        """Check the arguments."""
        check_damping(self.damping)

    def fit(
        self, task: Task, data: Any, *, settings: PassSettings | None = None
    ) -> "FittedInverse":
        """Make ready what all queries share, such as a preconditioner or a basis.

        Args:
            task: The model and its loss.
            data: The training data, which every product walks over.
            settings: Layers and batching.

        Raises:
            ConvergenceError: The preparation failed; the message names the setting.
            NonDeterministicError: Losses depend on chance or on the batch.
        """
        matrix = self.matrix.of(task, data, settings=settings)
        prepared = self.solver.prepare(matrix, self.damping)
        how = {
            "method": "Inverse",
            "matrix": describe(self.matrix),
            "solver": describe(self.solver),
            "damping": self.damping,
            "model": fingerprint_model(task.model),
            "data": matrix.rows.fingerprint,
        }
        return FittedInverse(matrix, prepared, how)


@dataclass(frozen=True)
class FittedInverse:
    """A damped inverse curvature that was made ready for one model and its training data.

    Args:
        matrix: The curvature.
        solver: What solves with it.
        provenance: How both were made, as plain JSON values.
    """

    matrix: Products
    solver: PreparedSolver
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @property
    def space(self) -> ParameterSpace:
        """The parameters, and the layout of vectors."""
        return self.matrix.space

    def solve(self, vectors: Float[Tensor, "q d"]) -> Solution:
        """Return ``(H + damping)^-1 g`` for vectors in the layout of `space`.

        Raises:
            ConvergenceError: A residual is above the solver's tolerance.
        """
        return self.solver.solve(vectors)

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
            data: The training examples to score.
            settings: Batching; the layers are those of the fit.
            memory: Bytes of query gradients held at a time. More queries than fit take
                another pass over the data.

        Returns:
            The scores; residual and steps of each query are in their provenance.

        Raises:
            ConvergenceError: A residual is above the solver's tolerance.
            StoreMismatchError: The model is not the one that was fitted.
        """
        self.check_model(task)
        rows, asked = as_rows(data), as_rows(queries)
        parts: list[np.ndarray] = []
        solves: list[dict[str, Any]] = []
        for gradients in self._gradients(QueryTask(task), asked, settings, memory):
            solution = self.solve(gradients)
            reading = self.matrix.reading(settings)
            parts.append(
                gradient_products(task, rows, self.space, solution.vectors, settings=reading)
            )
            solves += solution.summary()
        how = {**self.provenance, "solves": solves}
        return Scores(rows.ids, {"influence": np.concatenate(parts)}, asked.ids, how)

    def self_influence(
        self,
        task: Task,
        data: Any,
        *,
        settings: PassSettings | None = None,
        memory: int = VECTOR_BYTES,
    ) -> Scores:
        """Return ``g^T (H + damping)^-1 g`` of each example, ``n``: a solve an example.

        Args:
            task: The model and its loss.
            data: The examples.
            settings: Batching; the layers are those of the fit.
            memory: Bytes of gradients held at a time.

        Raises:
            ConvergenceError: A residual is above the solver's tolerance.
            StoreMismatchError: The model is not the one that was fitted.
        """
        products = lambda gradients, found: (gradients * found).sum(1)  # noqa: E731
        return self._each(task, data, "self_influence", products, settings, memory)

    def response_norms(
        self,
        task: Task,
        data: Any,
        *,
        settings: PassSettings | None = None,
        memory: int = VECTOR_BYTES,
    ) -> Scores:
        """Return the length of ``(H + damping)^-1 g`` of each example, ``n``: a solve an example.

        Args:
            task: The model and its loss.
            data: The examples.
            settings: Batching; the layers are those of the fit.
            memory: Bytes of gradients held at a time.

        Raises:
            ConvergenceError: A residual is above the solver's tolerance.
            StoreMismatchError: The model is not the one that was fitted.
        """
        norms = lambda gradients, found: found.norm(dim=1)  # noqa: E731
        return self._each(task, data, "response_norm", norms, settings, memory)

    def _each(
        self,
        task: Task,
        data: Any,
        name: str,
        number: Callable[[Tensor, Tensor], Tensor],
        settings: PassSettings | None,
        memory: int,
    ) -> Scores:
        """Return a number of each example, from its gradient and its solution."""
        self.check_model(task)
        rows = as_rows(data)
        parts, solves = [], []
        for gradients in self._gradients(task, rows, settings, memory):
            solution = self.solve(gradients)
            parts.append(number(gradients, solution.vectors).cpu().numpy())
            solves += solution.summary()
        values = {name: np.concatenate(parts)}
        return Scores(rows.ids, values, provenance={**self.provenance, "solves": solves})

    def mean_gradient(
        self, task: Task, queries: Any, *, settings: PassSettings | None = None
    ) -> Float[Tensor, " d"]:
        """Return the mean gradient of the measurements of queries, a right-hand side.

        Args:
            task: The model; its `measurements` are the queries.
            queries: A dataset of queries.
            settings: Batching; the layers are those of the fit.
        """
        self.check_model(task)
        rows, total = as_rows(queries), torch.zeros(self.space.num_dims, dtype=self.matrix.dtype)
        for gradients in self._gradients(QueryTask(task), rows, settings, VECTOR_BYTES):
            total = total.to(gradients) + gradients.sum(0)
        return total / len(rows)

    def check_model(self, task: Task) -> None:
        """Refuse a task whose model is another one, or has changed since the fit.

        Raises:
            StoreMismatchError: The fingerprints differ, or it is another object.
        """
        found, wanted = fingerprint_model(task.model), self.provenance["model"]
        if found != wanted or task.model is not self.matrix.task.model:
            raise StoreMismatchError(
                f"solvers must be used with the model that they were fitted to, the same object. "
                f"That was {wanted}; this model is {found}. Fit again."
            )

    def _gradients(
        self, task: Task, rows: Rows, settings: PassSettings | None, memory: int
    ) -> Iterator[Float[Tensor, "q d"]]:
        """Yield gradients of as many rows as fit the memory."""
        reading = self.matrix.reading(settings)
        return gradient_blocks(task, rows, self.space, settings=reading, memory=memory)
