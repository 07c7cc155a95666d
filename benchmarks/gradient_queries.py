"""Queries of a gradient store: exact from disk, and by FAISS, cold and warm, with recall.

Rows lie near a random subspace, as projected gradients do, with noise; the queries are
drawn likewise. They are written a shard at a time, so that a million of them need no
memory: 100,000 rows are kept in float16 and more in int8. Cold is the first search after
the files were dropped from the page cache.
"""

import gc
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import faiss
import numpy as np
import torch
from measuring import table

from projections import (
    DiskIndex,
    FaissIndex,
    GradientStore,
    Reranked,
    RowIndex,
    SearchIndex,
    StoreWriter,
    Table,
    faiss_beside,
)

SHARD = 2048  # rows in a shard
RANK = 64  # dimensions of the subspace
NOISE = 0.5  # share of the noise's standard deviation in each coordinate
NOISES = 2048  # vectors of noise, two of which are added to a row
MOST_FLOAT16 = 200_000  # rows kept in float16
COUNTS = (1, 256)  # queries at a time
K = 10
CANDIDATES = 300
SMALL = ("Flat", "SQ8", "IVF256,SQ8", "PQ512x4fs", "RaBitQ", "IVF256,RaBitQ", "HNSW16")
LARGE = (  # at a million rows: those that fit the memory
    "PQ512x4fs",
    "RaBitQ",
    "IVF1024(PCA64,Flat),SQ8_direct_signed",
    "IVF1024(PCA64,Flat),RaBitQ",
    "HNSW8_SQ8",
)
QUICK = ("Flat", "IVF16,SQ8", "RaBitQ")


def query_report(sizes: Sequence[int], num_dims: int, rounds: int) -> list[str]:
    """Build stores of these sizes and time queries on them."""
    faiss.omp_set_num_threads(torch.get_num_threads())
    return [text for size in sizes for text in one_size(size, num_dims, rounds)]


def one_size(num_rows: int, num_dims: int, rounds: int) -> list[str]:
    """Return the table of one store."""
    source = Rows(num_dims)
    dtype = "float16" if num_rows <= MOST_FLOAT16 else "int8"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "store"
        began = time.perf_counter()
        write_store(source, path, num_rows, dtype)
        written = time.perf_counter() - began
        queries = {count: source.draw(count, seed=-count) for count in COUNTS}
        lines = [measure(f"exact, {dtype} store", exact_from(path), path, queries, rounds, None)]
        wanted = SearchIndex(GradientStore.open(path)).search(queries[max(COUNTS)], K).positions
        factories = QUICK if num_rows < 10_000 else SMALL if num_rows <= MOST_FLOAT16 else LARGE
        for factory in factories:
            lines += faiss_lines(factory, path, queries, rounds, wanted)
    head = ["index", "seconds to build", "MB"]
    for count in COUNTS:
        head += [f"ms cold, {count}", f"ms warm, {count}"]
    return [
        f"## Queries of {num_rows:,} rows",
        f"{num_dims:,} dimensions, k = {K}; milliseconds for {COUNTS[0]} and {COUNTS[1]} queries, "
        f"one end, median of {rounds}. Writing the store took {written:.0f} s. IVF looks into a "
        f"sixteenth of its lists; '+ {CANDIDATES}' scores as many candidates again by stored rows. "
        "Cold: files dropped from the page cache, opened and searched.",
        table([*head, f"recall@{K}"], lines),
    ]


@dataclass
class Rows:
    """Rows near a random subspace, each block a function of its number."""

    num_dims: int

    def __post_init__(self) -> None:
        """Draw the subspace and the noise."""
        random = np.random.default_rng(0)
        self.basis = random.standard_normal((RANK, self.num_dims), np.float32) / RANK**0.5
        noise = random.standard_normal((NOISES, self.num_dims), np.float32)
        self.noise = np.float32(NOISE / 2**0.5) * noise

    def draw(self, count: int, *, seed: int) -> np.ndarray:
        """Return some rows."""
        random = np.random.default_rng((0, seed) if seed >= 0 else (1, -seed))
        rows = random.standard_normal((count, RANK), np.float32) @ self.basis.astype(np.float32)
        for _ in range(2):
            rows += self.noise[random.integers(0, NOISES, count)]
        return rows


def write_store(source: Rows, path: Path, num_rows: int, dtype: str) -> None:
    """Write the rows a shard at a time."""
    writer = StoreWriter(path, {}, num_rows=num_rows, dtype=dtype)
    for shard, start in enumerate(range(0, num_rows, SHARD)):
        rows = source.draw(min(SHARD, num_rows - start), seed=shard)
        writer.write(shard, Table(np.arange(start, start + len(rows)), {"sketch": rows}))


def exact_from(path: Path) -> Callable[[], RowIndex]:
    """Return what opens a store for exact search."""
    return lambda: SearchIndex(GradientStore.open(path))


def faiss_lines(
    factory: str, path: Path, queries: dict[int, np.ndarray], rounds: int, wanted: np.ndarray
) -> list[list[str]]:
    """Return the lines of one FAISS index, alone and with candidates scored again."""
    began = time.perf_counter()
    faiss_beside(GradientStore.open(path), factory)
    built = f"{time.perf_counter() - began:.0f}"
    gc.collect()

    def alone() -> FaissIndex | DiskIndex:
        return faiss_beside(GradientStore.open(path), factory)

    def reranked() -> Reranked:
        return Reranked(alone(), GradientStore.open(path), CANDIDATES)

    size = 0
    for found in (path / "faiss").glob(f"{factory}-*"):
        files = found.rglob("*") if found.is_dir() else [found]
        size += sum(file.stat().st_size for file in files)
    lines = [measure(f"`{factory}`", alone, path, queries, rounds, wanted)]
    if factory not in ("Flat", "SQ8"):
        name = f"`{factory}` + {CANDIDATES}"
        lines.append(measure(name, reranked, path, queries, rounds, wanted))
    for line in lines:
        line[1:3] = [built, f"{size / 2**20:.0f}"]
    return lines


def measure(
    name: str,
    open_index: Callable[[], RowIndex],
    path: Path,
    queries: dict[int, np.ndarray],
    rounds: int,
    wanted: np.ndarray | None,
) -> list[str]:
    """Return the line of one index: cold and warm times, and recall."""
    cells = []
    found = np.empty(0)
    for asked in queries.values():
        forget(path)
        began = time.perf_counter()
        index = open_index()
        index.search(asked, K)
        cold = time.perf_counter() - began
        warm = []
        for _ in range(rounds):
            began = time.perf_counter()
            found = index.search(asked, K).positions
            warm.append(time.perf_counter() - began)
        del index
        gc.collect()
        cells += [f"{1e3 * cold:.0f}", f"{1e3 * median(warm):.1f}"]
    if wanted is None:
        recall = "1.00"
    else:
        pairs = zip(found, wanted, strict=True)
        recall = f"{np.mean([len(np.intersect1d(a, b)) / K for a, b in pairs]):.2f}"
    size = sum(file.stat().st_size for file in path.glob("shard-*/*.npy")) / 2**20
    return [name, "", f"{size:.0f}", *cells, recall]


def forget(path: Path) -> None:
    """Drop the files of a store from the page cache, where the system can."""
    if not hasattr(os, "posix_fadvise"):
        return
    for file in path.rglob("*"):
        if file.is_file():
            handle = os.open(file, os.O_RDONLY)
            try:
                os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(handle)
