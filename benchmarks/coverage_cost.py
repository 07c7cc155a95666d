"""What choosing rows by GIO, coverage and deduplication costs, beside the packages for it.

Embeddings are drawn around 50 centres and have length 1; the target around 5 of them.
grad-info-opt would take hours, so a part of each of its stages is timed and multiplied by
what it grows with; that part and the factor are in the table. Everything of ours is timed
whole. Processor seconds, of all cores together, hardly depend on what else a machine does.
"""

import argparse
import json
import resource
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import faiss
import numpy as np
import torch
from measuring import options, parse, publish, table

from projections import Embeddings
from selection import (
    GIO,
    Clusters,
    DataShare,
    FacilityLocation,
    KCenter,
    KMeans,
    NeighbourGraph,
    SemanticDedup,
    UniformStart,
)
from selection.gio.divergence import Targets, log_distances, mean_divergence

PARTS = ("gio", "facility", "million")
DIMS, LARGE_DIMS = 384, 64
PUBLISHED_PICKS = 101  # of a run with the package's defaults, if it does not stop before
STEPS = (150, 50)  # of gradient descent, for the first pick and for each further one
LLOYD = 20  # rounds over all rows that ours are compared with


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--peer-clusters", type=int, default=1_500, help="of its timed k-means")
    parser.add_argument("--peer-rows", type=int, default=8_000, help="likewise")
    parser.add_argument("--peer-python", type=Path, help="interpreter with the peers")
    chosen = parse(parser)
    chosen.sizes = [100_000, 10_000, 1_500, 20_000, 1_000_000, 1_000]
    chosen.peer_sizes = [chosen.peer_rows, chosen.peer_clusters, 150, 10]
    if chosen.quick:
        chosen.sizes, chosen.peer_sizes = [2_000, 300, 50, 400, 3_000, 50], [800, 10, 40, 2]
    faiss.omp_set_num_threads(torch.get_num_threads())
    runs = {"gio": compare_gio, "facility": compare_facility, "million": measure_million}
    parts = [part for name in chosen.parts for part in runs[name](chosen)]
    if chosen.peer_python is None:
        parts.append("The peers were absent: give their interpreter with `--peer-python`.")
    publish("Choosing rows by their embeddings", parts, chosen.out)


