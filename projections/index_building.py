"""Building an index on the disk part by part, going on with it, and merging its parts.

Letters: ``n`` rows, ``d`` dimensions of a row.

The lists are trained once, on a seeded sample. Then each part needs nothing but the trained
index and its shards, so that ranks take parts in rounds. A part is written and synced, and
then one line of the journal says so: a kill loses the parts that were being written.
"""

import json
import shutil
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from projections.checks import check_at_least
from projections.disk_index import KIND, NOTE, PARTS, DiskIndex
from projections.errors import StoreMismatchError
from projections.faiss_factory import FOLDER, empty_index, load_faiss, training_rows
from projections.files import read_json, write_json
from projections.fingerprint import differences
from projections.index_files import TRAINED, merge_files, save_index, to_units, write_part
from projections.index_parts import (
    Part,
    drop_entry,
    group_shards,
    next_number,
    part_entry,
    read_parts,
)
from projections.journal import Journal
from projections.ranks import Ranks, current_ranks
from projections.rounds import make_rounds, own_shard
from projections.row_types import INT8_MOST, SCALES
from projections.store import GradientStore

PART_BYTES = 1 << 30  # of a part, most of which is in memory while it is built
FORMAT = 1
WHOLE_NUMBERS = "SQ8_direct_signed"
ROOM = 1.05  # free bytes that merging needs, a byte of the parts


