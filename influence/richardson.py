r"""What Neumann series, LiSSA and ASTRA share: steps along what is left of each right-hand side.

Letters: ``q`` right-hand sides, ``d`` parameters.

.. math::
    x \leftarrow x + \eta P^{-1} (g - (H_B + \lambda) x)

with all rows or with some of them, with or without a preconditioner. It converges where
:math:`\eta` is below two over the largest eigenvalue of :math:`P^{-1} (H_B + \lambda)`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from influence.preconditioners import Precondition
from influence.products import MeanMatrix, SymmetricMatrix
from influence.solver import Solution, check_residuals, relative_norms, relative_residuals
from projections import ConvergenceError, keyed_words

DIVERGED = 1e3  # a residual that is this much longer than its right-hand side only grows


@dataclass(frozen=True)
class Steps:
    r"""One way of stepping.

    Args:
        matrices: The matrix of each step, by its number.
        damping: Added to the diagonal.
        step_size: The factor :math:`\eta`.
        precondition: The approximate inverse.
        num_steps: Most steps.
        tolerance: Residual, relative to the right-hand side, at which to stop; zero where
            the residual of a step is that of some rows only.
    """

    matrices: Callable[[int], SymmetricMatrix]
    damping: float
    step_size: float
    precondition: Precondition
    num_steps: int
    tolerance: float

    def run(self, vectors: Float[Tensor, "q d"]) -> tuple[Float[Tensor, "q d"], int]:
        """Return the last iterates, and the number of steps.

        Raises:
            ConvergenceError: The residuals grow without bound.
        """
        solutions = torch.zeros_like(vectors)
        left = vectors  # the first iterate is zero: its residual takes no product
        for step in range(self.num_steps):
            if step:
                images = self.matrices(step).apply(solutions)
                left = vectors - images - self.damping * solutions
            residuals = relative_norms(left, vectors)
            self._check(residuals, step)
            if bool((residuals <= self.tolerance).all()):
                return solutions, step
            solutions = solutions + self.step_size * self.precondition(left)
        return solutions, self.num_steps

    def _check(self, residuals: Float[Tensor, " q"], step: int) -> None:
        """Refuse residuals that have grown."""
        if not bool((residuals <= DIVERGED).all()):
            raise ConvergenceError(
                "an iteration must bring every residual down, and this one diverges: after "
                f"{step} steps the largest is {float(residuals.max()):.3g} times its right-hand "
                f"side, with a step of {self.step_size:.3g}. Raise `margin` (or `batch_size`), "
                "which makes steps smaller (or less noisy), or `damping`."
            )


@dataclass(frozen=True)
class PreparedSteps:
    """One or more ways of stepping, whose results are averaged.

    Args:
        matrix: The matrix over all rows, by which residuals are judged.
        runs: The ways.
        tolerance: Largest residual, relative to the right-hand side.
        remedy: The settings that a message names.
    """

    matrix: SymmetricMatrix
    runs: tuple[Steps, ...]
    tolerance: float
    remedy: str

    def solve(self, vectors: Float[Tensor, "q d"]) -> Solution:
        """Solve for each right-hand side.

        Raises:
            ConvergenceError: A residual over all rows is above the tolerance, or one diverges.
        """
        found, counts = zip(*(run.run(vectors) for run in self.runs), strict=True)
        solutions = torch.stack(found).mean(0)
        residuals = relative_residuals(self.matrix, self.runs[0].damping, vectors, solutions)
        check_residuals(residuals, self.tolerance, num_steps=max(counts), remedy=self.remedy)
        return Solution(solutions, residuals, (max(counts),) * len(vectors))


def every_row(matrix: SymmetricMatrix) -> Callable[[int], SymmetricMatrix]:
    """Return the whole matrix for each step."""
    return lambda step: matrix


def drawn_rows(
    matrix: SymmetricMatrix, batch_size: int, *, seed: int, name: str
) -> Callable[[int], SymmetricMatrix]:
    """Return the mean over random rows, others for each step.

    Args:
        matrix: A mean over rows.
        batch_size: Number of rows, drawn without replacement; all if there are fewer.
        seed: Seed of the draws.
        name: What the draws are for.

    Raises:
        TypeError: The matrix is no mean over rows.
    """
    if not isinstance(matrix, MeanMatrix):
        raise TypeError(
            f"rows can only be drawn of a matrix over a dataset. Got {type(matrix).__name__}. Use "
            "Neumann or ConjugateGradients."
        )
    numbers = np.arange(matrix.num_rows)

    def draw(step: int) -> SymmetricMatrix:
        if batch_size >= len(numbers):
            return matrix
        words = keyed_words(seed, f"{name}/{step}", numbers)[:, 0]
        return matrix.of_rows(np.sort(words.argsort(kind="stable")[:batch_size]).tolist())

    return draw
