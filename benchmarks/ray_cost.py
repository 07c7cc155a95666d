"""A local Ray of two workers beside one process: seconds, and whether the choice is the same.

    python benchmarks/ray_cost.py --threads 1 --out benchmarks/ray_cost.md

DSIR (fit, weigh, select), embeddings with GIO's quantisation, and semantic deduplication, of the
same rows by the same functions. What Ray takes to start is told apart, and rows lie in its
memory before a run begins. Two workers on two cores can at best halve the time.
"""

import importlib
import logging
import os
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from measuring import Times, interleave, options, parse, publish, table

from projections import TfidfSVD, embed
from selection import DSIR, GIO, Selection, SemanticDedup

WORDS = np.array([f"word{number}" for number in range(5000)])
LENGTH = 120  # words of a text
SIZES, QUICK = (2_000, 10_000, 40_000), (300,)
TARGETS = 200
WORKERS = 2


def texts(count: int, seed: int, most: int = 5000) -> list[dict[str, str]]:
    """Return rows of words drawn like those of a language: few are frequent."""
    random = np.random.default_rng(seed)
    chances = 1 / np.arange(1, most + 1)
    drawn = random.choice(WORDS[:most], (count, LENGTH), p=chances / chances.sum())
    return [{"id": f"{seed}-{row}", "text": " ".join(words)} for row, words in enumerate(drawn)]


def draw(rows: Any, target: Any, count: int) -> Selection:
    """Fit DSIR, weigh all rows and draw some."""
    return DSIR(seed=0).fit(rows, target).select(rows, num_selected=count // 10)


def quantise(rows: Any, target: Any, count: int) -> Selection:
    """Embed rows and target, and choose among centroids as GIO does."""
    encoder = TfidfSVD(num_dims=32, seed=0).fit([row["text"] for row in target])
    path = GIO(seed=0, num_centroids=min(count // 4, 500)).fit(
        embed(rows, encoder), embed(target, encoder)
    )
    return path.select(num_selected=count // 10)


def deduplicate(rows: Any, target: Any, count: int) -> Selection:
    """Embed rows, and drop those near another of their cluster."""
    encoder = TfidfSVD(num_dims=32, seed=0).fit([row["text"] for row in target])
    method = SemanticDedup(threshold=0.9, num_clusters=max(2, count // 400), seed=0)
    return method.select(embed(rows, encoder))


JOBS: dict[str, Callable[[Any, Any, int], Selection]] = {
    "DSIR: fit, weigh, select": draw,
    "embeddings and GIO": quantise,
    "embeddings and deduplication": deduplicate,
}


def same(left: Selection, right: Selection) -> bool:
    """Tell whether two selections have the same rows and weights, to the bit."""
    return left.ids.tolist() == right.ids.tolist() and (
        np.asarray(left.weights).tobytes() == np.asarray(right.weights).tobytes()
    )


def measure(ray: Any, count: int, rounds: int) -> list[list[object]]:
    """Return the lines of one size."""
    rows, target = texts(count, 0), texts(TARGETS, 1, 800)
    spread = ray.data.from_items(rows, override_num_blocks=4 * WORKERS).materialize()
    lines = []
    for name, job in JOBS.items():
        found: dict[str, Selection] = {}

        def run(where: str, data: Any, job: Any = job, found: Any = found) -> None:
            found[where] = job(data, target, count)

        runs = {"one": lambda run=run: run("one", rows), "ray": lambda run=run: run("ray", spread)}
        times: Times = interleave(runs, rounds)
        equal = "yes" if same(found["one"], found["ray"]) else "NO"
        seconds = [f"{times.typical(where):.2f}" for where in ("one", "ray")]
        lines.append([name, f"{count:,}", *seconds, f"{times.ratio('ray', 'one'):.2f}", equal])
    return lines


def main() -> None:
    """Print the table."""
    os.environ["OMP_NUM_THREADS"] = "1"
    chosen = parse(options(__doc__))
    began = time.perf_counter()
    ray: Any = importlib.import_module("ray")
    importlib.import_module("ray.data")
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    ray.init(num_cpus=WORKERS, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    start = time.perf_counter() - began
    try:
        sizes = QUICK if chosen.quick else SIZES
        lines = [line for size in sizes for line in measure(ray, size, chosen.rounds)]
    finally:
        ray.shutdown()
    head = ["job", "rows", "one process, s", "Ray of 2 workers, s", "Ray / one", "same choice"]
    notes = f"Ray took {start:.1f} s to start. Each text has {LENGTH} words."
    publish("What Ray costs and saves", [table(head, lines), notes], chosen.out)


if __name__ == "__main__":
    main()
