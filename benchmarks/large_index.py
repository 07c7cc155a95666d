"""An index on the disk of more rows than memory holds, beside exact search of the same rows.

Rows lie in clusters of uneven sizes with a spectrum that falls slowly, under norms with a
heavy tail, and with noise in every coordinate, as projected gradients do; each shard is a
function of its number. They are kept as int8, one scale a row. Exact search reads the
mapped rows; the index looks into more and more of its lists. Recall is that of exact search.

Everything goes to a folder, and a run that was stopped goes on; seconds of stages that were
done in several goes are added up. Cold is the first search after the files were dropped
from the page cache.
"""

import gc
import json
import threading
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from shutil import disk_usage, rmtree
from statistics import median
from tempfile import mkdtemp

import faiss
import numpy as np
import torch
from gradient_queries import forget
from measuring import options, parse, peak_memory, publish, table

from projections import (
    DiskIndex,
    GradientStore,
    Reranked,
    RowIndex,
    SearchIndex,
    StoreWriter,
    Table,
    build_disk_index,
    merge_parts,
)

CLUSTERS, RANK = 20_000, 64
SPREAD = 0.7  # of a row about the centre of its cluster
DECAY = 0.5  # the i-th direction has the standard deviation i^-DECAY
NOISE = 0.02  # standard deviation in each coordinate
TAIL = 0.5  # of the logarithms of norms
WINDOWS = 1 << 20  # places where the noise of a row begins
COUNTS = (1, 256)  # queries at a time
ENDS = (10, 100)  # neighbours of which recall is counted
CANDIDATES = 300  # scored again
LEAST_FREE = 10 << 30  # bytes that stay free


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--rows", type=int, default=20_000_000)
    parser.add_argument("--num-dims", type=int, default=1024)
    parser.add_argument("--shard", type=int, default=1 << 16, help="rows of a shard")
    parser.add_argument("--factory", default="IVF1024,SQ8_direct_signed")
    parser.add_argument("--lists", type=int, nargs="+", default=[4, 16, 64, 256])
    parser.add_argument("--into", type=int, default=4, help="parts that are left by merging")
    parser.add_argument("--folder", type=Path, help="where to work, and go on; default: removed")
    chosen = parse(parser)
    if chosen.quick:
        chosen.rows, chosen.num_dims, chosen.shard, chosen.rounds = 6_000, 32, 1_000, 1
        chosen.factory, chosen.lists, chosen.into = "IVF16,SQ8_direct_signed", [2, 16], 2
    faiss.omp_set_num_threads(torch.get_num_threads())
    folder = chosen.folder or Path(mkdtemp(prefix="large_index"))
    folder.mkdir(parents=True, exist_ok=True)
    needed = 2.4 * chosen.rows * chosen.num_dims + LEAST_FREE
    had = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    if disk_usage(folder).free + had < needed and not chosen.quick:
        parser.error(f"{folder} must have {needed / 2**30:.0f} GB free")
    try:
        publish("An index larger than memory", report(chosen, folder), chosen.out)
    finally:
        if chosen.folder is None:
            rmtree(folder)


def report(chosen: Namespace, folder: Path) -> list[str]:
    """Do what is not done yet, and return the tables."""
    log = Log(folder / "stages.json")
    source = Rows(chosen.num_dims)
    path = folder / "store"
    with log.stage("write the store"):
        write_store(source, path, chosen.rows, chosen.shard)
    queries = source.draw(max(COUNTS), seed=-1)
    exact = measured_exact(log, folder, path, queries, chosen)
    truth = np.load(folder / "truth.npy")
    store = GradientStore.open(path)
    size = 1 << 20 if not chosen.quick else 2_000
    with log.stage("train the lists and build the parts"):
        index = build_disk_index(store, chosen.factory, seed=0, rows_per_part=size)
    lines = [exact]
    lines += measured_lists(log, f"{len(index.parts)} parts", index, path, queries, truth, chosen)
    with log.stage(f"merge into {chosen.into}"):
        index = merge_parts(index, into=chosen.into)
    lines += measured_lists(
        log, f"merged into {len(index.parts)}", index, path, queries, truth, chosen
    )
    with log.stage(f"append {chosen.shard:,} rows, and build their part"):
        append(source, path, chosen)
        build_disk_index(GradientStore.open(path), chosen.factory, seed=0, rows_per_part=size)
    return [
        f"{chosen.rows:,} rows of {chosen.num_dims:,} int8 numbers in shards of {chosen.shard:,}; "
        f"`{chosen.factory}`. k = {max(ENDS)}; milliseconds for {COUNTS[0]} and {COUNTS[1]} "
        f"queries. '+ {CANDIDATES}' scores as many candidates again by the stored rows.",
        table(
            ["search", "ms cold, 1", "ms warm, 1", "ms cold, 256", "ms warm, 256"]
            + [f"recall@{k}" for k in ENDS],
            lines,
        ),
        table(["stage", "seconds", "of the processor", "goes"], log.stages()),
        log.memory(),
    ]


