"""The Neumann series of an inverse.

Letters: ``q`` right-hand sides, ``d`` parameters.
"""

from dataclasses import dataclass

from influence.power_iteration import largest_eigenvalue
from influence.preconditioners import NoPreconditioner
from influence.products import SymmetricMatrix
from influence.richardson import PreparedSteps, Steps, every_row
from influence.solver import check_stops
from projections import check_at_least


@dataclass(frozen=True, kw_only=True)
class Neumann:
    r"""Solve by :math:`x = \eta \sum_t (I - \eta (H + \lambda))^t g`, step by step.

    The step is one over the largest eigenvalue, from a power iteration, times the margin.
    The number of steps grows with the ratio of that eigenvalue to the damping; conjugate
    gradients take its root.

    Args:
        tolerance: Largest residual, relative to the right-hand side; below 1, which zero has.
        max_steps: Most steps; each is one product, a pass over the data.
        margin: How much larger the eigenvalue may be than the power iteration found.

    Example:
        >>> import torch
        >>> from influence import GaussNewton
        >>> from projections import Regression
        >>> task = Regression(torch.nn.Linear(2, 1, bias=False))
        >>> data = [(torch.tensor(row), torch.ones(1)) for row in ([2.0, 0.0], [0.0, 1.0])]
        >>> matrix = GaussNewton(fisher="exact", seed=0).of(task, data)  # diag(2, 1/2)
        >>> solver = Neumann(tolerance=1e-6).prepare(matrix, 0.5)
        >>> solver.solve(torch.ones(1, 2)).vectors
        tensor([[0.4000, 1.0000]])

    References:
        Agarwal, Bullins and Hazan, Second-order stochastic optimization for machine learning
        in linear time (JMLR 2017), arXiv:1602.03943, Sec. 3.
    """

    tolerance: float = 1e-2
    max_steps: int = 1000
    margin: float = 1.1

    def __post_init__(self) -> None:
        """Check the arguments."""
        check_stops(self.tolerance)
        check_at_least("max_steps", self.max_steps, 1)
        check_at_least("margin", self.margin, 0.5)

    def prepare(self, matrix: SymmetricMatrix, damping: float) -> PreparedSteps:
        """Find the step."""
        identity = NoPreconditioner().prepare(matrix, damping)
        size = 1 / (self.margin * largest_eigenvalue(matrix, damping, identity))
        steps = Steps(every_row(matrix), damping, size, identity, self.max_steps, self.tolerance)
        remedy = "Raise `max_steps` or `damping`, or use ConjugateGradients."
        return PreparedSteps(matrix, (steps,), self.tolerance, remedy)
