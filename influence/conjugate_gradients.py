"""Conjugate gradients for many right-hand sides at once.

Letters: ``q`` right-hand sides, ``d`` parameters.

Each right-hand side has its own step lengths and leaves when it is done, so that products
are only made for those that are left. When the recursion says that it has converged, the
residual is computed anew, and what is missing is solved for again: what is reported is what
holds, not what the recursion believes.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from influence.preconditioners import (
    NoPreconditioner,
    Precondition,
    Preconditioner,
    describe_with,
)
from influence.products import SymmetricMatrix
from influence.solver import Solution, check_residuals, check_stops, relative_norms
from projections import ConvergenceError, check_at_least


@dataclass(frozen=True, kw_only=True)
class ConjugateGradients:
    """Solve by preconditioned conjugate gradients.

    Args:
        tolerance: Largest residual, relative to the right-hand side; below 1, which zero has.
        max_steps: Most steps; each is one product, a pass over the data, for all that are left.
        preconditioner: A cheap approximate inverse: `CurvaturePreconditioner` of EK-FAC or of
            the diagonal, `Nystroem`.

    Example:
        >>> from influence import GaussNewton
        >>> from projections import Regression
        >>> task = Regression(torch.nn.Linear(2, 1, bias=False))
        >>> data = [(torch.tensor(row), torch.ones(1)) for row in ([2.0, 0.0], [0.0, 1.0])]
        >>> matrix = GaussNewton(fisher="exact", seed=0).of(task, data)  # diag(2, 1/2)
        >>> solution = ConjugateGradients().prepare(matrix, 0.5).solve(torch.ones(1, 2))
        >>> solution.vectors, solution.num_steps
        (tensor([[0.4000, 1.0000]]), (2,))

    References:
        Hestenes and Stiefel, Methods of conjugate gradients for solving linear systems (1952).
        Martens, Deep learning via Hessian-free optimization (ICML 2010), for networks.
    """

    tolerance: float = 1e-4
    max_steps: int = 100
    preconditioner: Preconditioner = field(default_factory=NoPreconditioner)

    def __post_init__(self) -> None:
        """Check the arguments."""
        check_stops(self.tolerance)
        check_at_least("max_steps", self.max_steps, 1)

    def prepare(self, matrix: SymmetricMatrix, damping: float) -> "PreparedConjugateGradients":
        """Compute the preconditioner."""
        precondition = self.preconditioner.prepare(matrix, damping)
        return PreparedConjugateGradients(self, matrix, damping, precondition)

    def describe(self) -> dict[str, Any]:
        """Return the settings as plain JSON values."""
        return describe_with(self, self.preconditioner)


@dataclass(frozen=True)
class PreparedConjugateGradients:
    """Conjugate gradients with one matrix.

    Args:
        settings: Tolerance and steps.
        matrix: The matrix.
        damping: Added to its diagonal.
        precondition: The approximate inverse.
    """

    settings: ConjugateGradients
    matrix: SymmetricMatrix
    damping: float
    precondition: Precondition

    def solve(self, vectors: Float[Tensor, "q d"]) -> Solution:
        """Solve for each right-hand side.

        Raises:
            ConvergenceError: A residual is above the tolerance after the last step, or the
                matrix plus damping is not positive.
        """
        tolerance, most = self.settings.tolerance, self.settings.max_steps
        solutions, left = torch.zeros_like(vectors), vectors.clone()
        counts = torch.zeros(len(vectors), dtype=torch.int64)
        residuals = relative_norms(left, vectors)
        while (some := (residuals > tolerance).nonzero().squeeze(1)).numel():
            budget = most - int(counts[some.cpu()].max())
            if budget <= 0:
                break
            lengths = tolerance * vectors[some].norm(dim=1)
            found, steps = self._descend(left[some], lengths, budget)
            solutions[some] += found
            counts[some.cpu()] += steps
            left[some] = vectors[some] - self._apply(solutions[some])
            residuals = relative_norms(left, vectors)
        check_residuals(
            residuals,
            tolerance,
            num_steps=max(counts.tolist(), default=0),
            remedy="Raise `max_steps` or `damping`, give a `preconditioner`, or accept a larger "
            "`tolerance`.",
        )
        return Solution(solutions, residuals, tuple(counts.tolist()))

    def _apply(self, vectors: Float[Tensor, "q d"]) -> Float[Tensor, "q d"]:
        """Multiply by the damped matrix."""
        return self.matrix.apply(vectors) + self.damping * vectors

    def _descend(
        self, left: Float[Tensor, "q d"], lengths: Float[Tensor, " q"], budget: int
    ) -> tuple[Float[Tensor, "q d"], Tensor]:
        """Return solutions by the plain recursion, and how many steps each took."""
        solutions, left = torch.zeros_like(left), left.clone()
        steps = torch.zeros(len(left), dtype=torch.int64)
        toward = self.precondition(left)
        directions, slopes = toward.clone(), (left * toward).sum(1)
        for _ in range(budget):
            # A vector is done when it is within half of what is asked for, to leave room for
            # what the recursion rounds off.
            some = (left.norm(dim=1) > lengths / 2).nonzero().squeeze(1)
            if not some.numel():
                break
            images = self._apply(directions[some])
            bends = (directions[some] * images).sum(1)
            self._check_positive(bends, directions[some])
            alpha = (slopes[some] / bends)[:, None]
            solutions[some] += alpha * directions[some]
            left[some] -= alpha * images
            toward = self.precondition(left[some])
            after = (left[some] * toward).sum(1)
            beta = (after / slopes[some])[:, None]
            directions[some] = toward + beta * directions[some]
            slopes[some] = after
            steps[some.cpu()] += 1
        return solutions, steps

    def _check_positive(self, bends: Float[Tensor, " q"], directions: Tensor) -> None:
        """Refuse a direction in which the damped matrix is not positive."""
        quotients = bends / directions.square().sum(1)
        if not bool((quotients > 0).all()):
            raise ConvergenceError(
                "the matrix plus damping must be positive. Along one direction it is "
                f"{float(quotients.min()):.3g}, with a damping of {self.damping:.3g}. Raise "
                "`damping`, or use GaussNewton."
            )
