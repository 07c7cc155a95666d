"""Dense projection by random signs.

Letters: ``n`` examples, ``d`` parameters, ``k`` projected dimensions.

The signs are drawn by Philox from the seed and the parameter's name, a block of columns
at a time, and never stored: ``2 k d`` operations an example.
"""

from dataclasses import dataclass
from functools import cache
from math import sqrt

import torch
from jaxtyping import Float, Int
from torch import Tensor

from projections.checks import check_at_least
from projections.dense import add_product, draw_words
from projections.per_example import Gradient
from projections.philox import derive_key


@dataclass(frozen=True, kw_only=True)
class Rademacher:
    r"""Project gradients by a matrix with entries :math:`\pm 1/\sqrt{k}`.

    :math:`E\langle Rg, Rh \rangle = \langle g, h \rangle`; for unit vectors with
    :math:`\rho = \langle g, h \rangle` the variance is
    :math:`(1 + \rho^2 - 2 \sum_j g_j^2 h_j^2) / k`.

    Entry ``(r, c)`` of the block of a parameter is bit ``r mod 128`` of the Philox output
    with the counter ``(c, r // 128, 0, 0)``: for fewer dimensions the first rows are drawn.

    Args:
        num_dims: Number ``k`` of dimensions after the projection.
        seed: Seed that defines the map.

    Example:
        >>> from projections import Component, Gradient, Parameter, Vectors
        >>> component = Component("w", (Parameter("w", (1000,)),))
        >>> gradient = Gradient(component, (Vectors(component, torch.ones(2, 1000)),))
        >>> sketch = torch.zeros(2, 64)
        >>> Rademacher(num_dims=64, seed=0).project(gradient, sketch)
        >>> round(float(sketch[0] @ sketch[1]) / 1000, 2)
        1.12

    References:
        Achlioptas, Database-friendly random projections (JCSS 2003).
    """

    num_dims: int
    seed: int

    def __post_init__(self) -> None:
        """Check the arguments."""
        check_at_least("num_dims", self.num_dims, 1)

    def project(self, gradient: Gradient, out: Float[Tensor, "n k"]) -> None:
        """Add the projection of one component.

        Args:
            gradient: The gradient of one component.
            out: Where to add it.
        """
        add_product(gradient, out, self._signs, scale=1 / sqrt(self.num_dims))

    def _signs(self, name: str, columns: Int[Tensor, " c"]) -> Float[Tensor, "c k"]:
        """Draw the signs of some columns, transposed."""
        return sign_entries(self.seed, name, columns, self.num_dims)


def sign_entries(
    seed: int, name: str, columns: Int[Tensor, " c"], num_rows: int
) -> Float[Tensor, "c k"]:
    """Return some columns, transposed, of the matrix of signs called ``name``.

    Args:
        seed: Seed of the map.
        name: Name of the matrix.
        columns: Which columns.
        num_rows: Number of rows of the matrix.
    """
    words = draw_words(derive_key(seed, name), columns, -(-num_rows // 128))
    numbers = words.view(torch.uint8).int().flatten()
    signs = _signs_of_bytes(str(columns.device)).index_select(0, numbers)
    return signs.view(len(words), 32 * words.shape[1])[:, :num_rows]


@cache
def _signs_of_bytes(device: str) -> Float[Tensor, "256 8"]:
    """Return the signs that the bits of each byte stand for, the lowest bit first."""
    bits = torch.arange(256)[:, None] >> torch.arange(8)
    return ((bits & 1) * 2 - 1).float().to(device)