@dataclass
class Rows:
    """Rows of uneven clusters, each block a function of its number."""

    num_dims: int

    def __post_init__(self) -> None:
        """Draw the clusters, the directions and the noise."""
        random = np.random.default_rng(0)
        spread = np.arange(1, RANK + 1, dtype=np.float32) ** -DECAY
        basis = np.linalg.qr(random.standard_normal((self.num_dims, min(RANK, self.num_dims))))[0]
        self.basis = basis.T.astype(np.float32) * spread[: basis.shape[1], None]
        self.centres = random.standard_normal((CLUSTERS, len(self.basis)), np.float32)
        shares = 1 / np.arange(1, CLUSTERS + 1)
        self.ends = np.cumsum(shares / shares.sum())
        noise = np.float32(NOISE) * random.standard_normal(WINDOWS + self.num_dims, np.float32)
        self.noise = np.lib.stride_tricks.sliding_window_view(noise, self.num_dims)

    def draw(self, count: int, *, seed: int) -> np.ndarray:
        """Return some rows."""
        random = np.random.default_rng((0, seed) if seed >= 0 else (1, -seed))
        own = np.minimum(np.searchsorted(self.ends, random.random(count)), CLUSTERS - 1)
        within = random.standard_normal((count, len(self.basis)), np.float32)
        rows = (self.centres[own] + np.float32(SPREAD) * within) @ self.basis
        rows += self.noise[random.integers(0, WINDOWS, count)]
        return rows * np.exp(TAIL * random.standard_normal((count, 1), np.float32))


