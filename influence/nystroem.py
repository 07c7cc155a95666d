"""A preconditioner from a random sketch of the matrix, for curvature of low effective rank.

Letters: ``q`` vectors, ``d`` parameters, ``r`` rank.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from influence.preconditioners import Precondition
from influence.products import SymmetricMatrix
from projections import ConvergenceError, check_between, normal_entries


@dataclass(frozen=True, kw_only=True)
class Nystroem:
    r"""Precondition by the largest eigenvalues of a randomised low-rank approximation.

    With :math:`\hat H = U \Sigma U^\top` from :math:`r` products with random vectors, whose
    smallest eigenvalue kept is :math:`\sigma_r`,

    .. math::
        M^{-1} = (\lambda + \sigma_r)\, U (\Sigma + \lambda)^{-1} U^\top + (I - U U^\top).

    The sketch is formed in float64. For matrices without negative eigenvalues.

    Args:
        rank: Number ``r`` of products, and of vectors that are kept.
        seed: Seed of the random vectors.

    Example:
        >>> from influence import GaussNewton
        >>> from projections import Regression
        >>> task = Regression(torch.nn.Linear(2, 1, bias=False))
        >>> data = [(torch.tensor(row), torch.ones(1)) for row in ([2.0, 0.0], [0.0, 1.0])]
        >>> matrix = GaussNewton(fisher="exact", seed=0).of(task, data)  # diag(2, 1/2)
        >>> precondition = Nystroem(rank=2, seed=0).prepare(matrix, 0.5)
        >>> precondition(torch.ones(1, 2))  # the inverse times damping plus 1/2
        tensor([[0.4000, 1.0000]])

    References:
        Frangella, Tropp and Udell, Randomized Nyström preconditioning (SIMAX 2023),
        arXiv:2110.02820, Eq. 1.3 and Alg. 2.1.
    """

    rank: int
    seed: int

    def prepare(self, matrix: SymmetricMatrix, damping: float) -> Precondition:
        """Compute the sketch.

        Raises:
            ConvergenceError: The matrix has negative eigenvalues.
            ValueError: The rank is none, or above the number of parameters.
        """
        check_between("rank", self.rank, 1, matrix.num_dims, "the number of parameters")
        values, vectors = self.sketch(matrix)
        scale = (damping + values[-1]) / (values + damping) - 1
        left, scale = vectors.to(matrix.dtype), scale.to(matrix.dtype)

        def precondition(given: Float[Tensor, "q d"]) -> Float[Tensor, "q d"]:
            return given + ((given @ left) * scale) @ left.mT

        return precondition

    def sketch(self, matrix: SymmetricMatrix) -> tuple[Float[Tensor, " r"], Float[Tensor, "d r"]]:
        """Return the approximate eigenvalues, largest first, and their vectors, in float64."""
        columns = torch.arange(matrix.num_dims, device=matrix.device)
        drawn = normal_entries(self.seed, "nystroem", columns, self.rank)
        test = torch.linalg.qr(drawn.double()).Q
        image = matrix.apply(test.mT.to(matrix.dtype)).mT.double()
        # A shift of the size of rounding keeps the Cholesky factor real; it is taken off again.
        shift = float(torch.finfo(matrix.dtype).eps * image.norm())
        image = image + shift * test
        core = test.mT @ image
        factor, failed = torch.linalg.cholesky_ex((core + core.mT) / 2)
        if bool(failed):
            raise ConvergenceError(
                "a matrix must have no negative eigenvalues to be sketched, and this one has. Use "
                "GaussNewton, or another preconditioner."
            )
        half = torch.linalg.solve_triangular(factor, image.mT, upper=False).mT
        left, singular, _ = torch.linalg.svd(half, full_matrices=False)
        return (singular.square() - shift).clamp(min=0), left
