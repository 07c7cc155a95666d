"""Subsampled randomised Hadamard transform, block by block.

Letters: ``n`` examples, ``t`` positions, ``d`` parameters, ``k`` projected dimensions,
``b`` entries of a block (``k`` rounded up to a power of two), ``c`` entries of a piece,
``m`` blocks.

Signs and rows are drawn by Philox from the seed and the parameter's name and never
stored. Memory is that of some blocks: a gradient is neither padded nor held as a whole.
"""

from dataclasses import dataclass
from functools import cache
from math import sqrt

import torch
from jaxtyping import Float, Int
from torch import Tensor

from projections.checks import check_between
from projections.components import Parameter
from projections.factors import TableRows
from projections.hadamard import next_power_of_two, walsh_hadamard
from projections.per_example import Gradient
from projections.philox import derive_key, distinct, draw_subset
from projections.rademacher import sign_entries

CHUNK_ENTRIES = {"cpu": 1 << 18}  # entries transformed at a time, by device


@dataclass(frozen=True, kw_only=True)
class SRHT:
    r"""Project gradients by Hadamard matrices between random signs.

    A parameter's gradient is cut into blocks :math:`x_j` of ``b`` entries, and

    .. math:: y = \frac{1}{\sqrt{k}} \sum_j D'_j \, S H D_j \, x_j

    with the Hadamard matrix :math:`H`, diagonal matrices of random signs :math:`D_j` and
    :math:`D'_j`, and :math:`S`, which keeps ``k`` rows drawn without replacement: all of
    them where ``k`` is a power of two. :math:`E\langle y, y' \rangle = \langle x, x'
    \rangle`, with the variance

    .. math:: \frac{1}{k} \Big( \sum_{j \neq l} \big( |x_j|^2 |x'_l|^2
        + \langle x_j, x'_j \rangle \langle x_l, x'_l \rangle \big)
        + \frac{b - k}{b - 1} \sum_j \big( |x_j|^2 |x'_j|^2 + \langle x_j, x'_j \rangle^2
        - 2 \sum_i x_{ji}^2 x'^2_{ji} \big) \Big)

    which is below that of dense signs, since a block alone keeps its inner products.

    Args:
        num_dims: Number ``k`` of dimensions after the projection, at most 65,536.
        seed: Seed that defines the map.

    Example:
        >>> from projections import Component, Gradient, Parameter, Vectors
        >>> component = Component("w", (Parameter("w", (1000,)),))
        >>> gradient = Gradient(component, (Vectors(component, torch.ones(2, 1000)),))
        >>> sketch = torch.zeros(2, 64)
        >>> SRHT(num_dims=64, seed=0).project(gradient, sketch)
        >>> round(float(sketch[0] @ sketch[1]) / 1000, 2)
        0.91

    References:
        Ailon and Chazelle, Approximate nearest neighbors and the fast Johnson-Lindenstrauss
        transform (STOC 2006); Balabanov et al., Block subsampled randomized Hadamard
        transform for Nystroem approximation on distributed architectures (ICML 2023),
        arXiv:2210.11295, for the blocks.
    """

    num_dims: int
    seed: int

    def __post_init__(self) -> None:
        """Check the arguments."""
        check_between("num_dims", self.num_dims, 1, 1 << 16)

    @property
    def block(self) -> int:
        """Number ``b`` of entries of a block."""
        return next_power_of_two(self.num_dims)

    def project(self, gradient: Gradient, out: Float[Tensor, "n k"]) -> None:
        """Add the projection of one component.

        Args:
            gradient: The gradient of one component.
            out: Where to add it.
        """
        for term in gradient.terms:  # the map is linear, so terms need not be summed first
            if isinstance(term, TableRows):
                self._add_rows(term, out)
                continue
            for piece in term.pieces():
                values = piece.values.to(out.dtype)
                self._add_piece(piece.parameter, piece.start, values, out[piece.examples])

    def _add_piece(
        self, parameter: Parameter, start: int, values: Float[Tensor, "n c"], out: Tensor
    ) -> None:
        """Add neighbouring entries, some blocks at a time."""
        height = max(1, self._chunk(out) // max(1, len(values)))
        first, end = start // self.block, start + values.shape[1]
        for begin in range(first, -(-end // self.block), height):
            blocks = torch.arange(
                begin, min(begin + height, -(-end // self.block)), device=out.device
            )
            low, high = begin * self.block, (begin + len(blocks)) * self.block
            part = values[:, max(low - start, 0) : high - start]
            if start > low or end < high:  # pieces need not begin and end with blocks
                part = torch.nn.functional.pad(part, (max(start - low, 0), max(high - end, 0)))
            self._add_blocks(parameter, blocks, part.unflatten(1, (len(blocks), -1)), out)

    def _add_rows(self, term: TableRows, out: Float[Tensor, "n k"]) -> None:
        """Add the rows of a table that were looked up, each in the blocks that it lies in."""
        (table,) = term.component.parameters
        width = table.shape[1]
        aligned = self.block % width == 0 or width % self.block == 0
        span = -(-width // self.block) + (0 if aligned else 1)
        height = max(1, self._chunk(out) // max(1, span * len(out)))
        inner = torch.arange(width, device=out.device)
        for ids, grads in zip(
            term.ids.split(height, 1), term.output_grads.split(height, 1), strict=True
        ):
            first, offset = ids * width // self.block, ids * width % self.block
            padded = out.new_zeros(*ids.shape, span * self.block)
            padded.scatter_(2, offset[..., None] + inner, grads.to(out.dtype))
            blocks = first[..., None] + torch.arange(span, device=out.device)
            self._add_blocks(
                table, blocks.flatten(1), padded.view(*blocks.flatten(1).shape, self.block), out
            )

    def _add_blocks(
        self,
        parameter: Parameter,
        blocks: Int[Tensor, "*n m"],
        values: Float[Tensor, "n m b"],
        out: Float[Tensor, "n k"],
    ) -> None:
        """Add some blocks, the same of all examples or others of each."""
        drawn, places = distinct(blocks) if blocks.dim() == 2 else (blocks, slice(None))
        before = sign_entries(self.seed, f"{parameter.name}/in", drawn, self.block)
        after = sign_entries(self.seed, f"{parameter.name}/out", drawn, self.num_dims)
        signed = values * before.to(values.dtype)[places]
        mixed = walsh_hadamard(signed.flatten(0, 1)).view(values.shape)
        if self.num_dims < self.block:
            rows = _sampled_rows(self.seed, self.num_dims, str(out.device))
            mixed = mixed.index_select(2, rows)
        mixed.mul_(after.to(values.dtype)[places])
        out.add_(mixed.sum(1), alpha=1 / sqrt(self.num_dims))

    def _chunk(self, out: Tensor) -> int:
        """Return how many blocks of one example are transformed at a time."""
        return max(1, CHUNK_ENTRIES.get(out.device.type, 1 << 26) // self.block)


@cache
def _sampled_rows(seed: int, num_dims: int, device: str) -> Int[Tensor, " k"]:
    """Return which rows of the Hadamard matrix are kept, the same for all blocks."""
    key = derive_key(seed, "rows of SRHT")
    return draw_subset(key, next_power_of_two(num_dims), num_dims).to(device)
