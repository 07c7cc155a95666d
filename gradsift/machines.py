"""How fast a machine computes what plans count: measured here, or from a data sheet.

Letters: ``m n k`` sides of a matrix product, ``p`` products at a time.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from statistics import median
from typing import Protocol

import torch

from influence import Product, Work
from projections import DataError, check_one_of

ENTRIES = 1 << 24  # of the arrays with which bandwidth is measured
LONGEST_SIDE = 8192  # of a product that is timed; longer ones are as fast
LARGEST_BYTES = 1 << 28  # of a matrix that is timed
DECOMPOSED = 768  # widest matrix whose decomposition is timed
REPEATS = 3  # at least, of each thing that is timed
LEAST_SECONDS = 0.15  # for which it is repeated, since machines have faster and slower moments


class Machine(Protocol):
    """What turns counts into seconds."""

    @property
    def name(self) -> str:
        """What it is called."""
        ...

    def product_rate(self, product: Product) -> float:
        """Return the multiply-adds a second of a product of this shape."""
        ...

    @property
    def bandwidth(self) -> float:
        """Bytes a second that elementwise operations read and write."""
        ...

    @property
    def scatter_rate(self) -> float:
        """Numbers a second that are added to where an index says."""
        ...

    def decomposition_seconds(self, width: int) -> float:
        """Return the seconds of the eigenvectors of one symmetric matrix in float64."""
        ...


def seconds_of(work: Work, machine: Machine) -> float:
    """Return how long one device takes, one thing after the other."""
    products = sum(p.operations / machine.product_rate(p) for p in work.products)
    decompositions = sum(machine.decomposition_seconds(width) for width in work.decompositions)
    moved = work.moved / machine.bandwidth + work.scattered / machine.scatter_rate
    return products + decompositions + moved


@dataclass
class MeasuredMachine:
    """This machine, timed at the shapes that a plan asks for, each once.

    Args:
        device: Where to compute.
        dtype: Precision of the products.
    """

    device: torch.device
    dtype: torch.dtype = torch.float32
    _rates: dict[tuple[int, int, int, int], float] = field(default_factory=dict, init=False)
    _scalars: dict[str, float] = field(default_factory=dict, init=False)

    @property
    def name(self) -> str:
        """What was measured."""
        if self.device.type == "cuda":
            return torch.cuda.get_device_name(self.device)
        return f"this machine, {torch.get_num_threads()} threads"

    def product_rate(self, product: Product) -> float:
        """Return the multiply-adds a second of products of this shape, at most 8,192 a side."""
        sides = (product.rows, product.inner, product.columns)
        m, k, n = (max(1, min(side, LONGEST_SIDE)) for side in sides)
        most = LARGEST_BYTES // 4
        # Products with few rows are as slow as their largest matrix is long to read.
        k = max(1, min(max(k, product.inner if m < 64 else k), most // max(m, n)))
        p = max(1, min(product.together, most // (k * max(m, n))))
        if (p, m, k, n) not in self._rates:
            spent = self._seconds(self._products(p, m, k, n))
            self._rates[p, m, k, n] = p * m * k * n / spent
        return self._rates[p, m, k, n]

    @property
    def bandwidth(self) -> float:
        """Bytes a second of a sum of two long vectors into a third, in memory that is there."""
        if "bandwidth" not in self._scalars:
            one, out = torch.ones(2, ENTRIES, device=self.device)
            spent = self._seconds(lambda: torch.add(one, one, out=out))
            self._scalars["bandwidth"] = 3 * 4 * ENTRIES / spent
        return self._scalars["bandwidth"]

    @property
    def scatter_rate(self) -> float:
        """Numbers a second that `torch.scatter_add_` adds to 4,096 bins a row."""
        if "scatter" not in self._scalars:
            generator = torch.Generator(device=self.device).manual_seed(0)
            rows, entries = 8, ENTRIES // 64
            bins = torch.randint(8192, (entries,), device=self.device, generator=generator)
            values = torch.ones(rows, entries, device=self.device)
            out = torch.zeros(rows, 8192, device=self.device)
            index = bins.expand_as(values)
            spent = self._seconds(lambda: out.scatter_add_(1, index, values))
            self._scalars["scatter"] = rows * entries / spent
        return self._scalars["scatter"]

    def decomposition_seconds(self, width: int) -> float:
        """Return the seconds of one decomposition; wide ones grow by the cube of the width."""
        timed = min(width, DECOMPOSED)
        key = f"decomposition {timed}"
        if key not in self._scalars:
            values = torch.randn(timed, timed, device=self.device, dtype=torch.float64)
            square = values @ values.mT
            self._scalars[key] = self._seconds(lambda: torch.linalg.eigh(square))
        return self._scalars[key] * (width / timed) ** 3

    def _products(self, p: int, m: int, k: int, n: int) -> Callable[[], object]:
        """Return a call that computes one product, or several of pieces of longer rows."""
        empty = partial(torch.empty, device=self.device, dtype=self.dtype)
        out = empty(p, m, n)
        if p == 1:
            return partial(torch.mm, empty(m, k).normal_(), empty(k, n).normal_(), out=out[0])
        left, right = (empty(rows, p, k).normal_().movedim(1, 0) for rows in (m, n))
        return partial(torch.bmm, left, right.mT, out=out)

    def _seconds(self, run: Callable[[], object]) -> float:
        """Return the median seconds of a run, after one that does not count."""
        run()
        times: list[float] = []
        while len(times) < REPEATS or sum(times) < LEAST_SECONDS:
            self._wait()
            began = time.perf_counter()
            run()
            self._wait()
            times.append(time.perf_counter() - began)
        return median(times)

    def _wait(self) -> None:
        """Wait until the device is idle."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


