"""Writing a store, shard by shard; the sink of a pass.

A shard's files are written and synced first, and then one line of the journal says so. A
writer that is killed at any point leaves a store that the next one continues, to the
same bytes.
"""

import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from projections.base import Table
from projections.checks import check_one_of
from projections.errors import StoreMismatchError
from projections.files import SUFFIX, sync_folder, write_array, write_json
from projections.fingerprint import differences, fingerprint_file
from projections.journal import Journal
from projections.row_types import NUM_NAMED, ROW_TYPES, ROWS, narrow
from projections.shards import JOURNAL, read_contents, shard_entry, shard_folder
from projections.store import FORMAT, IDS, MANIFEST, GradientStore, read_manifest

OF_A_PART = ("data", "shard_size", "notes", "num_rows")  # what extensions may have of their own


class StoreWriter:
    """Writes a store shard by shard; the sink of a pass.

    A folder that holds a store with the same description is continued.

    Args:
        path: The folder.
        description: Where the rows come from, as plain JSON values; a store with another
            description is not touched.
        num_rows: Number of rows that the finished store will have.
        dtype: Type of the rows on disk: ``"float32"``, ``"float16"``, ``"bfloat16"``, or
            ``"int8"`` with one scale a row.

    Raises:
        StoreMismatchError: The folder holds another store, or something else.
    """

    def __init__(
        self,
        path: str | Path,
        description: Mapping[str, Any],
        *,
        num_rows: int,
        dtype: str = "float32",
    ) -> None:
        """Open the folder, new or half-written."""
        check_one_of("dtype", dtype, ROW_TYPES)
        self.path = Path(path)
        wanted = {"format": FORMAT, "num_rows": num_rows, "dtype": dtype, **as_read(description)}
        if (self.path / MANIFEST).exists():
            _check_same(self.path, wanted, read_manifest(self.path))
        else:
            _check_new(self.path)
            write_json(self.path / MANIFEST, wanted)
        self._journal = Journal(self.path / JOURNAL)
        self._begin(dtype, 0, num_rows)

    @classmethod
    def extend(
        cls, path: str | Path, description: Mapping[str, Any], *, num_rows: int
    ) -> "StoreWriter":
        """Open a finished store to add rows to it, or go on with adding them.

        Rows that were added under this description before are not added again.

        Args:
            path: The folder.
            description: As for a new store; ``data``, ``shard_size`` and ``notes`` may differ.
            num_rows: Number of rows that will be added.

        Raises:
            StoreMismatchError: The folder holds no finished store, or one of something else.
        """
        store = GradientStore.open(path, allow_unfinished=True)
        part = {**as_read(description), "num_rows": num_rows}
        shared = {key: value for key, value in part.items() if key not in OF_A_PART}
        _check_same(store.path, shared, {key: store.manifest.get(key) for key in shared})
        own = {key: part[key] for key in OF_A_PART if key in part}
        writer = cls.__new__(cls)
        writer.path = store.path
        writer._journal = Journal(store.path / JOURNAL)
        known = list(read_contents(writer._journal.entries).extensions)
        if own not in known:
            if not store.is_finished:
                raise StoreMismatchError(
                    f"{store.path} must be finished before rows are added. It has "
                    f"{store.num_written} of {store.num_planned} rows. Run the command that was "
                    "stopped again."
                )
            writer._journal.add({"extend": own})
            known.append(own)
        before = known[: known.index(own)]
        start = store.manifest["num_rows"] + sum(more["num_rows"] for more in before)
        writer._begin(store.manifest["dtype"], start, num_rows)
        return writer

    def _begin(self, dtype: str, start: int, num_rows: int) -> None:
        """Find the shards of the rows from ``start`` on."""
        shards = read_contents(self._journal.entries).shards
        ends = np.cumsum([shard.num_written for shard in shards])
        self._dtype = dtype
        self._first = int(np.searchsorted(ends, start, side="right")) if start else 0
        last = int(np.searchsorted(ends, start + num_rows, side="right"))
        self._num_finished = last - self._first

    @property
    def num_finished(self) -> int:
        """Number of shards that are safe."""
        return self._num_finished

    @cached_property
    def _taken(self) -> frozenset[Any]:
        """Ids of the rows that were there before an extension."""
        if not self._first:
            return frozenset()
        store = GradientStore.open(self.path, allow_unfinished=True)
        return frozenset(store.without(range(self._first, len(store.shards))).ids.tolist())

    def write(self, shard: int, table: Table) -> None:
        """Write one shard and list it in the journal.

        Args:
            shard: Its number among the rows of this writer; shards come in order.
            table: Its rows.

        Raises:
            OverflowError: A row does not fit the store's dtype.
            NonFiniteError: A row is not finite.
            StoreMismatchError: An id is in the store already, which is being extended.
            OSError: The disk is full; earlier shards are safe.
        """
        self.write_kept(shard, self._arrays(table))

    def stage(self, shard: int, table: Table) -> dict[str, Any]:
        """Write the files of a shard that is not the next one, and return its entry.

        The shard exists when `enter` has been called with it, in the order of the shards.
        Ranks stage shards of their own, and the first of them enters all.

        Args:
            shard: Its number among the rows of this writer.
            table: Its rows.
        """
        return self._stage(shard, self._arrays(table))

    def enter(self, shard: int, entry: Mapping[str, Any]) -> None:
        """List a staged shard in the journal."""
        self._check_next(shard)
        self._journal.add(dict(entry))
        self._num_finished += 1

    def follow(self, shard: int) -> None:
        """Know that another rank has entered a shard."""
        self._check_next(shard)
        self._num_finished += 1

    def _arrays(self, table: Table) -> dict[str, np.ndarray]:
        """Return all columns as they go to the disk."""
        arrays = {IDS: table.ids, **table.columns}
        if ROWS in arrays:
            arrays |= narrow(arrays[ROWS], self._dtype, table.ids)
        return arrays

    def check_ids(self, ids: np.ndarray) -> None:
        """Refuse ids of rows that were there before this writer's.

        Raises:
            StoreMismatchError: Names them.
        """
        if repeated := self._taken.intersection(ids.tolist()):
            raise StoreMismatchError(
                f"the ids of {self.path} must differ from those of the rows that are added. Both "
                f"have {sorted(repeated)[:NUM_NAMED]}. Delete these rows first, or leave them out."
            )

    def write_kept(self, shard: int, columns: Mapping[str, np.ndarray]) -> None:
        """Write one shard whose rows have the store's type already.

        Args:
            shard: Its number among the rows of this writer.
            columns: All columns, ids among them, as they go to the disk.
        """
        self._check_next(shard)
        self.enter(shard, self._stage(shard, columns))

    def _stage(self, shard: int, columns: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """Write the files of a shard and return its entry."""
        self.check_ids(columns[IDS])
        files = write_columns(self.path / shard_folder(self._first + shard), columns)
        return shard_entry(len(columns[IDS]), files)

    def _check_next(self, shard: int) -> None:
        """Refuse a shard out of order."""
        if shard != self._num_finished:
            raise ValueError(f"`shard` must be {self._num_finished}, the next one. Got {shard}.")


def write_columns(folder: Path, columns: Mapping[str, np.ndarray]) -> dict[str, str]:
    """Write the files of one shard and return their checksums."""
    files = {}
    for name, array in columns.items():
        write_array(folder / f"{name}.npy", array)
        files[name] = fingerprint_file(folder / f"{name}.npy")
    sync_folder(folder)
    sync_folder(folder.parent)
    return files


def as_read(description: Mapping[str, Any]) -> dict[str, Any]:
    """Return a description as it will be read back from JSON."""
    return json.loads(json.dumps(dict(description), allow_nan=False))


def _check_same(path: Path, wanted: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    """Refuse a store of something else, by what differs."""
    if different := differences(wanted, found):
        raise StoreMismatchError(
            f"{path} must be a new folder or a store made from the same model, data and settings. "
            f"It differs in: {'; '.join(different)}. Choose another folder or remove this one."
        )


def _check_new(path: Path) -> None:
    """Refuse a folder that holds something else."""
    if path.is_file():
        raise StoreMismatchError(f"{path} must be a new folder, or one with a store. It is a file.")
    # A writer may have been killed while it wrote the manifest.
    if path.exists() and any(file.name != MANIFEST + SUFFIX for file in path.iterdir()):
        raise StoreMismatchError(
            f"{path} must be a new folder, or one with a store. It holds something else."
        )
