"""How the query of an influence index is multiplied by an inverse curvature.

Letters: ``q`` queries, ``k`` kept coordinates, ``r`` rank.

A Gram matrix of few rows is shrunk before it is inverted: towards a multiple of the
identity, or towards the eigenvalues of the full curvature, damped as they are. The second
is EK-FAC where the rows say nothing, and their Gram matrix where they say much.

References:
    Ledoit and Wolf, A well-conditioned estimator for large-dimensional covariance matrices
    (2004), for shrinkage towards a target; Halko, Martinsson and Tropp, Finding structure
    with randomness (2011), arXiv:0909.4061, Sec. 4.5, for the subspace iteration.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from projections import check_between

ITERATIONS = 3  # passes over the rows; each sharpens the subspace
EXTRA = 10  # directions beyond the rank that steady the iteration
Blocks = Callable[[], Iterable[np.ndarray]]


@dataclass(frozen=True)
class Whitening:
    """The inverse of ``matrix + damping * target``.

    Args:
        matrix: A Gram matrix ``k k``, or eigenvalues ``k``.
        damping: How much of the target is added.
        target: What the matrix is shrunk towards, a diagonal or whole; ones if left out.
    """

    matrix: Float[Tensor, "k *k"]
    damping: float
    target: Float[Tensor, "k ..."] | None = None

    def apply(self, queries: Float[Tensor, "q k"]) -> Float[Tensor, "q k"]:
        """Return the inverse times each query.

        A whole inverse is computed in float64 and kept in the queries' type: its rounding
        does what theirs has done already, and reading it is what a single query waits for.
        """
        if self.matrix.dim() == 1:
            return (queries.double() / (self.matrix.double() + self._added)).to(queries.dtype)
        if queries.dtype not in self._inverses:
            self._inverses[queries.dtype] = self._inverse().to(queries.dtype)
        return queries @ self._inverses[queries.dtype]

    @property
    def _added(self) -> Float[Tensor, "k *k"]:
        """What is added, a diagonal or whole."""
        ones = torch.ones(len(self.matrix), dtype=torch.float64)
        return self.damping * (ones if self.target is None else self.target.double())

    @cached_property
    def _inverses(self) -> dict[torch.dtype, Float[Tensor, "k k"]]:
        """The inverse by type, filled as queries come."""
        return {}

    def _inverse(self) -> Float[Tensor, "k k"]:
        """Return the inverse: a product reads it once, where two triangular solves take longer."""
        added = self._added if self._added.dim() == 2 else torch.diag(self._added)
        factor = torch.linalg.cholesky(self.matrix.double() + added)
        return torch.cholesky_inverse(factor)


@dataclass(frozen=True)
class LowRankGram:
    """The main directions of a Gram matrix, in coordinates where its target is the identity.

    The matrix is ``T^1/2 (V diag(values) V^T + rest (I - V V^T)) T^1/2``.

    Args:
        target: ``T``, one number a coordinate.
        basis: ``V``, orthonormal.
        values: Eigenvalues along it.
        rest: Mean eigenvalue of the directions that are left out.
    """

    target: Float[np.ndarray, " k"]
    basis: Float[np.ndarray, "k r"]
    values: Float[np.ndarray, " r"]
    rest: float


@dataclass(frozen=True)
class LowRankWhitening:
    """The inverse of a `LowRankGram` plus ``damping`` times its target.

    Args:
        gram: The Gram matrix.
        damping: How much of the target is added.
    """

    gram: LowRankGram
    damping: float

    def apply(self, queries: Float[Tensor, "q k"]) -> Float[Tensor, "q k"]:
        """Return the inverse times each query, in float64."""
        root = torch.from_numpy(self.gram.target).double().sqrt()
        basis = torch.from_numpy(self.gram.basis).double()
        outside = 1 / (self.gram.rest + self.damping)
        inside = 1 / (torch.from_numpy(self.gram.values).double() + self.damping)
        scaled = queries.double() / root
        found = outside * scaled + (scaled @ basis * (inside - outside)) @ basis.mT
        return (found / root).to(queries.dtype)


def low_rank_gram(
    blocks: Blocks, target: Float[np.ndarray, " k"], *, rank: int, seed: int
) -> LowRankGram:
    """Return the main directions of the mean Gram matrix of rows, by subspace iteration.

    The matrix itself, ``k k``, is never formed.

    Args:
        blocks: Gives the rows anew at each call, a block at a time.
        target: What the matrix is compared with, one positive number a coordinate.
        rank: Number ``r`` of directions.
        seed: Seed of the first subspace.

    Raises:
        ValueError: There are fewer coordinates than that.
    """
    check_between("gram_rank", rank, 1, len(target), "the number of coordinates")
    root = np.sqrt(target)
    width = min(len(target), rank + EXTRA)
    generator = np.random.Generator(np.random.Philox(seed))
    basis = np.linalg.qr(generator.standard_normal((len(target), width)))[0]
    for _ in range(ITERATIONS):
        basis = np.linalg.qr(_mean_product(blocks, root, basis)[0])[0]
    product, trace = _mean_product(blocks, root, basis)
    small = basis.T @ product
    values, rotation = np.linalg.eigh((small + small.T) / 2)
    values, found = values[::-1][:rank], basis @ rotation[:, ::-1][:, :rank]
    rest = max(trace - float(values.sum()), 0.0) / max(len(target) - rank, 1)
    return LowRankGram(target, found, values, rest)


def _mean_product(
    blocks: Blocks, root: Float[np.ndarray, " k"], basis: Float[np.ndarray, "k r"]
) -> tuple[Float[np.ndarray, "k r"], float]:
    """Return the mean Gram matrix of scaled rows times a basis, and its trace."""
    product, trace, count = np.zeros_like(basis), 0.0, 0
    for block in blocks():
        rows = np.asarray(block, dtype=np.float64) / root
        product += rows.T @ (rows @ basis)
        trace += float(np.square(rows).sum())
        count += len(rows)
    return product / count, trace / count
