"""The largest eigenvalue of a matrix, from below, by power iteration.

Letters: ``d`` parameters.
"""

import torch
from torch import Tensor

from influence.preconditioners import Precondition
from influence.products import SymmetricMatrix
from projections import ConvergenceError, normal_entries

CHANGE = 2e-3  # relative change of the estimate at which it is good enough for a step size


def random_vector(matrix: SymmetricMatrix, seed: int, name: str) -> Tensor:
    """Return a vector of normal numbers, ``1 d``."""
    columns = torch.arange(matrix.num_dims, device=matrix.device)
    return normal_entries(seed, name, columns, 1).mT.to(matrix.dtype)


def largest_eigenvalue(
    matrix: SymmetricMatrix,
    damping: float,
    precondition: Precondition,
    *,
    num_steps: int = 50,
    seed: int = 0,
) -> float:
    r"""Return an estimate of the largest eigenvalue of :math:`P^{-1} (H + \lambda)`.

    It is the Rayleigh quotient in the inner product of :math:`H + \lambda`, in which the
    product is symmetric, so it never exceeds the largest eigenvalue.

    Args:
        matrix: The matrix.
        damping: Added to its diagonal.
        precondition: Multiplies by the inverse of ``P``.
        num_steps: Most products.
        seed: Seed of the first vector.

    Raises:
        ConvergenceError: The matrix plus damping is not positive along a vector.
    """
    vector = random_vector(matrix, seed, "power iteration")
    found = 0.0
    for _ in range(num_steps):
        vector = vector / vector.norm()
        image = matrix.apply(vector) + damping * vector
        mapped = precondition(image)
        bend = float((vector * image).sum())
        if not bend > 0:
            raise ConvergenceError(
                f"the matrix plus damping must be positive. Along one direction it is {bend:.3g}, "
                f"with a damping of {damping:.3g}. Raise `damping`, or use GaussNewton."
            )
        before, found = found, float((image * mapped).sum()) / bend
        if abs(found - before) <= CHANGE * found:
            break
        vector = mapped
    return found
