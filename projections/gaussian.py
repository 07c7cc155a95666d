"""Dense projection by random normal numbers.

Letters: ``n`` examples, ``d`` parameters, ``k`` projected dimensions, ``c`` entries of a
block.

The matrix is drawn by Philox from the seed and the parameter's name, a block of columns
at a time, and never stored: ``2 k d`` operations an example, and a draw eight times as
dear as that of signs, which are the more accurate of the two.
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

LEVELS = 1 << 16  # equally likely values of an entry


@dataclass(frozen=True, kw_only=True)
class Gaussian:
    r"""Project gradients by a matrix with normal entries of variance :math:`1/k`.

    :math:`E\langle Rg, Rh \rangle = \langle g, h \rangle`; for unit vectors with
    :math:`\rho = \langle g, h \rangle` the variance is :math:`(1 + \rho^2) / k`.

    Entries come from 16 random bits each by the inverse of the normal distribution
    function, from a table of 65,536 quantiles scaled to variance 1, so that they have the
    same bits on any device. They end at 4.3, and their fourth moment is 2.9992 instead
    of 3, which takes 0.0008 :math:`\sum_j g_j^2 h_j^2 / k` from the variance above.

    Entry ``(r, c)`` of the block of a parameter takes bits ``16 (r mod 2)`` and following
    of word ``r mod 8 // 2`` of the Philox output with the counter ``(c, r // 8, 0, 0)``:
    for fewer dimensions the first rows are drawn.

    Args:
        num_dims: Number ``k`` of dimensions after the projection.
        seed: Seed that defines the map.

    Example:
        >>> from projections import Component, Gradient, Parameter, Vectors
        >>> component = Component("w", (Parameter("w", (1000,)),))
        >>> gradient = Gradient(component, (Vectors(component, torch.ones(2, 1000)),))
        >>> sketch = torch.zeros(2, 64)
        >>> Gaussian(num_dims=64, seed=0).project(gradient, sketch)
        >>> round(float(sketch[0] @ sketch[1]) / 1000, 2)
        0.92

    References:
        Indyk and Motwani, Approximate nearest neighbors (STOC 1998), Sec. 4, for the
        projection; Devroye, Non-uniform random variate generation (1986), Sec. II.2, for
        the inversion.
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
        add_product(gradient, out, self._entries, scale=1 / sqrt(self.num_dims))

    def _entries(self, name: str, columns: Int[Tensor, " c"]) -> Float[Tensor, "c k"]:
        """Draw the entries of some columns, transposed."""
        return normal_entries(self.seed, name, columns, self.num_dims)


def normal_entries(
    seed: int, name: str, columns: Int[Tensor, " c"], num_rows: int
) -> Float[Tensor, "c k"]:
    """Return some columns, transposed, of the matrix called ``name``, of variance 1.

    Args:
        seed: Seed of the map.
        name: Name of the matrix.
        columns: Which columns.
        num_rows: Number of rows of the matrix.
    """
    words = draw_words(derive_key(seed, name), columns, -(-num_rows // 8))
    levels = words.view(torch.int16).int().bitwise_and_(LEVELS - 1).flatten()
    entries = _quantiles(str(columns.device)).index_select(0, levels)
    return entries.view(len(words), 2 * words.shape[1])[:, :num_rows]


@cache
def _quantiles(device: str) -> Float[Tensor, " 65536"]:
    """Return the middle of each of 65,536 equally likely parts of the normal distribution."""
    middles = (torch.arange(LEVELS, dtype=torch.float64) + 0.5) / LEVELS
    values = torch.special.ndtri(middles)
    return (values / values.square().mean().sqrt()).float().to(device)
