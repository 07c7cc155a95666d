"""A gradient store: rows of projected gradients on disk, with ids, norms and losses.

Letters: ``n`` rows, ``k`` dimensions of a row.

A store is a folder: one folder for each shard with one ``.npy`` file a column, and
``manifest.json``, which lists the finished shards with their checksums and says what the
rows were made of. Whatever the manifest does not list does not exist, so a killed writer
goes on where it stopped and a reader may look while rows are being written.
"""

import json
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from projections.base import Table
from projections.checks import check_one_of
from projections.errors import StoreMismatchError
from projections.files import read_json, write_array, write_json
from projections.fingerprint import differences, fingerprint_file

FORMAT = 1
KIND = "a gradient store"
MANIFEST = "manifest.json"
ROWS = "sketch"  # the column with the projected gradients
IDS = "ids"
SCALES = "row_scale"  # what int8 rows are multiplied by
DTYPES = ("float32", "float16", "int8")
INT8_MOST = 127
MOST_MAPS = 8192  # files mapped at a time; systems allow some 65,000


class StoreWriter:
    """Writes a store shard by shard; the sink of a pass.

    A folder that holds a store with the same description is continued.

    Args:
        path: The folder.
        description: Where the rows come from, as plain JSON values; a store with another
            description is not touched.
        num_rows: Number of rows that the finished store will have.
        dtype: Type of the rows on disk: ``"float32"``, ``"float16"``, or ``"int8"`` with one
            scale a row.

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
        check_one_of("dtype", dtype, DTYPES)
        self.path = Path(path)
        plain = json.loads(json.dumps(dict(description), allow_nan=False))  # as it is read back
        wanted = {"format": FORMAT, "num_rows": num_rows, "dtype": dtype, **plain}
        if (self.path / MANIFEST).exists():
            self._manifest = read_json(self.path / MANIFEST, KIND)
            found = {key: self._manifest.get(key) for key in self._manifest if key != "shards"}
            if different := differences(wanted, found):
                raise StoreMismatchError(
                    f"{self.path} must be a new folder or a store made from the same model, data "
                    f"and settings. It differs in: {'; '.join(different)}. Choose another folder "
                    "or remove this one."
                )
        elif self.path.is_file():
            raise StoreMismatchError(
                f"{self.path} must be a new folder, or one with a store. It is a file."
            )
        elif self.path.exists() and any(self.path.iterdir()):
            raise StoreMismatchError(
                f"{self.path} must be a new folder, or one with a store. It holds something else."
            )
        else:
            self._manifest = {**wanted, "shards": []}
            write_json(self.path / MANIFEST, self._manifest)

    @property
    def num_finished(self) -> int:
        """Number of shards that are safe."""
        return len(self._manifest["shards"])

    def write(self, shard: int, table: Table) -> None:
        """Write one shard and list it in the manifest.

        Args:
            shard: Its number; shards come in order.
            table: Its rows.

        Raises:
            OverflowError: A row does not fit the store's dtype.
            OSError: The disk is full; earlier shards are safe.
        """
        if shard != self.num_finished:
            raise ValueError(f"`shard` must be {self.num_finished}, the next one. Got {shard}.")
        files = {}
        arrays = {IDS: table.ids, **table.columns}
        if ROWS in arrays:
            arrays |= _narrow(arrays[ROWS], self._manifest["dtype"], table.ids)
        for name, array in arrays.items():
            file = self._file(shard, name)
            write_array(file, array)
            files[name] = fingerprint_file(file)
        entry = {"rows": len(table), "files": files}
        updated = {**self._manifest, "shards": [*self._manifest["shards"], entry]}
        write_json(self.path / MANIFEST, updated)
        self._manifest = updated

    def _file(self, shard: int, name: str) -> Path:
        """Return the path of one column of one shard."""
        return shard_file(self.path, shard, name)


@dataclass(frozen=True)
class GradientStore:
    """A store opened for reading; rows stay on disk until they are asked for.

    Args:
        path: The folder.
        manifest: What `GradientStore.open` read.
    """

    path: Path
    manifest: Mapping[str, Any]

    @classmethod
    def open(cls, path: str | Path, *, allow_unfinished: bool = False) -> "GradientStore":
        """Open a store.

        Args:
            path: The folder.
            allow_unfinished: Whether a store that is still being written will do; it then
                has the rows of the shards that are finished now.

        Raises:
            StoreMismatchError: It is no store, is unfinished, or is of a newer format.
        """
        folder = Path(path)
        manifest = read_json(folder / MANIFEST, KIND)
        if not isinstance(manifest, dict) or "shards" not in manifest:
            raise StoreMismatchError(f"{folder} must be {KIND}. Its {MANIFEST} lists no shards.")
        if manifest.get("format") != FORMAT:
            raise StoreMismatchError(
                f"{folder} must have the format {FORMAT}. It has {manifest.get('format')}. Use the "
                "version of gradsift that wrote it, or build it again."
            )
        store = cls(folder, manifest)
        if len(store) < manifest["num_rows"] and not allow_unfinished:
            raise StoreMismatchError(
                f"{folder} must be a finished store. It has {len(store)} of "
                f"{manifest['num_rows']} rows. Run the command that builds it again to go on, or "
                "open it with `allow_unfinished=True`."
            )
        return store

    def __len__(self) -> int:
        """Return the number of rows."""
        return sum(shard["rows"] for shard in self.manifest["shards"])

    @property
    def num_dims(self) -> int:
        """Number ``k`` of dimensions of a row."""
        return self._load(0, ROWS).shape[1] if self.manifest["shards"] else 0

    @property
    def column_names(self) -> list[str]:
        """Names of the columns, without ids and rows."""
        shards = self.manifest["shards"]
        hidden = (IDS, ROWS, SCALES)
        return [name for name in shards[0]["files"] if name not in hidden] if shards else []

    @cached_property
    def ids(self) -> np.ndarray:
        """The id of each row."""
        return self.column(IDS)

    def column(self, name: str) -> np.ndarray:
        """Return one column of all rows in memory.

        Args:
            name: One of `column_names`, or ``"ids"``.

        Raises:
            KeyError: There is no such column.
        """
        if name not in (*self.column_names, IDS, ROWS):
            raise KeyError(f"the store must have the column {name!r}. It has {self.column_names}.")
        parts = [self._load(shard, name) for shard in range(len(self.manifest["shards"]))]
        return np.concatenate(parts) if parts else np.empty(0)

    def blocks(self) -> Iterator[np.ndarray]:
        """Yield the rows of each shard, ``n k``: mapped from disk, or for int8 as float32."""
        for shard in range(len(self.manifest["shards"])):
            yield self._widen(shard, slice(None))

    def rows(self, positions: Sequence[int] | np.ndarray) -> np.ndarray:
        """Return the rows at these positions as float32, ``n k``."""
        wanted = np.asarray(positions, dtype=np.int64)
        if len(wanted) and not (wanted.min() >= 0 and wanted.max() < len(self)):
            raise IndexError(f"positions must be in [0, {len(self)}). Got {wanted.tolist()[:10]}.")
        ends = np.cumsum([shard["rows"] for shard in self.manifest["shards"]])
        owners = np.searchsorted(ends, wanted, side="right")
        out = np.empty((len(wanted), self.num_dims), dtype=np.float32)
        for shard in np.unique(owners):
            mine = owners == shard
            start = ends[shard] - self.manifest["shards"][shard]["rows"]
            out[mine] = self._widen(int(shard), wanted[mine] - start)
        return out

    def table(self) -> Table:
        """Return all columns but the rows."""
        return Table(self.ids, {name: self.column(name) for name in self.column_names})

    def verify(self) -> None:
        """Compare every file with its checksum.

        Raises:
            StoreMismatchError: Names the files that are damaged or missing.
        """
        bad = []
        for shard, entry in enumerate(self.manifest["shards"]):
            for name, checksum in entry["files"].items():
                file = shard_file(self.path, shard, name)
                if not file.exists() or fingerprint_file(file) != checksum:
                    bad.append(str(file.relative_to(self.path)))
        if bad:
            raise StoreMismatchError(
                f"every file of {self.path} must match its checksum. Damaged or missing: "
                f"{', '.join(bad)}. Build the store again; the other shards are whole."
            )

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

    def _widen(self, shard: int, which: slice | np.ndarray) -> np.ndarray:
        """Return some rows of a shard, as numbers of their true size."""
        rows = self._load(shard, ROWS)[which]
        if rows.dtype != np.int8:
            return rows
        return rows * self._load(shard, SCALES)[which][:, None]

    @cached_property
    def _maps(self) -> "OrderedDict[tuple[int, str], np.ndarray]":
        """Columns that are mapped, the least recently used first."""
        return OrderedDict()

    def _load(self, shard: int, name: str) -> np.ndarray:
        """Map one column of one shard, or find it mapped from before."""
        found = self._maps.pop((shard, name), None)
        if found is None:
            found = self._map(shard, name)
            while len(self._maps) >= MOST_MAPS:
                self._maps.popitem(last=False)
        self._maps[shard, name] = found
        return found

    def _map(self, shard: int, name: str) -> np.ndarray:
        """Map one column of one shard."""
        file = shard_file(self.path, shard, name)
        try:
            array = np.load(file, mmap_mode="c", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise StoreMismatchError(
                f"{file} must be a whole column of the store, and cannot be read: {error}. Build "
                "the store again; `verify` lists all damaged files."
            ) from error
        if len(array) != self.manifest["shards"][shard]["rows"]:
            raise StoreMismatchError(
                f"{file} must have {self.manifest['shards'][shard]['rows']} rows. It has "
                f"{len(array)}. Build the store again; `verify` lists all damaged files."
            )
        return array


def shard_file(folder: Path, shard: int, name: str) -> Path:
    """Return the path of one column of one shard."""
    return folder / f"shard-{shard:06d}" / f"{name}.npy"


def _narrow(rows: np.ndarray, dtype: str, ids: np.ndarray) -> dict[str, np.ndarray]:
    """Return rows in the store's dtype, int8 ones with scales; refuse those that overflow."""
    if dtype == "int8":
        largest = np.abs(rows).max(axis=1, initial=0)
        scales = (np.where(largest > 0, largest, 1) / INT8_MOST).astype(np.float32)
        return {ROWS: np.rint(rows / scales[:, None]).astype(np.int8), SCALES: scales}
    with np.errstate(over="ignore"):
        kept = rows.astype(dtype)
    overflow = ~np.isfinite(kept).all(axis=1)
    if overflow.any():
        raise OverflowError(
            f"rows must fit into {dtype}. Those with the ids {ids[overflow][:10].tolist()} reach "
            f"{np.abs(rows[overflow]).max():.3g}. Use dtype='float32'."
        )
    return {ROWS: kept}
