"""What DSIR costs: fitting and weighing text, beside the package `data-selection`.

Both fit on all n-grams and weigh all rows of one file, with the same number of workers. Times
are without imports; ours is the median of the rounds, and its first round, in which compiled
code is loaded or made, is told apart. CPU seconds are those of all processes and threads, the
peer's with its imports: on a machine with other work they say more than the clock.
"""

import gzip
import json
import os
import resource
import subprocess
import tempfile
import time
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from measuring import options, parse, publish, table
from scipy.stats import spearmanr

from selection import DSIR, HashedNgrams

PILE = 825e9  # bytes of text in the Pile (Gao et al. 2020, arXiv:2101.00027)
NUM_TARGET = 500
VARIED = 0.1  # share of words that change places in each repetition


def texts(folder: Path | None) -> tuple[list[str], list[str]]:
    """Return texts of a folder of ``*.jsonl.gz``, or made-up ones, and some of one kind.

    The target are texts of the first file, which are not among the others.
    """
    if folder is None:
        random = np.random.default_rng(0)
        words = [f"{a}{b}{c}" for a in "bdfgklmn" for b in "aeiou" for c in "lmnprst"]
        ranks = np.minimum(random.zipf(1.3, size=(2000, 300)), len(words)) - 1
        made = [" ".join(words[rank] for rank in row) + "." for row in ranks]
        return made, [" ".join(words[-1 - rank] for rank in row) for row in ranks[:NUM_TARGET]]
    found, target = [], []
    for path in sorted(folder.glob("*.jsonl.gz")):
        with gzip.open(path, "rt") as lines:
            found += [json.loads(line)["text"] for line in lines]
        if not target:
            target, found = found[:NUM_TARGET], found[NUM_TARGET:]
    return [found[n] for n in np.random.default_rng(0).permutation(len(found))], target


def varied(known: list[str], num_bytes: float) -> Iterator[str]:
    """Yield texts until there is enough; those that come again have words in other places."""
    random, done = np.random.default_rng(1), 0
    for number, text in enumerate(cycle(known)):
        if number >= len(known):
            words = text.split(" ")
            moved = np.flatnonzero(random.random(len(words)) < VARIED)
            for to, source in zip(moved, random.permutation(moved), strict=True):
                words[to] = words[source]
            text = " ".join(words)
        yield text
        done += len(text.encode())
        if done >= num_bytes:
            return


def write(path: Path, lines: Iterator[str]) -> int:
    """Write texts as jsonl and return their bytes."""
    total = 0
    with path.open("w") as file:
        for number, text in enumerate(lines):
            file.write(json.dumps({"id": number, "text": text}) + "\n")
            total += len(text.encode())
    return total


Run = tuple[float, float, float, np.ndarray]
"""Seconds of fitting and of weighing, seconds of processors in both, and log weights."""


def ours(raw: Path, target: Path, workers: int, hashing: Any) -> Run:
    """Fit and weigh."""
    dsir = DSIR(ngrams=HashedNgrams(hashing=hashing), num_ngrams_to_fit=0, seed=0)
    began, processors = time.perf_counter(), time.process_time()
    fitted = dsir.fit(raw, target, num_workers=workers)
    middle = time.perf_counter()
    scores = fitted.log_weights(raw, num_workers=workers)
    ended, processors = time.perf_counter(), time.process_time() - processors
    return middle - began, ended - middle, processors, scores.columns["log_weight"]


def peer(python: Path, raw: Path, target: Path, folder: Path, workers: int) -> dict[str, Any]:
    """Run the package, and return its times and its log weights in the order of the rows."""
    script = Path(__file__).with_name("dsir_peer.py")
    words = [python, script, raw, target, folder, str(workers)]
    before = children()
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    processors = children() - before
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    parts = [np.load(folder / "log_importance_weights" / f"{n}.npy") for n in range(workers)]
    weights = np.empty(sum(map(len, parts)))
    for number, part in enumerate(parts):
        weights[number::workers] = part
    found = json.loads(done.stdout.splitlines()[-1])
    return {**found, "processors": processors, "weights": weights}


