"""What exact search costs, against a bare matrix product, and FAISS indexes beside it.

The rows lie near a random subspace, as projected gradients do, with noise; the queries
are drawn likewise. Exact search returns both ends, the most helpful and the most harmful
rows; the bare run is one product and one top-k, of one end only. Rows of int8 are searched in
integers, and widened to float32 as on a processor that cannot multiply such numbers.
"""

import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from time import perf_counter
from unittest.mock import patch

import faiss
import numpy as np
import torch
from measuring import Times, interleave, options, parse, publish, table

from projections import FaissIndex, GradientStore, SearchIndex, StoreWriter, Table, row_products

BOUND = 1.3
BARE, BOTH = "product + top-k", "product + top-k + bottom-k"
EXACT, STORED = "SearchIndex, both ends", "the same from a store"
INTEGERS, WIDENED = "int8 rows, in integers", "int8 rows, widened"
SHARD = 1024  # rows in a shard of the store
RANK = 64  # dimensions of the subspace
NOISE = 0.5  # share of the noise's standard deviation in each coordinate


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--num-dims", type=int, default=1024)
    parser.add_argument("--queries", type=int, nargs="+", default=[1, 32, 256])
    parser.add_argument("-k", type=int, default=10)
    parser.add_argument(
        "--faiss", nargs="*", default=["Flat", "IVF256,Flat", "SQ8", "HNSW32"], metavar="FACTORY"
    )
    chosen = parse(parser)
    if chosen.quick:
        chosen.rows, chosen.num_dims, chosen.rounds = 2_000, 32, 1
        chosen.faiss = ["Flat", "IVF16,Flat"]
    faiss.omp_set_num_threads(torch.get_num_threads())
    rows, *queries = make_rows(chosen.rows, chosen.num_dims, chosen.queries)
    exact = SearchIndex(rows)
    with tempfile.TemporaryDirectory() as folder:
        stored = SearchIndex(write_store(rows, Path(folder) / "store"))
        results = [
            compare_exact({EXACT: exact, STORED: stored}, rows, some, chosen.k, chosen.rounds)
            for some in queries
        ]
        narrow = SearchIndex(write_store(rows, Path(folder) / "int8", dtype="int8"))
        integers = [compare_widened(narrow, some, chosen.k, chosen.rounds) for some in queries]
    lines = []
    for some, times in zip(queries, results, strict=True):
        cells = [f"{1e3 * times.typical(name):.1f}" for name in (BARE, BOTH, EXACT, STORED)]
        ratios = [f"{times.ratio(name, BARE):.2f}" for name in (BOTH, EXACT, STORED)]
        lines.append([len(some), *cells, *ratios, f"at most {BOUND}"])
    names = (BOTH, EXACT, STORED)
    head = ["queries", BARE, *names, *(f"ratio, {name}" for name in names), "bound in memory"]
    approximate = [
        compare_faiss(exact, rows, factory, queries, chosen.k, chosen.rounds)
        for factory in chosen.faiss
    ]
    names = ["FAISS factory", "seconds to build"]
    names += [f"ms, {len(some)} queries" for some in queries]
    names += [f"recall@{chosen.k}"]
    publish(
        "Cost of exact search",
        [
            f"{chosen.rows:,} rows of {chosen.num_dims:,} dimensions, float32, k = {chosen.k}; "
            f"milliseconds a call, {chosen.rounds} rounds. The files of the store, of {SHARD} "
            "rows a shard, are in the page cache.",
            table(head, lines),
            table(["queries", INTEGERS, WIDENED, "ratio"], integers),
            "FAISS indexes over the same rows, one end; IVF looks into a sixteenth of its lists:",
            table(names, approximate),
        ],
        chosen.out,
    )


def make_rows(num_rows: int, num_dims: int, counts: list[int]) -> list[np.ndarray]:
    """Return rows, and a set of queries of each size."""
    random = np.random.default_rng(0)
    basis = random.standard_normal((RANK, num_dims), dtype=np.float32) / np.float32(RANK**0.5)

    def draw(count: int) -> np.ndarray:
        inside = random.standard_normal((count, RANK), dtype=np.float32) @ basis
        return inside + NOISE * random.standard_normal((count, num_dims), dtype=np.float32)

    return [draw(count) for count in [num_rows, *counts]]


def write_store(rows: np.ndarray, path: Path, *, dtype: str = "float32") -> GradientStore:
    """Return a store of the rows."""
    writer = StoreWriter(path, {}, num_rows=len(rows), dtype=dtype)
    for shard, start in enumerate(range(0, len(rows), SHARD)):
        some = rows[start : start + SHARD]
        writer.write(shard, Table(np.arange(start, start + len(some)), {"sketch": some}))
    return GradientStore.open(path)


def compare_exact(
    indexes: Mapping[str, SearchIndex], rows: np.ndarray, queries: np.ndarray, k: int, rounds: int
) -> Times:
    """Time exact search and what it cannot do without."""
    left, right = torch.from_numpy(queries), torch.from_numpy(rows)

    def bare() -> None:
        (left @ right.T).topk(k)

    def both() -> None:
        scores = left @ right.T
        scores.topk(k)
        scores.topk(k, largest=False)

    runs: dict[str, Callable[[], object]] = {BARE: bare, BOTH: both}
    for name, index in indexes.items():
        runs[name] = partial(index.search_both, queries, k)
    return interleave(runs, rounds, repeats=max(1, 16 // len(queries)))


def compare_widened(index: SearchIndex, queries: np.ndarray, k: int, rounds: int) -> list[str]:
    """Return the line of int8 rows, whose products are computed in integers or in float32."""

    def widened() -> None:
        with patch.object(row_products, "multiplies_integers", lambda: False):
            index.search_both(queries, k)

    runs = {INTEGERS: partial(index.search_both, queries, k), WIDENED: widened}
    times = interleave(runs, rounds, repeats=max(1, 16 // len(queries)))
    cells = [f"{1e3 * times.typical(name):.1f}" for name in runs]
    return [f"{len(queries)}", *cells, f"{times.ratio(INTEGERS, WIDENED):.2f}"]


def compare_faiss(
    exact: SearchIndex,
    rows: np.ndarray,
    factory: str,
    queries: list[np.ndarray],
    k: int,
    rounds: int,
) -> list[str]:
    """Return the line of one FAISS index."""
    began = perf_counter()
    index = FaissIndex.build(rows, factory, seed=0)
    built = perf_counter() - began
    if hasattr(index.index, "nprobe"):
        index.index.nprobe = max(1, index.index.nlist // 16)
    cells = [f"`{factory}`", f"{built:.1f}"]
    found, wanted = [], []
    for some in queries:
        times = interleave({factory: partial(index.search, some, k)}, rounds)
        cells.append(f"{1e3 * times.typical(factory):.1f}")
        found.append(index.search(some, k).positions)
        wanted.append(exact.search(some, k).positions)
    pairs = zip(np.concatenate(found), np.concatenate(wanted), strict=True)
    recall = np.mean([len(np.intersect1d(a, b)) / k for a, b in pairs])
    return [*cells, f"{recall:.2f}"]


if __name__ == "__main__":
    main()
