"""Inner products of queries with rows in the type that they are kept in.

Letters: ``q`` queries, ``b`` rows, ``d`` dimensions of a row.

Rows of 8 bits are not widened where the processor multiplies such numbers by itself: a query is
written in three digits of base 256, each an int8 number, and all sums are exact. What is lost
is a query's rounding to 2^-23 of its largest entry, as in float32. Other rows become float32, a
few at a time.
"""

from functools import cache, cached_property

import torch
from jaxtyping import Float, Int, Num
from torch import Tensor

WIDENED_ENTRIES = 1 << 20  # entries made float32 at a time: few enough to stay in a cache
SUMS = 1 << 20  # sums of digits held at a time
BASE = 256
NUM_DIGITS = 3
LARGEST = 127 * BASE ** (NUM_DIGITS - 1)  # what the largest entry of a query becomes
MOST_DIMS = (1 << 31) // (1 << 14) - 1  # above which a sum of digits may not fit 32 bits


class RowProducts:
    """Queries, ready to be multiplied with rows.

    Args:
        queries: One query a row, in float32, on the device where products are computed.

    Example:
        >>> products = RowProducts(torch.tensor([[0.5, -2.0]]))
        >>> out = torch.empty(1, 3)
        >>> products.write(torch.tensor([[1, 1], [2, 0], [0, 100]], dtype=torch.int8), out)
        >>> out
        tensor([[  -1.5000,    1.0000, -200.0000]])
    """

    def __init__(self, queries: Float[Tensor, "q d"]) -> None:
        """Keep the queries."""
        self.queries = queries
        self._wide = queries.new_empty(0, queries.shape[1])

    def write(self, rows: Num[Tensor, "b d"], out: Float[Tensor, "q b"]) -> None:
        """Write the inner products of all queries with some rows.

        Args:
            rows: Rows of any type, on any device.
            out: Where to write them.
        """
        if rows.dtype == torch.float32:
            torch.mm(self.queries, rows.to(self.queries.device).T, out=out)
        elif rows.dtype == torch.int8 and self._in_integers:
            self._write_integers(rows, out)
        else:
            self._write_widened(rows, out)

    @cached_property
    def _in_integers(self) -> bool:
        """Whether products with int8 rows are computed in integers."""
        on_cpu = self.queries.device.type == "cpu"
        return on_cpu and self.queries.shape[1] <= MOST_DIMS and multiplies_integers()

    def _write_integers(self, rows: Int[Tensor, "b d"], out: Float[Tensor, "q b"]) -> None:
        """Write sums of digits, each times its place and the query's unit."""
        parts, units = self._digits
        count = len(self.queries)
        height = max(1, SUMS // max(1, NUM_DIGITS * count))
        for start in range(0, len(rows), height):
            some = rows[start : start + height]
            sums = [torch.ops.aten._int_mm(some, part) for part in parts]
            if len(sums) < NUM_DIGITS:
                sums = sums[0].split(max(1, count), 1)
            total = sums[0].double()
            for lower in sums[1:]:
                total.mul_(BASE).add_(lower)
            torch.mul(total.T, units[:, None], out=out[:, start : start + height])

    @cached_property
    def _digits(self) -> tuple[tuple[Int[Tensor, "d _"], ...], Float[Tensor, " q"]]:
        """The digits of the queries, highest first, and what the lowest is worth.

        Those of a single query are apart, since a product with one column is the fastest.
        """
        wide = self.queries.double()
        largest = wide.abs().amax(1) if wide.shape[1] else wide.new_zeros(len(wide))
        units = torch.where(largest > 0, largest, 1) / LARGEST
        rest, digits = (wide / units[:, None]).round().long(), []
        for _ in range(NUM_DIGITS):
            low = (rest + BASE // 2) % BASE - BASE // 2
            digits.append(low.to(torch.int8))
            rest = (rest - low) // BASE
        columns = torch.cat(digits[::-1]).T.contiguous()
        return columns.split(1 if len(wide) == 1 else max(1, columns.shape[1]), 1), units

    def _write_widened(self, rows: Num[Tensor, "b d"], out: Float[Tensor, "q b"]) -> None:
        """Write products with rows that are widened in one buffer."""
        height = max(1, WIDENED_ENTRIES // max(1, rows.shape[1]))
        if len(self._wide) < min(height, len(rows)):
            self._wide = self.queries.new_empty(min(height, len(rows)), rows.shape[1])
        for some, found in zip(rows.split(height), out.split(height, 1), strict=True):
            wide = self._wide[: len(some)].copy_(some.to(self.queries.device))
            torch.mm(self.queries, wide.T, out=found)


@cache
def multiplies_integers() -> bool:
    """Tell whether this processor has products of int8 numbers, and PyTorch computes them exactly.

    Those that have none saturate or are slow, and PyTorch before 2.10 does not tell.
    """
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()
    if not any(capabilities.get(name) for name in ("avx512_vnni", "avx_vnni", "amx_int8")):
        return False
    extremes = torch.tensor([-128, 127, -127, 1, 0], dtype=torch.int8)
    left = extremes.repeat(7 * 64).view(-1, 64)
    right = extremes.repeat(64)[: 64 * 3].view(64, 3)
    try:
        found = torch.ops.aten._int_mm(left, right)
    except (AttributeError, RuntimeError):
        return False
    return torch.equal(found.long(), left.long() @ right.long())
