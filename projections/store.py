"""A gradient store: rows of projected gradients on disk, with ids, norms and losses.

Letters: ``n`` rows, ``k`` dimensions of a row.

A store is a folder: ``manifest.json`` says what the rows were made of, one folder for each
shard has one ``.npy`` file a column, and ``journal.jsonl`` lists the finished shards with
their checksums, and what was deleted since. Whatever the journal does not list does not
exist, so a killed writer goes on where it stopped and a reader may look meanwhile.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int, Num
from torch import Tensor

from projections.base import Table
from projections.column_files import ColumnFiles, damaged_files
from projections.errors import StoreMismatchError
from projections.files import read_json
from projections.fingerprint import differences
from projections.journal import Journal
from projections.row_types import ROWS, SCALES, as_tensor, widen
from projections.shards import JOURNAL, Shard, read_contents

FORMAT = 2
KIND = "a gradient store"
MANIFEST = "manifest.json"
IDS = "ids"
HIDDEN = (IDS, ROWS, SCALES)  # columns that are no column to a user


@dataclass(frozen=True)
class GradientStore:
    """A store opened for reading; rows stay on disk until they are asked for.

    What is deleted, written or rewritten after it was opened is not seen.

    Args:
        path: The folder.
        manifest: What the rows were made of, and ``"dtype"``, their type.
        shards: The finished shards.
        num_planned: Rows that were announced, deleted ones among them.
    """

    path: Path
    manifest: Mapping[str, Any]
    shards: tuple[Shard, ...]
    num_planned: int

    @classmethod
    def open(cls, path: str | Path, *, allow_unfinished: bool = False) -> "GradientStore":
        """Open a store.

        Args:
            path: The folder.
            allow_unfinished: Whether a store that is still being written will do; it then
                has the rows of the shards that are finished now.

        Raises:
            StoreMismatchError: It is no store, is unfinished, or is of another format.
        """
        folder = Path(path)
        manifest = read_manifest(folder)
        contents = read_contents(Journal(folder / JOURNAL).entries)
        planned = [manifest["num_rows"], *(more["num_rows"] for more in contents.extensions)]
        store = cls(folder, manifest, contents.shards, sum(planned))
        if not store.is_finished and not allow_unfinished:
            raise StoreMismatchError(
                f"{folder} must be a finished store. It has {store.num_written} of "
                f"{store.num_planned} rows. Run the command that builds it again to go on, or "
                "open it with `allow_unfinished=True`."
            )
        return store

    def __len__(self) -> int:
        """Return the number of rows that are not deleted."""
        return sum(len(shard) for shard in self.shards)

    @property
    def num_written(self) -> int:
        """Number of rows that were ever written."""
        return sum(shard.num_written for shard in self.shards)

    @property
    def is_finished(self) -> bool:
        """Whether all rows that were announced have been written."""
        return self.num_written >= self.num_planned

    @property
    def num_dims(self) -> int:
        """Number ``k`` of dimensions of a row."""
        return self._files.load(self.shards[0], ROWS).shape[1] if self.shards else 0

    @property
    def column_names(self) -> list[str]:
        """Names of the columns, without ids and rows."""
        return [name for name in self.shards[0].files if name not in HIDDEN] if self.shards else []

    @cached_property
    def ids(self) -> np.ndarray:
        """The id of each row."""
        return self.column(IDS)

    def column(self, name: str) -> np.ndarray:
        """Return one column of all rows in memory; the rows themselves as float32.

        Args:
            name: One of `column_names`, ``"ids"`` or ``"sketch"``.

        Raises:
            KeyError: There is no such column.
        """
        if name == ROWS:
            return self.rows(np.arange(len(self)))
        if name not in (*self.column_names, IDS):
            raise KeyError(f"the store must have the column {name!r}. It has {self.column_names}.")
        parts = [self.kept_column(shard, name) for shard in self.shards]
        return np.concatenate(parts) if parts else np.empty(0)

    def blocks(self) -> Iterator[np.ndarray]:
        """Yield the rows of each shard, ``n k``: mapped from disk, or widened to float32."""
        for rows, scales in self._kept():
            yield rows if rows.dtype.kind == "f" else widen(rows, scales)

    def tensors(self) -> Iterator[tuple[Num[Tensor, "n k"], Float[np.ndarray, " n"] | None]]:
        """Yield the rows of each shard in the type they have on disk, and int8 rows' scales."""
        for rows, scales in self._kept():
            yield as_tensor(rows), scales

    def rows(self, positions: Sequence[int] | np.ndarray) -> Float[np.ndarray, "n k"]:
        """Return the rows at these positions as float32.

        Args:
            positions: Row numbers in ``[0, len(store))``, in any order.
        """
        wanted = np.asarray(positions, dtype=np.int64)
        if len(wanted) and not (wanted.min() >= 0 and wanted.max() < len(self)):
            raise IndexError(f"positions must be in [0, {len(self)}). Got {wanted.tolist()[:10]}.")
        ends = np.cumsum([len(shard) for shard in self.shards])
        owners = np.searchsorted(ends, wanted, side="right")
        out = np.empty((len(wanted), self.num_dims), dtype=np.float32)
        for number in np.unique(owners):
            shard, mine = self.shards[number], owners == number
            within = wanted[mine] - (ends[number] - len(shard))
            chosen = shard.live[within] if shard.deleted else within
            scales = self._files.load(shard, SCALES)[chosen] if SCALES in shard.files else None
            out[mine] = widen(self._files.load(shard, ROWS)[chosen], scales)
        return out

    def kept_column(self, shard: Shard, name: str) -> np.ndarray:
        """Return one column of one shard as it is on the disk, without deleted rows."""
        column = self._files.load(shard, name)
        return column[shard.live] if shard.deleted else column

    def table(self) -> Table:
        """Return all columns but the rows."""
        return Table(self.ids, {name: self.column(name) for name in self.column_names})

    def verify(self) -> None:
        """Compare every file with its checksum.

        Raises:
            StoreMismatchError: Names the files that are damaged or missing.
        """
        bad = damaged_files(self.path, self.shards)
        if bad:
            files = [name for names in bad.values() for name in names]
            lost = sum(len(shard) for shard in self.shards if shard.number in bad)
            raise StoreMismatchError(
                f"every file of {self.path} must match its checksum. Damaged or missing: "
                f"{', '.join(files)}. The other {len(self) - lost} of {len(self)} rows are whole: "
                "`without_damaged` gives a store of them. Or build the store again."
            )

    def without_damaged(self) -> "GradientStore":
        """Return the store without the shards of which a file is damaged or missing."""
        return self.without(damaged_files(self.path, self.shards))

    def without(self, shards: Collection[int]) -> "GradientStore":
        """Return the store without the shards of these numbers."""
        return replace(self, shards=tuple(s for s in self.shards if s.number not in shards))

    def undeleted(self) -> "GradientStore":
        """Return the store with the deleted rows that are still on the disk."""
        return replace(
            self, shards=tuple(replace(shard, deleted=frozenset()) for shard in self.shards)
        )

    @cached_property
    def live(self) -> Int[np.ndarray, " n"] | None:
        """Numbers on the disk of the rows, ascending; None where nothing is deleted."""
        if not any(shard.deleted for shard in self.shards):
            return None
        starts = np.cumsum([0, *(shard.num_rows for shard in self.shards)])
        pairs = zip(starts, self.shards, strict=False)
        return np.concatenate([start + shard.live for start, shard in pairs])

    @cached_property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that change with any row on the disk, but not by deleting."""
        digest = sha256(str([dict(shard.files) for shard in self.shards]).encode())
        return digest.hexdigest()[:16]

    def require(self, **expected: Any) -> None:
        """Refuse a store whose description differs.

        Args:
            expected: Entries of the description, such as ``model="…"``.

        Raises:
            StoreMismatchError: Names what differs.
        """
        found = {key: self.manifest.get(key) for key in expected}
        if different := differences(found, expected):
            raise StoreMismatchError(
                f"{self.path} (first) must fit what it is used with (second). They differ in: "
                f"{'; '.join(different)}. Use the same model and settings, or build it again."
            )

    @cached_property
    def _files(self) -> ColumnFiles:
        """The mapped columns."""
        return ColumnFiles(self.path)

    def _kept(self) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
        """Yield rows and scales of the shards that have any rows left."""
        for shard in self.shards:
            if len(shard):
                scales = self.kept_column(shard, SCALES) if SCALES in shard.files else None
                yield self.kept_column(shard, ROWS), scales


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest of a store.

    Raises:
        StoreMismatchError: The folder holds no store, or one of another format.
    """
    manifest = read_json(folder / MANIFEST, KIND)
    if not isinstance(manifest, dict) or "num_rows" not in manifest:
        raise StoreMismatchError(f"{folder} must be {KIND}. Its {MANIFEST} names no rows.")
    if manifest.get("format") != FORMAT:
        raise StoreMismatchError(
            f"{folder} must have the format {FORMAT}. It has {manifest.get('format')}. Use the "
            "version of gradsift that wrote it, or build it again."
        )
    return manifest
