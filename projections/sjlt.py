"""Sparse Johnson-Lindenstrauss projection (CountSketch for one sign a coordinate).

Letters: ``n`` examples, ``d`` parameters, ``k`` projected dimensions, ``s`` signs.

Where the coordinates of a parameter go is drawn by Philox from the seed and the
parameter's name, so the map is the same on any device and in any batch. Not handled: a
number of dimensions above 2**30.
"""

from dataclasses import dataclass
from functools import lru_cache
from math import sqrt

import torch
from jaxtyping import Float, Int
from torch import Tensor

from projections.checks import check_at_least, check_between
from projections.per_example import Gradient, TableRows
from projections.philox import derive_key, philox

CACHED_MAPS = 1024  # maps kept between batches: 4 bytes a parameter and sign


@dataclass(frozen=True, kw_only=True)
class SJLT:
    r"""Project gradients by a sparse matrix of random signs.

    Column :math:`j` of :math:`P` has :math:`s` entries :math:`\pm 1/\sqrt{s}` in rows drawn
    independently, hence :math:`E\langle Pg, Ph \rangle = \langle g, h \rangle`. For unit
    vectors with :math:`\rho = \langle g, h \rangle` and :math:`s = 1` the variance is
    :math:`(1 + \rho^2 - 2 \sum_j g_j^2 h_j^2) / k`.

    Args:
        num_dims: Number ``k`` of dimensions after the projection.
        num_signs: Number ``s`` of non-zeros in each column.
        seed: Seed that defines the map.

    Example:
        >>> from projections import Component, Gradient, Parameter, Vectors
        >>> component = Component("w", (Parameter("w", (1000,)),))
        >>> gradient = Gradient(component, (Vectors(component, torch.ones(2, 1000)),))
        >>> sketch = torch.zeros(2, 64)
        >>> SJLT(num_dims=64, seed=0).project(gradient, sketch)
        >>> round(float(sketch[0] @ sketch[1]) / 1000, 2)
        1.28

    References:
        Kane and Nelson, Sparser Johnson-Lindenstrauss transforms (JACM 2014),
        arXiv:1012.1577. Charikar, Chen and Farach-Colton, Finding frequent items in data
        streams (2002), for one sign.
    """

    num_dims: int
    num_signs: int = 1
    seed: int

    def __post_init__(self) -> None:
        """Check the arguments."""
        check_between("num_dims", self.num_dims, 1, 1 << 30)
        check_at_least("num_signs", self.num_signs, 1)

    def project(self, gradient: Gradient, out: Float[Tensor, "n k"]) -> None:
        """Add the projection of one component.

        Args:
            gradient: The gradient of one component.
            out: Where to add it.
        """
        # Bins k..2k-1 stand for a sign of -1, so that no product with signs is needed.
        signed = out.new_zeros(len(out), 2 * self.num_dims)
        (table,) = gradient.component.parameters[:1]
        if len(gradient.terms) == 1 and isinstance(gradient.terms[0], TableRows):
            term = gradient.terms[0]
            columns = torch.arange(table.shape[1], device=out.device)
            coordinates = term.ids[..., None] * table.shape[1] + columns
            values = term.output_grads.flatten(1).to(out.dtype)
            for repeat in range(self.num_signs):
                bins = self._bins(table.name, repeat, coordinates.flatten())
                signed.scatter_add_(1, bins.view(len(out), -1), values)
        else:
            for name, values in gradient.materialize().items():
                flat = values.flatten(1).to(out.dtype)
                for repeat in range(self.num_signs):
                    size, device = flat.shape[1], str(out.device)
                    signed.index_add_(1, _all_bins(self, name, repeat, size, device), flat)
        positive, negative = signed.split(self.num_dims, dim=1)
        out.add_(positive - negative, alpha=1 / sqrt(self.num_signs))

    def _bins(self, name: str, repeat: int, coordinates: Int[Tensor, " c"]) -> Int[Tensor, " c"]:
        """Return the signed bin of these coordinates, in ``[0, 2k)``."""
        words = philox(derive_key(self.seed, f"{name}/{repeat}"), coordinates >> 2)
        picked = words.gather(1, (coordinates & 3)[:, None]).squeeze(1)
        return self._to_bins(picked)

    def _to_bins(self, words: Int[Tensor, " c"]) -> Int[Tensor, " c"]:
        """Turn 32 random bits into a bin (31 bits) and a sign (1 bit)."""
        bins = ((words >> 1) * self.num_dims) >> 31
        return bins + (words & 1) * self.num_dims


@lru_cache(maxsize=CACHED_MAPS)
def _all_bins(settings: SJLT, name: str, repeat: int, size: int, device: str) -> Int[Tensor, " d"]:
    """Return the signed bin of every coordinate of a parameter."""
    key = derive_key(settings.seed, f"{name}/{repeat}")
    words = philox(key, torch.arange(-(-size // 4), device=device)).flatten()[:size]
    return settings._to_bins(words).to(torch.int32)
