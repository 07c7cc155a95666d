r"""The inverse of a damped mean of few outer products, by a system as large as they are many.

Letters: ``m`` rows (gradients), ``q`` vectors, ``d`` dimensions.

.. math::
    \Big(\lambda I + \frac1m G^\top G\Big)^{-1} x
    = \frac1\lambda \big(x - G^\top (m \lambda I + G G^\top)^{-1} G x\big)

This is the estimate of M-FAC, whose recursion over the rows comes to the same numbers in
``m`` steps; here it is two matrix products and one Cholesky factor, in float64.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from influence.solver import check_damping
from projections import check_at_least


@dataclass(frozen=True)
class DualInverse:
    """A damped inverse that knows its rows.

    Args:
        rows: The rows ``G``.
        damping: What is added to every eigenvalue; positive.
        gram: Their products ``G G^T``; computed if left out.

    Example:
        >>> DualInverse(torch.tensor([[2.0, 0.0]]), 1.0).apply(torch.ones(1, 2))
        tensor([[0.2000, 1.0000]])

    References:
        Frantar, Kurtic and Alistarh, M-FAC: Efficient matrix-free approximations of
        second-order information (NeurIPS 2021), arXiv:2107.03356, Sec. 3.
    """

    rows: Float[Tensor, "m d"]
    damping: float
    gram: Float[Tensor, "m m"] | None = None

    def __post_init__(self) -> None:
        """Check the arguments."""
        check_damping(self.damping)
        check_at_least("num_rows", len(self.rows), 1)

    def apply(self, vectors: Float[Tensor, "q d"]) -> Float[Tensor, "q d"]:
        """Return the inverse times vectors, in their dtype."""
        products = vectors.to(self.rows) @ self.rows.mT
        inner = torch.cholesky_solve(products.double().mT, self._factor).mT
        return (vectors - inner.to(self.rows) @ self.rows) / self.damping

    def self_products(
        self, products: Float[Tensor, "n m"], squares: Float[Tensor, " n"]
    ) -> Float[Tensor, " n"]:
        """Return ``x^T inverse x`` of vectors that are not at hand.

        Args:
            products: Their inner products with the rows.
            squares: Their squared norms.
        """
        half = torch.linalg.solve_triangular(self._factor, products.double().mT, upper=False)
        return (squares.double() - half.square().sum(0)) / self.damping

    def diagonal(self) -> Float[Tensor, " d"]:
        """Return the diagonal of the inverse."""
        half = torch.linalg.solve_triangular(self._factor, self.rows.double(), upper=False)
        return ((1 - half.square().sum(0)) / self.damping).to(self.rows)

    @cached_property
    def _factor(self) -> Float[Tensor, "m m"]:
        """The Cholesky factor of the damped products."""
        gram = row_products(self.rows) if self.gram is None else self.gram
        size = len(self.rows)
        return torch.linalg.cholesky(gram + size * self.damping * torch.eye(size).to(gram))


class GradientWindow:
    """The last few gradients of a run: each new one takes the place of the oldest.

    Their products are kept up to date, so that a step costs as much as the products of the new
    rows with all, and an inverse one Cholesky factor.

    Args:
        num_rows: Number ``m`` of gradients that are kept.

    Example:
        >>> window = GradientWindow(2)
        >>> for value in (1.0, 2.0, 3.0):
        ...     window.push(torch.tensor([[value]]))
        >>> window.rows  # the third has replaced the first
        tensor([[3.],
                [2.]])
        >>> window.inverse(0.5).apply(torch.ones(1, 1))  # 1 / (1/2 + (9 + 4) / 2)
        tensor([[0.1429]])

    References:
        Frantar, Kurtic and Alistarh, M-FAC (NeurIPS 2021), arXiv:2107.03356, Sec. 3, the
        dynamic algorithm.
    """

    def __init__(self, num_rows: int) -> None:
        """Start with nothing."""
        check_at_least("num_rows", num_rows, 1)
        self.num_rows = num_rows
        self._rows = torch.empty(0, 0)
        self._gram = torch.empty(0, 0, dtype=torch.float64)
        self._next = 0

    def __len__(self) -> int:
        """Return the number of gradients that are there."""
        return len(self._rows)

    @property
    def rows(self) -> Float[Tensor, "m d"]:
        """The gradients; the order is that of the places, not of time."""
        return self._rows

    @property
    def gram(self) -> Float[Tensor, "m m"]:
        """Their products, in float64."""
        return self._gram

    def push(self, gradients: Float[Tensor, "n d"]) -> None:
        """Take gradients, one a row, the oldest first.

        Raises:
            ValueError: They have another number of dimensions than those before.
        """
        if len(self) and gradients.shape[1] != self._rows.shape[1]:
            raise ValueError(
                f"gradients must have the {self._rows.shape[1]} dimensions of those before. Got "
                f"{gradients.shape[1]}."
            )
        fresh = gradients[-self.num_rows :]
        self._grow(fresh)
        places = (self._next + torch.arange(len(fresh))) % self.num_rows
        self._rows[places] = fresh.to(self._rows)
        products = row_products(self._rows[places], self._rows)
        self._gram[places], self._gram[:, places] = products, products.mT
        self._next = int((self._next + len(fresh)) % self.num_rows)

    def inverse(self, damping: float) -> DualInverse:
        """Return the damped inverse of the mean outer product of what is there.

        Args:
            damping: What is added to every eigenvalue.
        """
        return DualInverse(self._rows, damping, self._gram)

    def _grow(self, fresh: Float[Tensor, "n d"]) -> None:
        """Make room for new rows while the window is not full."""
        size = min(self.num_rows, len(self) + len(fresh))
        if size == len(self):
            return
        rows = fresh.new_zeros(size, fresh.shape[1])
        gram = torch.zeros(size, size, dtype=torch.float64, device=fresh.device)
        rows[: len(self)], gram[: len(self), : len(self)] = (
            self._rows.to(rows) if len(self) else rows[:0],
            self._gram.to(gram),
        )
        self._rows, self._gram = rows, gram


def row_products(
    rows: Float[Tensor, "m d"], others: Float[Tensor, "n d"] | None = None
) -> Float[Tensor, "m n"]:
    """Return inner products of rows, summed in float64 a stretch of coordinates at a time."""
    right = rows if others is None else others
    total = torch.zeros(len(rows), len(right), dtype=torch.float64, device=rows.device)
    step = max(1, (1 << 22) // max(1, len(rows) + len(right)))
    for start in range(0, rows.shape[1], step):
        some = slice(start, start + step)
        total += rows[:, some].double() @ right[:, some].double().mT
    return total
