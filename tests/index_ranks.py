"""An index on the disk, built and searched by some ranks; as a program, one rank of a launcher.

torchrun --nproc-per-node=3 tests/index_ranks.py FOLDER [PART]
"""

import os
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np

from projections import (
    DiskIndex,
    GradientStore,
    StoreWriter,
    Table,
    build_disk_index,
    current_ranks,
    delete_rows,
    index_building,
    merge_parts,
)

NUM_ROWS, NUM_DIMS, SHARD, LISTS = 560, 8, 40, 4
RANDOM = np.random.default_rng(0)
ROWS = RANDOM.standard_normal((NUM_ROWS, NUM_DIMS)).astype(np.float32)
QUERIES = RANDOM.standard_normal((5, NUM_DIMS)).astype(np.float32)


def write(path: Path) -> None:
    """Write the store, and delete some of it."""
    writer = StoreWriter(path, {}, num_rows=NUM_ROWS, dtype="int8")
    for shard, start in enumerate(range(0, NUM_ROWS, SHARD)):
        ids = np.arange(start, start + SHARD)
        writer.write(shard, Table(ids, {"sketch": ROWS[ids]}))
    delete_rows(path, [3, 77])


def everything(folder: Path, factory: str = "IVF4,SQ8") -> dict[str, np.ndarray]:
    """Build, search, merge and search again."""
    store = GradientStore.open(folder / "store")
    index = build_disk_index(store, factory, seed=0, path=folder / "i", rows_per_part=2 * SHARD)
    found = {}
    for name in ("parts", "merged"):
        one = index if name == "parts" else merge_parts(index, into=2)
        for end, top in zip(("top", "bottom"), one.search_both(QUERIES, 9), strict=True):
            found[f"{name} {end} ids"], found[f"{name} {end} scores"] = top.ids, top.scores
    few = DiskIndex.open(index.path, store).with_lists_searched(LISTS)
    found["all lists"] = few.search(QUERIES, 9).ids
    return found


def die_at(part: int) -> None:
    """Let this process die where it would write a part."""
    real: Any = index_building.write_part

    def write_part(folder: Path, number: int, *rest: Any) -> Any:
        if number == part:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(folder, number, *rest)

    index_building.write_part = write_part


if __name__ == "__main__":
    where = Path(sys.argv[1])
    if len(sys.argv) > 2:
        die_at(int(sys.argv[2]))
    results = everything(where)
    file = where / f"rank{current_ranks().rank}.npz"
    np.savez(file, **results)  # pyright: ignore[reportArgumentType]
