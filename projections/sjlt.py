"""Sparse Johnson-Lindenstrauss projection (CountSketch for one sign a coordinate).

Letters: ``n`` examples, ``d`` parameters, ``k`` projected dimensions, ``s`` signs, ``b = 2k``
signed bins, ``r`` rows of a table, ``o`` features of a row.

Where the coordinates of a parameter go is drawn by Philox from the seed and the
parameter's name, so the map is the same on any device and in any batch. Not handled: a
number of dimensions above 2**30.
"""

from collections import OrderedDict
from dataclasses import dataclass
from math import sqrt

import torch
from jaxtyping import Float, Int
from torch import Tensor

from projections.checks import check_at_least, check_between
from projections.components import Parameter
from projections.factors import Piece, TableRows
from projections.per_example import Gradient
from projections.philox import derive_key, distinct, philox

DRAWN = 1 << 18  # coordinates drawn at a time, a multiple of 4; 2 MB for each intermediate
CACHED_ENTRIES = 1 << 29  # entries of maps kept between batches, 4 bytes each
_maps: "OrderedDict[tuple[object, ...], Tensor]" = OrderedDict()  # the least recently used first


@dataclass(frozen=True, kw_only=True)
class SJLT:
    r"""Project gradients by a sparse matrix of random signs.

    Column :math:`j` of :math:`P` has :math:`s` entries :math:`\pm 1/\sqrt{s}` in rows drawn
    independently, hence :math:`E\langle Pg, Ph \rangle = \langle g, h \rangle`. For unit
    vectors with :math:`\rho = \langle g, h \rangle` the variance is
    :math:`(1 + \rho^2 - \frac{2}{s} \sum_j g_j^2 h_j^2) / k`.

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
        for term in gradient.terms:  # the map is linear, so terms need not be summed first
            if isinstance(term, TableRows):
                self._add_rows(term, signed)
                continue
            for piece in term.pieces():
                for repeat in range(self.num_signs):
                    self._add_piece(piece, repeat, signed[piece.examples])
        positive, negative = signed.split(self.num_dims, dim=1)
        out.add_(positive - negative, alpha=1 / sqrt(self.num_signs))

    def _add_piece(self, piece: Piece, repeat: int, signed: Float[Tensor, "n b"]) -> None:
        """Add entries to their bins."""
        values = piece.values.to(signed.dtype)
        name, size = piece.parameter.name, piece.parameter.size
        bins = _all_bins(self, name, repeat, size, str(signed.device))
        here = bins[piece.start : piece.start + values.shape[1]]
        # Maps are kept in 32 bits; older torch versions want 64 to scatter by.
        signed.scatter_add_(1, here.long().expand_as(values), values)

    def _add_rows(self, term: TableRows, signed: Float[Tensor, "n b"]) -> None:
        """Add the entries of the rows of a table that were looked up."""
        (table,) = term.component.parameters
        rows, places = distinct(term.ids)
        for repeat in range(self.num_signs):
            bins = self._row_bins(table, repeat, rows)[places].flatten(1)
            signed.scatter_add_(1, bins, term.output_grads.flatten(1).to(signed.dtype))

    def _row_bins(
        self, table: Parameter, repeat: int, rows: Int[Tensor, " r"]
    ) -> Int[Tensor, "r o"]:
        """Return the signed bins, in ``[0, 2k)``, of all entries of some rows of a table."""
        width = table.shape[1]
        firsts = rows[:, None] * width
        # Each counter of Philox gives the words of four neighbours; a row may begin within.
        counters = (firsts >> 2) + torch.arange(width // 4 + 2, device=rows.device)
        words = philox(derive_key(self.seed, f"{table.name}/{repeat}"), counters.flatten())
        within = (firsts & 3) + torch.arange(width, device=rows.device)
        return self._to_bins(words.view(*counters.shape, 4).flatten(1).gather(1, within))

    def _to_bins(self, words: Int[Tensor, "..."]) -> Int[Tensor, "..."]:
        """Turn 32 random bits into a bin (31 bits) and a sign (1 bit)."""
        bins = ((words >> 1) * self.num_dims) >> 31
        return bins + (words & 1) * self.num_dims


def _all_bins(settings: SJLT, name: str, repeat: int, size: int, device: str) -> Int[Tensor, " d"]:
    """Return the signed bin of every coordinate of a parameter, kept while there is room."""
    place = (settings, name, repeat, size, device)
    bins = _maps.pop(place, None)
    if bins is None:
        bins = _draw_bins(settings, name, repeat, size, device)
        while _maps and sum(map(len, _maps.values())) + size > CACHED_ENTRIES:
            _maps.popitem(last=False)
    if size <= CACHED_ENTRIES:
        _maps[place] = bins
    return bins


def _draw_bins(settings: SJLT, name: str, repeat: int, size: int, device: str) -> Int[Tensor, " d"]:
    """Draw the signed bin of every coordinate of a parameter."""
    key = derive_key(settings.seed, f"{name}/{repeat}")
    bins = torch.empty(size, dtype=torch.int32, device=device)
    for start in range(0, size, DRAWN):
        some = bins[start : start + DRAWN]
        counters = torch.arange(start // 4, -(-(start + len(some)) // 4), device=device)
        some.copy_(settings._to_bins(philox(key, counters).flatten()[: len(some)]))
    return bins