def build_disk_index(
    store: GradientStore,
    factory: str,
    *,
    seed: int,
    path: str | Path | None = None,
    rows_per_part: int | None = None,
) -> DiskIndex:
    """Build an index of inverted lists on the disk, or go on with it.

    What was finished is kept: after a kill, and when rows were added to the store since, only
    what is missing is built; parts of shards that were compacted are built again. The lists
    are those of the rows that were there at first. Ranks take parts in turn.

    Args:
        store: The store.
        factory: A FAISS factory string that begins with ``IVF``. ``SQ8_direct_signed`` keeps
            whole numbers of one byte in one unit for all rows, and rounds queries to such too,
            which is searched fastest.
        seed: Chooses the rows that train the lists.
        path: Folder of the index; one beside the store unless given.
        rows_per_part: Rows of a part; as many as a gigabyte holds unless given.

    Raises:
        ImportError: FAISS is not installed.
        ValueError: FAISS does not understand the string, the lists are not of the kind that
            lies on the disk, or there are too few rows.
        StoreMismatchError: The folder holds another index.

    References:
        Douze et al., The Faiss library (2024), arXiv:2401.08281, Sec. 6 (inverted files).
    """
    check_at_least("rows_per_part", 1 if rows_per_part is None else rows_per_part, 1)
    ranks = current_ranks()
    folder = Path(path) if path is not None else lists_beside(store, factory, seed)
    with ranks.telling():
        note = ranks.on_first(lambda: _begin(folder, store, factory, seed), "training an index")
        size = rows_per_part or max(1, PART_BYTES // note["code_size"])
        first, groups = ranks.on_first(lambda: _missing(folder, store, size), "parts of an index")
        for turn in make_rounds(0, len(groups), ranks.size):
            _build_round(folder, store, groups, turn, first, note["unit"], ranks)
        ranks.barrier("the last part of an index")
    return DiskIndex.open(folder, store)


def merge_parts(index: DiskIndex, *, into: int = 1) -> DiskIndex:
    """Merge the parts of an index, so that the lists of each lie in one file.

    Neighbours do not change. The parts of a group are removed when their merger is safe; a
    merge that was stopped goes on. Rank 0 does it where there are several.

    Args:
        index: The index.
        into: Number of parts that are left, at most. Each needs room on the disk while it is
            written; merging into several needs less.

    Raises:
        OSError: There is not enough room; nothing was done.
    """
    check_at_least("into", into, 1)
    ranks = current_ranks()
    with ranks.telling():
        ranks.on_first(lambda: _merge(index.path, into), "merging parts")
    return DiskIndex.open(index.path, index.store)


def lists_beside(store: GradientStore, factory: str, seed: int) -> Path:
    """Return the folder of an index beside a store."""
    return store.path / FOLDER / f"{factory.replace('/', '_')}-{seed}.lists"


def has_plain_lists(index: Any) -> bool:
    """Tell whether an index is one of inverted lists that can lie on the disk."""
    faiss = load_faiss()
    if not isinstance(index, faiss.IndexIVF):
        return False
    return isinstance(faiss.downcast_InvertedLists(index.invlists), faiss.ArrayInvertedLists)


def _begin(folder: Path, store: GradientStore, factory: str, seed: int) -> dict[str, Any]:
    """Train the lists, or find them trained, and return what the index is."""
    made_of = sha256(json.dumps(dict(store.manifest), sort_keys=True).encode()).hexdigest()[:16]
    wanted = {
        "format": FORMAT,
        "store": made_of,
        "factory": factory,
        "seed": seed,
        "num_dims": store.num_dims,
    }
    if (folder / NOTE).exists():
        note = read_json(folder / NOTE, KIND)
        if different := differences(wanted, {key: note.get(key) for key in wanted}):
            raise StoreMismatchError(
                f"{folder} must be a new folder or hold the same index. It differs in: "
                f"{'; '.join(different)}. Choose another folder or remove this one."
            )
        return note
    index = empty_index(store.num_dims, factory)
    if not has_plain_lists(index):
        raise ValueError(
            "`factory` must begin with 'IVF' and have lists that can lie on the disk, such as "
            f"'IVF1024,SQ8'. Got {factory!r}. `FaissIndex.build` takes it."
        )
    unit = None
    rows = training_rows(store, index, factory, seed)
    if "direct" in factory:
        unit = _unit(store, factory)
        rows = to_units(rows, unit)
        index.by_residual = False  # whole numbers less centroids would not be whole
    index.train(rows)
    save_index(index, folder / TRAINED)
    note = {**wanted, "nlist": index.nlist, "code_size": index.code_size + 8, "unit": unit}
    write_json(folder / NOTE, note)
    return note


def _unit(store: GradientStore, factory: str) -> float:
    """Return the least unit in which no number of any row is beyond 127."""
    if not factory.endswith(WHOLE_NUMBERS):
        raise ValueError(
            f"`factory` must name {WHOLE_NUMBERS!r} for whole numbers with signs. Got {factory!r}."
        )
    filled = [shard for shard in store.shards if len(shard)]
    if filled and SCALES in filled[0].files:
        return max(float(store.kept_column(shard, SCALES).max()) for shard in filled)
    most = max((float(np.abs(block).max(initial=0)) for block in store.blocks()), default=0.0)
    return most / INT8_MOST or 1.0


def _missing(folder: Path, store: GradientStore, rows_per_part: int) -> tuple[int, list[list[int]]]:
    """Drop parts of shards that are no more, and return the number and shards of new ones."""
    journal = Journal(folder / PARTS)
    parts = read_parts(journal.entries)
    stale = [part for part in parts if not part.is_of(store)]
    if stale:
        journal.add(drop_entry(stale))
    kept = [part for part in parts if part not in stale]
    _remove_others(folder, kept)
    held = {number for part in kept for number, _ in part.shards}
    missing = [shard for shard in store.shards if shard.number not in held]
    groups = group_shards(missing, rows_per_part)
    numbers = [[shard.number for shard in group] for group in groups]
    return next_number(journal.entries), numbers


def _build_round(
    folder: Path,
    store: GradientStore,
    groups: Sequence[Sequence[int]],
    turn: range,
    first: int,
    unit: float | None,
    ranks: Ranks,
) -> None:
    """Write the parts of a round, one a rank, and let rank 0 list them."""
    own, part = own_shard(turn, ranks), None
    if own is not None:
        shards = [shard for shard in store.shards if shard.number in set(groups[own])]
        part = write_part(folder, first + own, store, shards, unit)
    found = ranks.gather(part, "parts of a round")
    if ranks.is_first:
        journal = Journal(folder / PARTS)
        for part in found:
            if part is not None:
                journal.add(part_entry(part))


def _merge(folder: Path, into: int) -> None:
    """Merge the parts of each group in turn."""
    journal = Journal(folder / PARTS)
    parts = read_parts(journal.entries)
    _remove_others(folder, parts)
    groups = [group for group in _even_groups(parts, into) if len(group) > 1]
    _check_room(folder, groups, into)
    for group in groups:
        merged = merge_files(folder, next_number(journal.entries), group)
        journal.add(part_entry(merged, group))
        for part in group:
            shutil.rmtree(folder / part.folder)


def _even_groups(parts: Sequence[Part], into: int) -> list[list[Part]]:
    """Return consecutive parts in groups with about as many rows each."""
    ends = np.cumsum([part.num_rows for part in parts])
    middles = ends - np.array([part.num_rows for part in parts]) / 2
    owners = np.minimum(middles * into // max(1, ends[-1] if len(ends) else 1), into - 1)
    pairs = list(zip(owners, parts, strict=True))
    return [[part for found, part in pairs if found == owner] for owner in np.unique(owners)]


def _check_room(folder: Path, groups: Sequence[Sequence[Part]], into: int) -> None:
    """Refuse to merge without room for the largest group."""
    sizes = [
        sum(file.stat().st_size for part in group for file in (folder / part.folder).iterdir())
        for group in groups
    ]
    needed, free = int(ROOM * max(sizes, default=0)), shutil.disk_usage(folder).free
    if needed > free:
        raise OSError(
            f"merging into {into} needs {needed:,} free bytes at {folder}. There are {free:,}. "
            "Free some, or merge into more parts. Nothing was done."
        )


def _remove_others(folder: Path, parts: Sequence[Part]) -> None:
    """Remove the folders of parts that are not listed: unfinished, merged or dropped."""
    listed = {part.folder for part in parts}
    for found in folder.glob("part-*"):
        if found.name not in listed:
            shutil.rmtree(found)
