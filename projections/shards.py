"""What a store holds, by its journal: finished shards, deleted rows, announced rows.

Letters: ``n`` rows of a shard.

There are four kinds of entries. ``shard``: a shard is finished. ``extend``: more rows are
announced, for a store that was finished. ``delete``: rows of shards are deleted.
``rewrite``: a shard was written again without its deleted rows.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

JOURNAL = "journal.jsonl"


@dataclass(frozen=True)
class Shard:
    """One finished shard.

    Args:
        number: Its number in the store.
        folder: Name of its folder.
        num_rows: Rows on the disk, deleted ones among them.
        num_written: Rows that were there at first, before any rewriting.
        files: The checksum of each column.
        deleted: Rows that are deleted, ascending.
    """

    number: int
    folder: str
    num_rows: int
    num_written: int
    files: Mapping[str, str]
    deleted: frozenset[int] = field(default=frozenset())

    def __len__(self) -> int:
        """Return the number of rows that are not deleted."""
        return self.num_rows - len(self.deleted)

    @cached_property
    def live(self) -> Int[np.ndarray, " n"]:
        """The rows that are not deleted, ascending."""
        return np.setdiff1d(np.arange(self.num_rows), list(self.deleted), assume_unique=True)

    def file(self, store: Path, name: str) -> Path:
        """Return the path of a column."""
        return store / self.folder / f"{name}.npy"


@dataclass(frozen=True)
class Contents:
    """What the entries of a journal add up to.

    Args:
        shards: The finished shards.
        extensions: What was announced after the first rows: ``num_rows`` and more.
    """

    shards: tuple[Shard, ...]
    extensions: tuple[Mapping[str, Any], ...]


def read_contents(entries: Sequence[Mapping[str, Any]]) -> Contents:
    """Add up the entries of a journal."""
    shards: list[Shard] = []
    extensions: list[Mapping[str, Any]] = []
    for entry in entries:
        if "shard" in entry:
            shards.append(_new_shard(len(shards), entry["shard"]))
        elif "extend" in entry:
            extensions.append(entry["extend"])
        elif "delete" in entry:
            for number, rows in entry["delete"]:
                gone = shards[number].deleted | frozenset(rows)
                shards[number] = replace(shards[number], deleted=gone)
        else:
            number, now = entry["rewrite"], entry["to"]
            shards[number] = replace(shards[number], **now, deleted=frozenset())
    return Contents(tuple(shards), tuple(extensions))


def shard_entry(num_rows: int, files: Mapping[str, str]) -> dict[str, Any]:
    """Return the entry of a finished shard."""
    return {"shard": {"num_rows": num_rows, "files": dict(files)}}


def delete_entry(rows_by_shard: Mapping[int, Collection[int]]) -> dict[str, Any]:
    """Return the entry of deleted rows."""
    return {"delete": [[number, sorted(rows)] for number, rows in sorted(rows_by_shard.items())]}


def rewrite_entry(shard: Shard, folder: str, files: Mapping[str, str]) -> dict[str, Any]:
    """Return the entry of a shard that was written again without its deleted rows."""
    now = {"folder": folder, "num_rows": len(shard), "files": dict(files)}
    return {"rewrite": shard.number, "to": now}


def shard_folder(number: int) -> str:
    """Return the name of the folder of a shard."""
    return f"shard-{number:06d}"


def _new_shard(number: int, entry: Mapping[str, Any]) -> Shard:
    """Return a shard as it was first written."""
    size = entry["num_rows"]
    return Shard(number, shard_folder(number), size, size, entry["files"])
