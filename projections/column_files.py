"""The columns of a store's shards, mapped from disk, and whether they are damaged."""

from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from projections.errors import StoreMismatchError
from projections.fingerprint import fingerprint_file
from projections.shards import Shard

MOST_MAPS = 8192  # files mapped at a time; systems allow some 65,000
REMEDY = "`verify` lists all damaged files, and `without_damaged` opens the rest."


class ColumnFiles:
    """Columns of shards, each mapped when it is asked for and kept mapped for a while.

    Args:
        path: Folder of the store.
    """

    def __init__(self, path: Path) -> None:
        """Start with none."""
        self.path = path
        # By folder of the shard and name of the column, least recently used first.
        self._maps: OrderedDict[tuple[str, str], np.ndarray] = OrderedDict()

    def load(self, shard: Shard, name: str) -> np.ndarray:
        """Return one column of one shard as it is on the disk, deleted rows among it.

        Raises:
            StoreMismatchError: The file is missing or is no such column.
        """
        key = (shard.folder, name)
        found = self._maps.pop(key, None)
        if found is None:
            found = _map(shard.file(self.path, name), shard.num_rows)
            while len(self._maps) >= MOST_MAPS:
                self._maps.popitem(last=False)
        self._maps[key] = found
        return found


def damaged_files(path: Path, shards: Iterable[Shard]) -> dict[int, list[str]]:
    """Return the files that do not match their checksums, by the number of their shard."""
    found: dict[int, list[str]] = {}
    for shard in shards:
        for name, checksum in shard.files.items():
            file = shard.file(path, name)
            if not file.is_file() or fingerprint_file(file) != checksum:
                found.setdefault(shard.number, []).append(str(file.relative_to(path)))
    return found


def _map(file: Path, num_rows: int) -> np.ndarray:
    """Map one column; one without rows cannot be mapped, and is read."""
    try:
        array = np.load(file, mmap_mode="c" if num_rows else None, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise StoreMismatchError(
            f"{file} must be a whole column of the store, and cannot be read: {error}. {REMEDY}"
        ) from error
    if len(array) != num_rows:
        raise StoreMismatchError(f"{file} must have {num_rows} rows. It has {len(array)}. {REMEDY}")
    return array
