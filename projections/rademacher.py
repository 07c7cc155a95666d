"""Dense projection by random signs.

Letters: ``n`` examples, ``d`` parameters, ``k`` projected dimensions.

The signs are drawn by Philox from the seed and the parameter's name, a block of columns
at a time, and never stored. The most accurate of the random projections and by far the
dearest: ``2 k d`` operations an example.
"""

from dataclasses import dataclass
from math import sqrt

import torch
from jaxtyping import Float
from torch import Tensor

from projections.checks import check_at_least
from projections.per_example import Gradient
from projections.philox import derive_key, philox

BLOCK_ENTRIES = 1 << 24  # entries of the matrix drawn at a time: 64 MB in float32


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
        width = max(1, BLOCK_ENTRIES // self.num_dims)
        for name, values in gradient.materialize().items():
            flat = values.flatten(1).to(out.dtype)
            for start in range(0, flat.shape[1], width):
                block = flat[:, start : start + width]
                signs = self._signs(name, start, block.shape[1], out)
                out.addmm_(block, signs, alpha=1 / sqrt(self.num_dims))

    def _signs(self, name: str, start: int, width: int, like: Tensor) -> Float[Tensor, "width k"]:
        """Draw the signs of some columns, transposed."""
        num_words = -(-self.num_dims // 128)
        columns = torch.arange(start, start + width, device=like.device)
        low = columns.repeat_interleave(num_words)
        high = torch.arange(num_words, device=like.device).repeat(width)
        words = philox(derive_key(self.seed, name), low, high).to(torch.int32)
        shifts = torch.arange(32, dtype=torch.int32, device=like.device)
        bits = (words[..., None] >> shifts).bitwise_and_(1).view(width, -1)
        return bits[:, : self.num_dims].to(like.dtype).mul_(2).sub_(1)
