"""What the parts of an index on the disk hold, by its journal, and where its rows are.

Letters: ``q`` queries, ``n`` rows, ``k`` neighbours.

A row has a number that stays the same whatever is added, deleted or compacted elsewhere:
that of its shard, times 2^32, plus its place in the shard. A part names its shards and the
checksums that they had, so that shards which were written again since are known.

There are two kinds of entries. ``part``: a part is finished, in place of those it
``replaces``. ``drop``: parts whose shards were written again are gone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import numpy as np
from jaxtyping import Int

from projections.shards import Shard
from projections.store import GradientStore

SHARD_BITS = 32  # of a number, for the place in the shard
NONE = -1  # number and position of a row that was not found


@dataclass(frozen=True)
class Part:
    """One finished part.

    Args:
        number: Its number, which no other part ever has.
        shards: Number and fingerprint of each shard whose rows it holds.
        num_rows: Rows in it.
        files: The checksum of each file.
    """

    number: int
    shards: tuple[tuple[int, str], ...]
    num_rows: int
    files: Mapping[str, str]

    @property
    def folder(self) -> str:
        """Name of its folder."""
        return part_folder(self.number)

    def is_of(self, store: GradientStore) -> bool:
        """Tell whether the store still has its shards as they were."""
        now = {shard.number: fingerprint_shard(shard) for shard in store.shards}
        return all(now.get(number) == found for number, found in self.shards)


def read_parts(entries: Sequence[Mapping[str, Any]]) -> tuple[Part, ...]:
    """Return the parts that a journal adds up to, in the order of their shards."""
    parts: dict[int, Part] = {}
    for entry in entries:
        for gone in entry.get("drop", entry.get("replaces", ())):
            parts.pop(gone)
        if "part" in entry:
            facts = entry["part"]
            shards = tuple((number, found) for number, found in facts["shards"])
            number = facts["number"]
            parts[number] = Part(number, shards, facts["num_rows"], facts["files"])
    return tuple(sorted(parts.values(), key=lambda part: part.shards[0]))


def part_entry(part: Part, replaces: Sequence[Part] = ()) -> dict[str, Any]:
    """Return the entry of a finished part."""
    facts = {"number": part.number, "shards": part.shards, "num_rows": part.num_rows}
    replaced = [other.number for other in replaces]
    return {"part": {**facts, "files": dict(part.files)}, "replaces": replaced}


def drop_entry(parts: Sequence[Part]) -> dict[str, Any]:
    """Return the entry of parts that are gone."""
    return {"drop": [part.number for part in parts]}


def next_number(entries: Sequence[Mapping[str, Any]]) -> int:
    """Return the number of the next part."""
    return 1 + max((entry["part"]["number"] for entry in entries if "part" in entry), default=-1)


def part_folder(number: int) -> str:
    """Return the name of the folder of a part."""
    return f"part-{number:06d}"


def group_shards(shards: Sequence[Shard], rows_per_part: int) -> list[list[Shard]]:
    """Return consecutive shards, so many together that a part is not much too large.

    Example:
        >>> shards = [Shard(number, "", 3, 3, {}) for number in range(5)]
        >>> [[shard.number for shard in group] for group in group_shards(shards, 6)]
        [[0, 1], [2, 3], [4]]
    """
    groups: list[list[Shard]] = []
    room = 0
    for shard in shards:
        if room < len(shard) or not groups:
            groups.append([])
            room = rows_per_part
        groups[-1].append(shard)
        room -= len(shard)
    return groups


def fingerprint_shard(shard: Shard) -> str:
    """Return 16 hexadecimal digits that change with any row of a shard, not by deleting."""
    return sha256(str(sorted(shard.files.items())).encode()).hexdigest()[:16]


def numbers_of(shard: Shard) -> Int[np.ndarray, " n"]:
    """Return the numbers of the rows of a shard that are not deleted."""
    rows = shard.live if shard.deleted else np.arange(shard.num_rows)
    return (shard.number << SHARD_BITS) + rows


def deleted_numbers(store: GradientStore) -> Int[np.ndarray, " n"]:
    """Return the numbers of the rows that are deleted and still on the disk."""
    gone = [
        (shard.number << SHARD_BITS) + np.array(sorted(shard.deleted), np.int64)
        for shard in store.shards
    ]
    return np.concatenate([np.empty(0, np.int64), *gone])


def positions_of(store: GradientStore, numbers: Int[np.ndarray, "q k"]) -> Int[np.ndarray, "q k"]:
    """Return positions in the store from numbers of rows."""
    owners = numbers >> SHARD_BITS
    places = numbers - (owners << SHARD_BITS)
    starts = np.cumsum([0, *map(len, store.shards)])
    known = {shard.number: place for place, shard in enumerate(store.shards)}
    positions = np.full(numbers.shape, NONE)
    for owner in np.unique(owners[numbers != NONE]):
        mine = (owners == owner) & (numbers != NONE)
        shard = store.shards[known[int(owner)]]
        within = np.searchsorted(shard.live, places[mine]) if shard.deleted else places[mine]
        positions[mine] = starts[known[int(owner)]] + within
    return positions