class Log:
    """What was measured, in a file, so that a run that was stopped goes on."""

    def __init__(self, path: Path) -> None:
        """Read what is there."""
        self.path = path
        self.facts = json.loads(path.read_text()) if path.exists() else {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time of a stage to what it took before, if it is not done."""
        kept = self.facts.setdefault("stages", {}).setdefault(
            name, {"wall": 0.0, "cpu": 0.0, "goes": 0, "done": False}
        )
        wall, cpu = time.perf_counter(), time.process_time()
        with Watched() as watched:
            try:
                yield
            finally:
                if not kept["done"]:
                    kept["wall"] += time.perf_counter() - wall
                    kept["cpu"] += time.process_time() - cpu
                    kept["goes"] += 1
                self.keep_memory(watched)
        kept["done"] = True
        self.save()

    def once(self, name: str, measure: Callable[[], list[str]]) -> list[str]:
        """Return what was measured before, or measure it."""
        if name not in self.facts.setdefault("lines", {}):
            with Watched() as watched:
                self.facts["lines"][name] = measure()
            self.keep_memory(watched)
            self.save()
        return self.facts["lines"][name]

    def keep_memory(self, watched: "Watched") -> None:
        """Keep the most memory seen."""
        self.facts["own"] = max(self.facts.get("own", 0), watched.most)
        self.facts["peak"] = max(self.facts.get("peak", 0), peak_memory())
        self.save()

    def save(self) -> None:
        """Write the file."""
        self.path.write_text(json.dumps(self.facts, indent=1))

    def stages(self) -> list[list[str]]:
        """Return the lines of the stages."""
        return [
            [name, f"{kept['wall']:.0f}", f"{kept['cpu']:.0f}", str(kept["goes"])]
            for name, kept in self.facts["stages"].items()
        ]

    def memory(self) -> str:
        """Say how much memory was held."""
        own, peak = (self.facts[name] / 2**30 for name in ("own", "peak"))
        return (
            f"Memory of its own at most {own:.2f} GB; with pages of mapped files, which the "
            f"system takes back when it needs them, {peak:.2f} GB."
        )


@dataclass
class Watched:
    """The most memory that is not that of a file, looked at ten times a second."""

    most: int = 0
    _ended: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> "Watched":
        """Begin to look."""
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        """Stop looking."""
        self._ended.set()
        self._thread.join()

    def _look(self) -> None:
        """Look until told to end."""
        status = Path("/proc/self/status")
        while status.exists() and not self._ended.wait(0.1):
            held = [line for line in status.read_text().splitlines() if line[:8] == "RssAnon:"]
            self.most = max(self.most, *(1024 * int(line.split()[1]) for line in held))


def write_store(source: Rows, path: Path, num_rows: int, shard_size: int) -> None:
    """Write the rows that are missing, a shard at a time."""
    writer = StoreWriter(path, {"data": "0"}, num_rows=num_rows, dtype="int8")
    starts = range(0, num_rows, shard_size)
    for shard in range(writer.num_finished, len(starts)):
        rows = source.draw(min(shard_size, num_rows - starts[shard]), seed=shard)
        ids = np.arange(starts[shard], starts[shard] + len(rows))
        writer.write(shard, Table(ids, {"sketch": rows}))


def append(source: Rows, path: Path, chosen: Namespace) -> None:
    """Add one more shard."""
    writer = StoreWriter.extend(path, {"data": "1"}, num_rows=chosen.shard)
    if not writer.num_finished:
        ids = chosen.rows + np.arange(chosen.shard)
        rows = source.draw(chosen.shard, seed=1 << 20)
        writer.write(0, Table(ids, {"sketch": rows}))


def measured_exact(
    log: Log, folder: Path, path: Path, queries: np.ndarray, chosen: Namespace
) -> list[str]:
    """Return the line of exact search, and keep what it finds."""

    def measure() -> list[str]:
        cells = []
        for count in COUNTS:
            cold, warm, found = times(
                lambda: SearchIndex(GradientStore.open(path)), path, queries[:count], 1
            )
            cells += [f"{1e3 * cold:.0f}", f"{1e3 * warm:.0f}"]
            if count == max(COUNTS):
                np.save(folder / "truth.npy", found)
        return ["exact", *cells, *("1.000" for _ in ENDS)]

    return log.once("exact", measure)


def measured_lists(
    log: Log,
    kind: str,
    index: DiskIndex,
    path: Path,
    queries: np.ndarray,
    truth: np.ndarray,
    chosen: Namespace,
) -> list[list[str]]:
    """Return the lines of an index, by the number of lists that are looked into."""
    lines = []
    for num_lists in chosen.lists:

        def alone(number: int = num_lists) -> RowIndex:
            store = GradientStore.open(path)
            return DiskIndex.open(index.path, store).with_lists_searched(number)

        def reranked(number: int = num_lists) -> RowIndex:
            return Reranked(alone(number), GradientStore.open(path), CANDIDATES)

        for name, opened in (("", alone), (f" + {CANDIDATES}", reranked)):
            title = f"{num_lists} lists, {kind}{name}"
            lines.append(
                log.once(
                    title,
                    lambda title=title, opened=opened: [
                        title, *measure_index(opened, path, queries, truth, chosen.rounds)
                    ],
                )
            )  # fmt: skip
    return lines


def measure_index(
    opened: Callable[[], RowIndex],
    path: Path,
    queries: np.ndarray,
    truth: np.ndarray,
    rounds: int,
) -> list[str]:
    """Return times and recall of one way to search."""
    cells, found = [], truth
    for count in COUNTS:
        cold, warm, found = times(opened, path, queries[:count], rounds)
        cells += [f"{1e3 * cold:.0f}", f"{1e3 * warm:.1f}"]
    for k in ENDS:
        pairs = zip(found[:, :k], truth[:, :k], strict=True)
        cells.append(f"{np.mean([len(np.intersect1d(a, b)) / k for a, b in pairs]):.3f}")
    return cells


def times(
    opened: Callable[[], RowIndex], path: Path, queries: np.ndarray, rounds: int
) -> tuple[float, float, np.ndarray]:
    """Return seconds of a cold and of a warm search, and what was found."""
    forget(path)
    began = time.perf_counter()
    index = opened()
    found = index.search(queries, max(ENDS)).positions
    cold = time.perf_counter() - began
    warm = []
    for _ in range(rounds):
        began = time.perf_counter()
        found = index.search(queries, max(ENDS)).positions
        warm.append(time.perf_counter() - began)
    del index
    gc.collect()
    return cold, median(warm), found


if __name__ == "__main__":
    main()
