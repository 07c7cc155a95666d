"""Works on a store in processes that are killed at random moments until one of them ends.

The processes are forks of this program, so that each starts at once. A moment is counted in
accesses to files, which are the same on every machine, or in seconds, which can fall in the
middle of a write. Writes the number of kills.
"""

import os
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from projections import GradientStore, StoreWriter, Table, compact_store, delete_rows, merge_stores

SHARD_SIZE = 1000
NUM_DIMS = 4
ACCESSES = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir"}


def write(path: Path, num_rows: int, *, first: int = 0, part: str = "a") -> None:
    """Write the rows of a store, or go on with them."""
    writer = StoreWriter(path, {"model": "m", "data": part}, num_rows=num_rows)
    fill(writer, num_rows, first)


def extend(path: Path, num_rows: int) -> None:
    """Write half of a store, then add the other half, or go on with that."""
    write(path, num_rows // 2)
    more = StoreWriter.extend(path, {"model": "m", "data": "b"}, num_rows=num_rows // 2)
    fill(more, num_rows // 2, num_rows // 2)


def fill(writer: StoreWriter, num_rows: int, first: int) -> None:
    """Write the shards that are missing."""
    for shard in range(writer.num_finished, -(-num_rows // SHARD_SIZE)):
        start = shard * SHARD_SIZE
        ids = first + np.arange(start, min(start + SHARD_SIZE, num_rows))
        rows = np.random.default_rng(shard).standard_normal((len(ids), NUM_DIMS), np.float32)
        writer.write(shard, Table(ids, {"sketch": rows, "loss": rows[:, 0]}))


def compact(path: Path, num_rows: int) -> None:
    """Write a store, delete every third row and compact it."""
    write(path, num_rows)
    gone = np.arange(0, num_rows, 3)
    store = GradientStore.open(path)
    if len(store) == num_rows:
        delete_rows(path, gone)
    compact_store(path)


def merge(path: Path, num_rows: int) -> None:
    """Write two stores and merge them."""
    parts = [path / "left", path / "right"]
    for number, part in enumerate(parts):
        write(part, num_rows // 2, first=number * num_rows, part=str(number))
    merge_stores(parts, path / "both")


WORK: dict[str, Callable[[Path, int], None]] = {
    "write": write,
    "extend": extend,
    "compact": compact,
    "merge": merge,
}


def kill_after_accesses(amount: float) -> None:
    """Let this process be killed when it has accessed files so many times."""
    left = 1 + int(amount)

    def count(event: str, _: object) -> None:
        nonlocal left
        if event in ACCESSES:
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)


def kill_after_seconds(amount: float) -> None:
    """Let this process be killed after so many seconds, wherever it is."""
    signal.setitimer(signal.ITIMER_REAL, amount)


MOMENTS: dict[str, Callable[[float], None]] = {
    "accesses": kill_after_accesses,
    "seconds": kill_after_seconds,
}


def kill_until_done(work: Callable[[], None], unit: str, seed: int, mean: float) -> int:
    """Return how often the work was killed before it ended by itself."""
    random, kills = np.random.default_rng(seed), 0
    while True:
        amount = random.exponential(mean)
        child = os.fork()
        if child == 0:
            try:
                MOMENTS[unit](amount)
                work()
                os._exit(0)
            except BaseException as error:
                sys.stderr.write(f"the work failed: {error!r}\n")
                os._exit(1)
        _, status = os.waitpid(child, 0)
        if os.WIFEXITED(status):
            if os.WEXITSTATUS(status):
                raise SystemExit("a process failed instead of going on; its message is above")
            return kills
        kills += 1


if __name__ == "__main__":
    name, folder, size, unit, start, most = sys.argv[1:]
    work = partial(WORK[name], Path(folder), int(size))
    sys.stdout.write(f"{kill_until_done(work, unit, int(start), float(most))}\n")
