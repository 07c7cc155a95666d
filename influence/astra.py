"""ASTRA: steps on Gauss-Newton products, preconditioned by EK-FAC.

Letters: ``q`` right-hand sides, ``d`` parameters.
"""

from dataclasses import dataclass
from typing import Any

from influence.power_iteration import largest_eigenvalue
from influence.preconditioners import Preconditioner, describe_with
from influence.products import SymmetricMatrix
from influence.richardson import PreparedSteps, Steps, drawn_rows, every_row
from influence.solver import check_stops
from projections import check_at_least


@dataclass(frozen=True, kw_only=True)
class ASTRA:
    r"""Solve by steps along what is left of each right-hand side, times EK-FAC.

    .. math::
        x \leftarrow x + \eta P^{-1} (g - (G_B + \lambda) x)

    EK-FAC alone is the first step from zero, up to its length; what follows corrects it by
    exact products. The step is one over the largest eigenvalue of
    :math:`P^{-1} (G + \lambda)`, from a power iteration, times the margin.

    Args:
        preconditioner: EK-FAC as a `CurvaturePreconditioner`, or another.
        max_steps: Most steps.
        batch_size: Rows of each step; None for all, which stops as soon as it has converged.
        margin: How much larger the eigenvalue may be than the power iteration found; with few
            rows a step, 2 and more.
        tolerance: Largest residual over all rows, relative to the right-hand side; below 1, which
            zero has, unless `batch_size` is given.
        seed: Seed of the rows.

    Example:
        >>> import torch
        >>> from influence import GaussNewton, Nystroem
        >>> from projections import Regression
        >>> task = Regression(torch.nn.Linear(2, 1, bias=False))
        >>> data = [(torch.tensor(row), torch.ones(1)) for row in ([2.0, 0.0], [0.0, 1.0])]
        >>> matrix = GaussNewton(fisher="exact", seed=0).of(task, data)  # diag(2, 1/2)
        >>> solver = ASTRA(preconditioner=Nystroem(rank=2, seed=0), tolerance=1e-6, seed=0)
        >>> solver.prepare(matrix, 0.5).solve(torch.ones(1, 2)).vectors
        tensor([[0.4000, 1.0000]])

    References:
        Wang et al., Better training data attribution via better inverse Hessian-vector
        products (2025), arXiv:2507.14740, Sec. 3.
    """

    preconditioner: Preconditioner
    max_steps: int = 200
    batch_size: int | None = None
    margin: float = 1.1
    tolerance: float = 1e-2
    seed: int

    def __post_init__(self) -> None:
        """Check the arguments."""
        check_at_least("max_steps", self.max_steps, 1)
        check_at_least("margin", self.margin, 0.5)
        if self.batch_size is None:
            check_stops(self.tolerance)
        else:
            check_at_least("tolerance", self.tolerance, 0)
            check_at_least("batch_size", self.batch_size, 1)

    def prepare(self, matrix: SymmetricMatrix, damping: float) -> PreparedSteps:
        """Compute the preconditioner and find the step."""
        precondition = self.preconditioner.prepare(matrix, damping)
        size = 1 / (self.margin * largest_eigenvalue(matrix, damping, precondition))
        if self.batch_size is None:
            matrices, tolerance = every_row(matrix), self.tolerance
        else:
            matrices = drawn_rows(matrix, self.batch_size, seed=self.seed, name="astra")
            tolerance = 0.0
        steps = Steps(matrices, damping, size, precondition, self.max_steps, tolerance)
        remedy = "Raise `max_steps`, `batch_size` or `damping`."
        return PreparedSteps(matrix, (steps,), self.tolerance, remedy)

    def describe(self) -> dict[str, Any]:
        """Return the settings as plain JSON values."""
        return describe_with(self, self.preconditioner)
