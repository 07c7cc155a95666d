"""The largest eigenvalues of the curvature by Arnoldi's iteration.

Letters: ``q`` right-hand sides, ``d`` parameters, ``m`` steps, ``k`` eigenvalues kept.

The matrix is symmetric, so the iteration is that of Lanczos, and what it finds is decomposed
as a symmetric tridiagonal matrix: its eigenvalues are real by construction, unlike those that
implementations for any matrix take the real part of.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from influence.power_iteration import random_vector
from influence.products import SymmetricMatrix
from influence.solver import Solution, check_residuals, relative_residuals
from projections import ConvergenceError, check_at_least, check_between

BREAKDOWN = 1e-6  # a step below this part of the largest one leaves an invariant subspace


@dataclass(frozen=True, kw_only=True)
class Arnoldi:
    r"""Invert the largest eigenvalues exactly, and take the rest as zero plus damping.

    .. math::
        x = V (\mu + \lambda)^{-1} V^\top g + \lambda^{-1} (I - V V^\top) g

    with the :math:`k` eigenvalues :math:`\mu` of largest magnitude of a Krylov space of
    :math:`m` products, orthogonalised twice against all that came before. Products are made
    once; a query then costs a few inner products, and one product to report its residual,
    which does not go to zero unless the space is whole.

    Args:
        num_steps: Number ``m`` of products, and of vectors of length ``d`` held meanwhile.
        num_kept: Number ``k`` of eigenvalues; their vectors stay.
        tolerance: Largest residual, relative to the right-hand side; None only reports it.
        seed: Seed of the first vector.

    Example:
        >>> from influence import GaussNewton
        >>> from projections import Regression
        >>> task = Regression(torch.nn.Linear(2, 1, bias=False))
        >>> data = [(torch.tensor(row), torch.ones(1)) for row in ([2.0, 0.0], [0.0, 1.0])]
        >>> matrix = GaussNewton(fisher="exact", seed=0).of(task, data)  # diag(2, 1/2)
        >>> solver = Arnoldi(num_steps=2, num_kept=2, seed=0).prepare(matrix, 0.5)
        >>> solver.solve(torch.ones(1, 2)).vectors
        tensor([[0.4000, 1.0000]])

    References:
        Schioppa et al., Scaling up influence functions (AAAI 2022), arXiv:2112.03052, Sec. 4.
    """

    num_steps: int
    num_kept: int
    tolerance: float | None = None
    seed: int

    def __post_init__(self) -> None:
        """Check the arguments."""
        check_at_least("num_steps", self.num_steps, 1)
        check_between("num_kept", self.num_kept, 1, self.num_steps, "the number of steps")

    def prepare(self, matrix: SymmetricMatrix, damping: float) -> "PreparedArnoldi":
        """Find the eigenvalues.

        Raises:
            ConvergenceError: An eigenvalue plus the damping is not positive.
            ValueError: There are more steps than parameters.
        """
        check_between("num_steps", self.num_steps, 1, matrix.num_dims, "the number of parameters")
        basis, diagonal, beside = krylov(matrix, self.num_steps, self.seed)
        inner = torch.diag(diagonal) + torch.diag(beside, 1) + torch.diag(beside, -1)
        values, inside = torch.linalg.eigh(inner)
        kept = values.abs().argsort(descending=True)[: self.num_kept]
        values, vectors = values[kept], inside[:, kept].mT.to(basis) @ basis
        if not bool((values + damping > 0).all()):
            raise ConvergenceError(
                f"every eigenvalue plus the damping must be above zero. The smallest is "
                f"{float(values.min()):.3g} and the damping {damping:.3g}. Raise `damping`, or use "
                "GaussNewton."
            )
        return PreparedArnoldi(self, matrix, damping, values.to(basis), vectors)


@dataclass(frozen=True)
class PreparedArnoldi:
    """The largest eigenvalues of one matrix.

    Args:
        settings: Tolerance and steps.
        matrix: The matrix.
        damping: Added to every eigenvalue.
        eigenvalues: Those kept, largest magnitude first.
        eigenvectors: Their vectors, of length one.
    """

    settings: Arnoldi
    matrix: SymmetricMatrix
    damping: float
    eigenvalues: Float[Tensor, " k"]
    eigenvectors: Float[Tensor, "k d"]

    def solve(self, vectors: Float[Tensor, "q d"]) -> Solution:
        """Invert for each right-hand side.

        Raises:
            ConvergenceError: A residual is above the tolerance, if there is one.
        """
        inside = vectors @ self.eigenvectors.mT
        scales = 1 / (self.eigenvalues + self.damping) - 1 / self.damping
        solutions = vectors / self.damping + (inside * scales) @ self.eigenvectors
        residuals = relative_residuals(self.matrix, self.damping, vectors, solutions)
        steps = self.settings.num_steps
        if self.settings.tolerance is not None:
            remedy = "Raise `num_steps` and `num_kept`, or `damping`."
            check_residuals(residuals, self.settings.tolerance, num_steps=steps, remedy=remedy)
        return Solution(solutions, residuals, (steps,) * len(vectors))


def krylov(
    matrix: SymmetricMatrix, num_steps: int, seed: int
) -> tuple[Float[Tensor, "m d"], Float[Tensor, " m"], Float[Tensor, " m-1"]]:
    """Return an orthonormal basis, and the tridiagonal matrix in it, in float64.

    Where the space closes before the last step, it goes on from another random vector.

    Args:
        matrix: The matrix.
        num_steps: Number ``m`` of products.
        seed: Seed of random vectors.
    """
    basis = torch.zeros(num_steps, matrix.num_dims, dtype=matrix.dtype, device=matrix.device)
    diagonal = torch.zeros(num_steps, dtype=torch.float64)
    beside = torch.zeros(num_steps - 1, dtype=torch.float64)
    vector = random_vector(matrix, seed, "arnoldi")
    basis[0] = vector[0] / vector.norm()
    largest = 0.0
    for step in range(num_steps):
        image = matrix.apply(basis[step][None])
        diagonal[step] = (image[0] * basis[step]).sum().double()
        largest = max(largest, float(image.norm()))
        if step + 1 == num_steps:
            break
        image = _orthogonal(image, basis[: step + 1])
        if float(image.norm()) > BREAKDOWN * largest:
            beside[step] = image.norm().double()
        else:
            image = _orthogonal(random_vector(matrix, seed, f"arnoldi/{step}"), basis[: step + 1])
        basis[step + 1] = image[0] / image.norm()
    return basis, diagonal, beside


def _orthogonal(vector: Float[Tensor, "1 d"], basis: Float[Tensor, "m d"]) -> Tensor:
    """Take out what lies in a basis, twice, since once leaves what rounding put back."""
    for _ in range(2):
        vector = vector - (vector @ basis.mT) @ basis
    return vector