def children() -> float:
    """Return seconds of processors in processes that were started and have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    """Measure."""
    parser = options(__doc__)
    parser.add_argument("--data", type=Path, help="folder with texts as *.jsonl.gz")
    parser.add_argument("--peer-python", type=Path, help="an environment with data-selection")
    parser.add_argument("--megabytes", type=float, default=95.0)
    parser.add_argument("--workers", type=int, default=2)
    chosen = parse(parser)
    num_bytes = 2e5 if chosen.quick else chosen.megabytes * 1e6
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        raw, target = folder / "raw.jsonl", folder / "target.jsonl"
        known, wanted = texts(chosen.data)
        total = write(raw, varied(known, num_bytes))
        write(target, iter(wanted))
        runs: dict[str, list[Run]] = {"fast": [], "sha256": []}
        other = None
        if chosen.peer_python is not None:
            other = peer(chosen.peer_python, raw, target, folder / "peer", chosen.workers)
        for _ in range(1 + (1 if chosen.quick else chosen.rounds)):
            for hashing, found in runs.items():
                found.append(ours(raw, target, chosen.workers, hashing))
    publish(
        "What DSIR costs",
        [describe(total, chosen.workers), times(runs, other, total), plan(runs, total, chosen)],
        chosen.out,
    )


def describe(total: int, workers: int) -> str:
    """Say what was measured."""
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return (
        f"{total / 1e6:.1f} MB of text, {workers} workers on {os.cpu_count()} cores; peak memory "
        f"of our process {memory:,.0f} MB, imports included."
    )


def times(
    runs: dict[str, list[Run]],
    other: dict[str, Any] | None,
    total: int,
) -> str:
    """Return the table of times, and how well the weights agree."""
    head = ["", "fit, s", "weigh, s", "both, s", "MB/s in a pass", "times the peer"]
    head += ["CPU s", "times the peer"]
    rows: list[list[object]] = []
    peer_time = None if other is None else other["fit"] + other["weigh"]
    if other is not None and peer_time is not None:
        rate = 2 * total / 1e6 / peer_time
        both = f"{peer_time:.1f}"
        rows.append(["data-selection", f"{other['fit']:.1f}", f"{other['weigh']:.1f}", both])
        rows[-1] += [f"{rate:.2f}", "1", f"{other['processors']:.1f}", "1"]
    for hashing, found in runs.items():
        for label, part in (("first round", found[:1]), ("", found[1:])):
            fit, weigh = median(one[0] for one in part), median(one[1] for one in part)
            both = median(one[0] + one[1] for one in part)
            ratio = "" if peer_time is None else f"{peer_time / both:.0f}x"
            name = f"gradsift, {hashing}" + (f", {label}" if label else "")
            numbers = [f"{fit:.2f}", f"{weigh:.2f}", f"{both:.2f}"]
            used = median(one[2] for one in part)
            share = "" if other is None else f"{other['processors'] / used:.0f}x"
            numbers += [f"{2 * total / 1e6 / both:.0f}", ratio, f"{used:.2f}", share]
            rows.append([name, *numbers])
    lines = [table(head, rows), ""]
    fast, slow = runs["fast"][-1][3], runs["sha256"][-1][3]
    lines.append(f"Rank correlation of fast and SHA-256 weights: {rank(fast, slow):.5f}.")
    if other is not None:
        error = np.abs(slow - other["weights"])
        lines.append(
            f"Against the peer: SHA-256 weights differ by at most {error.max():.1e} "
            f"(relative {(error / np.maximum(np.abs(other['weights']), 1)).max():.1e}); rank "
            f"correlation of the fast ones {rank(fast, other['weights']):.5f}."
        )
    return "\n".join(lines)


def plan(runs: dict[str, list[Run]], total: int, chosen: Any) -> str:
    """Return what the Pile would take at the measured rates, on paper."""
    found = runs["fast"][1:]
    weigh = 2 * total / median(one[2] for one in found)  # a pass over all, by CPU time
    rows = []
    for cores in (2, 16, 64):
        hours = PILE / weigh / cores / 3600
        rows.append([cores, f"{hours:.2g}", f"{2 * hours:.2g}"])
    head = ["cores", "weighing, hours", "with a fit on everything, hours"]
    text = (
        f"On paper, for the 825 GB of the Pile as plain jsonl at {weigh / 1e6:.0f} MB/s of CPU "
        "time, if reading keeps up and cores scale:"
    )
    return f"{text}\n\n{table(head, rows)}"


def rank(one: np.ndarray, other: np.ndarray) -> float:
    """Return the rank correlation."""
    return float(spearmanr(one, other)[0])  # type: ignore[index]


if __name__ == "__main__":
    main()