@dataclass(frozen=True)
class DataSheet:
    """A machine as its maker describes it, and how much of that a program is taken to reach.

    Args:
        name: What it is called.
        peaks: Multiply-adds a second by precision, half the published operations.
        memory_rate: Bytes a second of its memory.
        dtype: Precision of the products.
        reached: Share of the peaks and of the memory's rate that is taken to be reached.
        cubes: Decomposed cubes of a width a second; no maker publishes it.
    """

    name: str
    peaks: dict[torch.dtype, float]
    memory_rate: float
    dtype: torch.dtype = torch.bfloat16
    reached: float = 0.5
    cubes: float = 5e10

    def product_rate(self, product: Product) -> float:
        """Return a share of the peak, less where a product reads more than it computes."""
        peak = self.peaks[self.dtype] * self.reached
        size = torch.finfo(self.dtype).bits // 8
        m, k, n = product.rows, product.inner, product.columns
        read = size * (m * k + k * n + m * n) / self.bandwidth
        return m * k * n / max(m * k * n / peak, read)

    @property
    def bandwidth(self) -> float:
        """A share of the rate of the memory."""
        return self.memory_rate * self.reached

    @property
    def scatter_rate(self) -> float:
        """One number for each 16 bytes that move: a value, its place, and its sum."""
        return self.bandwidth / 16

    def decomposition_seconds(self, width: int) -> float:
        """Return the seconds of one decomposition."""
        return width**3 / self.cubes


# NVIDIA's data sheets: A100 80GB SXM, H100 SXM and H200 SXM, dense, without sparsity.
HOPPER = {torch.float32: 67e12 / 2, torch.bfloat16: 989e12 / 2, torch.float16: 989e12 / 2}
AMPERE = {torch.float32: 19.5e12 / 2, torch.bfloat16: 312e12 / 2, torch.float16: 312e12 / 2}
SHEETS = {
    "a100": DataSheet("A100 80GB SXM", AMPERE, 2.04e12),
    "h100": DataSheet("H100 SXM", HOPPER, 3.35e12),
    "h200": DataSheet("H200 SXM", HOPPER, 4.8e12),
}


def find_machine(name: str, dtype: torch.dtype) -> Machine:
    """Return a machine by its name.

    Args:
        name: ``"this"``, or one of a data sheet.
        dtype: Precision of the products.

    Raises:
        DataError: The machine does not compute in that precision.
    """
    if name == "this":
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        return MeasuredMachine(device, dtype)
    check_one_of("machine", name, ("this", *SHEETS))
    sheet = SHEETS[name]
    if dtype not in sheet.peaks:
        raise DataError(f"`dtype` must be one of {list(sheet.peaks)} on {sheet.name}. Got {dtype}.")
    return DataSheet(sheet.name, sheet.peaks, sheet.memory_rate, dtype)