def draw(seed: int, count: int, num_centers: int, dims: int = DIMS) -> np.ndarray:
    """Return rows of length 1 around the first of 50 centres."""
    random = np.random.default_rng(0)
    centers = random.standard_normal((50, dims), dtype=np.float32)
    random = np.random.default_rng(seed)
    rows = 0.7 * centers[random.integers(0, num_centers, count)]
    rows += random.standard_normal((count, dims), dtype=np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@dataclass(frozen=True)
class Spent:
    """Seconds on the clock, and of the processor."""

    wall: float
    cpu: float

    def times(self, factor: float) -> "Spent":
        """Return so much more."""
        return Spent(self.wall * factor, self.cpu * factor)

    def plus(self, other: "Spent") -> "Spent":
        """Return the sum."""
        return Spent(self.wall + other.wall, self.cpu + other.cpu)

    def over(self, other: "Spent") -> list[str]:
        """Return both ratios."""
        return [f"{self.wall / other.wall:.0f}", f"{self.cpu / other.cpu:.0f}"]

    def cells(self, digits: int = 1) -> list[str]:
        """Return both numbers."""
        return [f"{self.wall:.{digits}f}", f"{self.cpu:.{digits}f}"]


def timed(run: Any) -> tuple[Any, Spent]:
    """Return a result and what it took."""
    began, spent = perf_counter(), process_time()
    result = run()
    return result, Spent(perf_counter() - began, process_time() - spent)


def ask(chosen: argparse.Namespace, part: str, count: int, **arrays: np.ndarray) -> Any:
    """Run one part of the peer, on these arrays; None without its interpreter."""
    if chosen.peer_python is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        np.savez(f"{folder}/arrays.npz", **arrays)  # pyright: ignore[reportArgumentType]
        script = Path(__file__).with_name("coverage_peer.py")
        words = [chosen.peer_python, script, part, "--arrays", f"{folder}/arrays.npz"]
        done = subprocess.run(
            [*map(str, words), "--count", str(count)], capture_output=True, text=True, check=False
        )
    if done.returncode:
        raise RuntimeError(f"the peer failed at {part}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def compare_gio(chosen: argparse.Namespace) -> list[str]:
    """Time GIO from embeddings to chosen rows, and compare picks and divergences."""
    num_rows, num_target, num_centroids, *_ = chosen.sizes
    rows, target = draw(1, num_rows, 50), draw(2, num_target, 5)
    seconds = {}
    for name in ("published", "nearest-discarded", "coverage", "knn"):
        gio: Any = GIO(
            estimate=name, count="centroids", num_centroids=num_centroids, stop=DataShare(1), seed=0
        )
        _, seconds[name] = timed(lambda gio=gio: gio.fit(rows, target).select())
    lines = [
        [f"ours, {name}", "all of it", *taken.cells(), "1", *taken.cells(), "", ""]
        for name, taken in seconds.items()
    ]
    quantize = KMeans(num_clusters=num_centroids, seed=0)
    centroids, quantized = timed(
        lambda: [quantize.fit(Embeddings(some)) for some in (rows, target)]
    )
    begun = UniformStart().points(DIMS, 0).astype(np.float32)
    ranking: Any = GIO(
        estimate="published", count="centroids", num_centroids=None, stop=DataShare(1), seed=0
    )
    points = [one.centroids for one in centroids]
    _, ranked = timed(lambda: ranking.fit(*points, initial=begun))
    for name, taken in (("k-means", quantized), ("published, from centroids", ranked)):
        cells = taken.cells(2)
        lines.append([f"ours, {name}", "all of it", *cells, "1", *cells, "", ""])
    notes = [
        f"GIO: {num_rows:,} candidates and {num_target:,} targets of {DIMS} dimensions, "
        f"{num_centroids:,} centroids of each. Ours ranks all rows; the package makes "
        f"{PUBLISHED_PICKS} picks, as by default."
    ]
    notes.append(quality(rows, centroids[0]))
    num_small, clusters, few, picks = chosen.peer_sizes
    theirs = ask(chosen, "quantize", clusters, rows=rows[:num_small])
    if theirs is not None:
        once = ask(chosen, "fit", 1, rows=points[0], target=points[1], start=begun)
        lines += peer_lines(chosen, theirs, once, (quantized, ranked, seconds["published"]))
        notes.append(small_quality(rows[:num_small], clusters, theirs))
        several = ask(chosen, "fit", picks, rows=rows[:few], target=target[:few], start=begun)
        notes.append(parity(rows[:few], target[:few], begun, several))
    head = ["", "timed", "seconds", "CPU s", "factor", "s in all", "CPU s in all"]
    head += ["times ours at this", "of CPU"]
    return [notes[0], table(head, lines), *notes[1:]]


def peer_lines(
    chosen: argparse.Namespace, quantized: Any, once: Any, ours: tuple[Spent, Spent, Spent]
) -> list[list[str]]:
    """Return the lines of grad-info-opt, each stage timed in part and held against ours."""
    num_rows, num_target, num_centroids, *_ = chosen.sizes
    clusters, (fewer, more) = chosen.peer_sizes[1], quantized["sizes"]
    # What remains when the smaller run is taken away is work that grows, without overhead.
    grown = Spent(*(max(quantized[key][1] - quantized[key][0], 0) for key in ("seconds", "cpu")))
    factor = (num_rows + num_target) * num_centroids / ((more - fewer) * clusters)
    first = f"{more:,} rows less {fewer:,}, {clusters} clusters"
    done, steps = STEPS[0] + STEPS[1], STEPS[0] + STEPS[1] * PUBLISHED_PICKS
    walked = Spent(once["seconds"], once["cpu"])
    stages = [
        ("k-means on Spark", first, grown, factor),
        ("greedy descent", f"{done} of {steps} steps", walked, steps / done),
    ]
    lines, total = [], Spent(0, 0)
    for (name, part, taken, times), own in zip(stages, ours, strict=False):
        whole = taken.times(times)
        total = total.plus(whole)
        cells = [*taken.cells(), f"{times:.1f}", *whole.cells(0), *whole.over(own)]
        lines.append([f"grad-info-opt, {name}", part, *cells])
    empty = ["", "", "", ""]
    return [*lines, ["grad-info-opt", *empty, *total.cells(0), *total.over(ours[2])]]


def quality(rows: np.ndarray, ours: Clusters) -> str:
    """Say how near rows are to their centroids, beside k-means over all rows."""
    full = faiss.Kmeans(
        rows.shape[1], len(ours), niter=LLOYD, seed=0, max_points_per_centroid=len(rows)
    )
    _, taken = timed(lambda: full.train(rows))
    theirs = float(full.index.search(rows, 1)[0].mean())
    return (
        f"Mean squared distance of a row to its centroid: ours {ours.distances.mean():.4f}, "
        f"{LLOYD} rounds of FAISS over all rows {theirs:.4f} ({taken.cpu:.1f} s of the processor)."
    )


def small_quality(few: np.ndarray, clusters: int, theirs: Any) -> str:
    """Say the same of the rows that Spark clustered."""
    ours = KMeans(num_clusters=clusters, seed=0).fit(Embeddings(few)).distances.mean()
    return (
        f"On {len(few):,} rows with {clusters:,} clusters: ours {ours:.4f}, Spark "
        f"{theirs['cost']:.4f} after {theirs['rounds']} rounds."
    )


def parity(rows: np.ndarray, target: np.ndarray, start: np.ndarray, theirs: Any) -> str:
    """Say how far the package's picks and divergences are from ours."""
    gio = GIO(estimate="published", num_centroids=None, stop=DataShare(1), seed=0)
    ours = [pick.candidate for pick in gio.fit(rows, target, initial=start).picks]
    ranks = [ours.index(pick) + 1 for pick in theirs["picks"]]
    targets = Targets(target, np.ones(len(target), np.int64), gio.num_neighbours)
    start_total = int(targets.total_distances(start).sum())
    added = np.cumsum(log_distances(target, rows[theirs["picks"]]).sum(axis=0)) + start_total
    values = [
        mean_divergence(targets, int(total), len(start) + number, len(start) + number)
        for number, total in enumerate(added, start=1)
    ]
    worst = np.abs(np.array(values) / np.array(theirs["values"]) - 1).max()
    return (
        f"On {len(rows)} rows without k-means, the package's {len(ranks)} picks have the places "
        f"{', '.join(map(str, ranks))} in the order of the closed form; its divergences after "
        f"each pick differ from ours by at most {worst:.1e} of their value (it computes in "
        "float32)."
    )


def compare_facility(chosen: argparse.Namespace) -> list[str]:
    """Time facility location, and compare the values over all pairs."""
    size, count = chosen.sizes[3], chosen.sizes[3] // 20
    rows = draw(3, size, 50)
    graph = NeighbourGraph(num_neighbours=32, similarity="euclidean", seed=0)
    found, ours = timed(lambda: FacilityLocation(graph=graph).select(rows, num_selected=count))
    value = f"{spread(rows, found.ids):.4f}"
    lines = [["ours, 32 neighbours", *ours.cells(), "1", "1", value]]
    theirs = ask(chosen, "facility", count, rows=rows)
    if theirs is not None:
        taken = Spent(theirs["seconds"], theirs["cpu"])
        value = f"{spread(rows, theirs['picks']):.4f}"
        lines.append(["apricot, lazy", *taken.cells(), *taken.over(ours), value])
    random = np.random.default_rng(0).choice(size, count, replace=False)
    lines.append(["random", "", "", "", "", f"{spread(rows, random):.4f}"])
    head = ["", "seconds", "CPU s", "times ours", "of CPU"]
    head += ["mean squared distance to the nearest chosen row"]
    return [
        f"Facility location: {count:,} of {size:,} rows of {DIMS} dimensions.",
        table(head, lines),
    ]


def spread(rows: np.ndarray, picks: Sequence[int] | np.ndarray) -> float:
    """Return the mean squared distance of all rows to the nearest pick."""
    index = faiss.IndexFlatL2(rows.shape[1])
    index.add(rows[np.asarray(picks)])
    return float(index.search(rows, 1)[0].mean())


def measure_million(chosen: argparse.Namespace) -> list[str]:
    """Time what runs on a million rows, and the memory it takes."""
    size, count = chosen.sizes[4:]
    rows = Embeddings(draw(4, size, 50, LARGE_DIMS))
    graph = NeighbourGraph(num_neighbours=16, num_probes=4, seed=0)
    runs = {
        "k-centre": lambda: KCenter().select(rows, num_selected=count // 10),
        "semantic deduplication": lambda: SemanticDedup(threshold=0.9, seed=0).select(rows),
        "facility location": lambda: FacilityLocation(graph=graph).select(rows, num_selected=count),
    }
    lines = []
    for name, run in runs.items():
        found, taken = timed(run)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        lines.append([name, f"{len(found):,}", *taken.cells(0), f"{peak:.1f}"])
    return [
        f"{size:,} rows of {LARGE_DIMS} dimensions ({rows.rows.nbytes / 2**30:.2f} GiB); all pairs "
        f"would be {4 * size**2 / 2**40:.1f} TiB.",
        table(["", "rows kept", "seconds", "CPU s", "peak memory so far, GiB"], lines),
    ]


if __name__ == "__main__":
    main()
