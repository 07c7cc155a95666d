"""The seam of solvers: what they are given, what they return, and when they refuse.

Letters: ``q`` right-hand sides, ``d`` parameters.
"""

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from influence.products import SymmetricMatrix
from projections import ConvergenceError


@dataclass(frozen=True)
class Solution:
    """What a solver found.

    Args:
        vectors: The solutions.
        residuals: Length of ``g - (H + damping) x`` over that of ``g``, of each.
        num_steps: Steps taken for each.
    """

    vectors: Float[Tensor, "q d"]
    residuals: Float[Tensor, " q"]
    num_steps: tuple[int, ...]

    def summary(self) -> list[dict[str, Any]]:
        """Return residual and steps of each right-hand side, as plain JSON values."""
        pairs = zip(self.residuals.tolist(), self.num_steps, strict=True)
        return [{"residual": residual, "num_steps": steps} for residual, steps in pairs]


@runtime_checkable
class PreparedSolver(Protocol):
    """A solver that knows its matrix."""

    def solve(self, vectors: Float[Tensor, "q d"]) -> Solution:
        """Solve for each right-hand side."""
        ...


@runtime_checkable
class Solver(Protocol):
    """Hyper-parameters of a solver: `ConjugateGradients`, `Neumann`, `Arnoldi` and others."""

    def prepare(self, matrix: SymmetricMatrix, damping: float) -> PreparedSolver:
        """Compute what all right-hand sides share."""
        ...


def relative_residuals(
    matrix: SymmetricMatrix, damping: float, vectors: Tensor, solutions: Tensor
) -> Float[Tensor, " q"]:
    """Return the length of what is left of each right-hand side, over its own."""
    left = vectors - matrix.apply(solutions) - damping * solutions
    return relative_norms(left, vectors)


def relative_norms(
    left: Float[Tensor, "q d"], vectors: Float[Tensor, "q d"]
) -> Float[Tensor, " q"]:
    """Return the length of vectors over that of others; zero over zero is zero."""
    tiny = torch.finfo(left.dtype).tiny
    return left.norm(dim=1) / vectors.norm(dim=1).clamp(min=tiny)


def check_residuals(
    residuals: Float[Tensor, " q"], tolerance: float, *, num_steps: int, remedy: str
) -> None:
    """Refuse solutions that are not close enough.

    Args:
        residuals: Relative residual of each right-hand side.
        tolerance: The largest that is good enough.
        num_steps: Steps taken.
        remedy: The settings that would help.

    Raises:
        ConvergenceError: Names the largest residual and the settings.
    """
    bad = ~(residuals <= tolerance)
    if bad.any():
        raise ConvergenceError(
            f"the residual of every right-hand side must be at most {tolerance:.3g} of its length. "
            f"After {num_steps} steps {int(bad.sum())} of {len(residuals)} are above it, the "
            f"largest at {float(residuals.max()):.3g}. {remedy}"
        )


def check_stops(tolerance: float) -> None:
    """Refuse a tolerance at which a solver would stop where it starts, at zero."""
    if not 0 <= tolerance < 1:
        raise ValueError(
            "`tolerance` must be in [0, 1): the first iterate is zero, whose residual is the whole "
            f"right-hand side, so that 1 would be met by scores of zero. Got {tolerance}. For a "
            "fixed number of steps, whatever the residual, use LiSSA, or ASTRA with `batch_size`."
        )


def check_damping(damping: float) -> None:
    """Refuse a damping that is not positive."""
    if not damping > 0:
        raise ValueError(f"`damping` must be positive. Got {damping}.")
