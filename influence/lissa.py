"""LiSSA: a Neumann series whose steps look at a few rows each.

Letters: ``q`` right-hand sides, ``d`` parameters.

Differs from the implementation that came with DataInf: the damping is subtracted with the
rest of the matrix, and not added to the iterate.
"""

from dataclasses import dataclass

from influence.power_iteration import largest_eigenvalue
from influence.preconditioners import NoPreconditioner
from influence.products import SymmetricMatrix
from influence.richardson import PreparedSteps, Steps, drawn_rows
from projections import check_at_least


@dataclass(frozen=True, kw_only=True)
class LiSSA:
    r"""Solve by a Neumann series of random rows, and average several runs.

    .. math::
        h \leftarrow g + h - \sigma^{-1} (H_B + \lambda) h, \qquad x = h / \sigma

    The scale :math:`\sigma` is the largest eigenvalue over all rows, from a power iteration,
    times the margin: a few rows have larger eigenvalues than all of them.

    Args:
        num_steps: Steps of each run; about the margin times largest eigenvalue over damping
            are needed.
        batch_size: Rows of each step.
        num_runs: Independent runs, whose mean has less noise.
        margin: How much larger eigenvalues of a few rows may be than of all.
        tolerance: Largest residual over all rows, relative to the right-hand side. The noise
            keeps it from zero.
        seed: Seed of the rows.

    Example:
        >>> import torch
        >>> from influence import GaussNewton
        >>> from projections import Regression
        >>> task = Regression(torch.nn.Linear(2, 1, bias=False))
        >>> data = [(torch.tensor(row), torch.ones(1)) for row in ([2.0, 0.0], [0.0, 1.0])]
        >>> matrix = GaussNewton(fisher="exact", seed=0).of(task, data)  # diag(2, 1/2)
        >>> solver = LiSSA(num_steps=100, batch_size=2, seed=0).prepare(matrix, 0.5)
        >>> solver.solve(torch.ones(1, 2)).vectors
        tensor([[0.4000, 1.0000]])

    References:
        Agarwal, Bullins and Hazan (JMLR 2017), arXiv:1602.03943, Alg. 1. Koh and Liang (ICML
        2017), arXiv:1703.04730, Sec. 3. Klochkov and Liu, Revisiting inverse Hessian vector
        products (2024), arXiv:2409.17357, for scale, rows and steps.
    """

    num_steps: int = 1000
    batch_size: int = 32
    num_runs: int = 1
    margin: float = 2.0
    tolerance: float = 0.3
    seed: int

    def __post_init__(self) -> None:
        """Check the arguments."""
        for name in ("num_steps", "batch_size", "num_runs"):
            check_at_least(name, getattr(self, name), 1)
        check_at_least("margin", self.margin, 0.5)
        check_at_least("tolerance", self.tolerance, 0)

    def prepare(self, matrix: SymmetricMatrix, damping: float) -> PreparedSteps:
        """Find the scale."""
        identity = NoPreconditioner().prepare(matrix, damping)
        size = 1 / (self.margin * largest_eigenvalue(matrix, damping, identity))
        runs = tuple(
            Steps(
                drawn_rows(matrix, self.batch_size, seed=self.seed, name=f"lissa/{run}"),
                damping,
                size,
                identity,
                self.num_steps,
                0.0,
            )
            for run in range(self.num_runs)
        )
        remedy = (
            "Raise `num_steps` (the mean is not reached), `batch_size` or `num_runs` (the noise is "
            "too large), or `damping`."
        )
        return PreparedSteps(matrix, runs, self.tolerance, remedy)
