"""Texts with stable ids from anything, in blocks, in constant memory.

Rows are known by the column ``id`` where there is one. Elsewhere by their position, which
is ``file:position`` where there are several files, so that no id depends on their order.
Blocks are read by whoever works on them, so that workers share the reading.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import datasets

from projections.data import Rows
from projections.errors import DataError
from projections.ray_data import is_on_ray, ray_tables
from projections.streams import COMPRESSED, without_compression
from projections.text_blocks import Block, ray_block
from projections.text_columns import TextColumns
from projections.text_sources import dataset_blocks, file_blocks, item_blocks

STAMPED = 1 << 16  # bytes of a file that enter the fingerprint


@dataclass(frozen=True)
class Texts:
    """Texts that can be walked over again and again.

    Args:
        data: One or more paths (jsonl, parquet or csv, the first and the last also as gz or
            zst; or a folder made by ``save_to_disk``), a `datasets.Dataset`, any iterable of
            texts or of mappings, or a function that returns an iterator of these; a
            ``ray.data.Dataset`` with a column of ids, whose blocks Ray's workers work on.
        columns: Names of the columns.

    Raises:
        DataError: A file is not there or of no known format; while reading, a line or a row
            that is broken, by file and line.
        TypeError: The data can be walked over only once.

    Example:
        >>> texts = Texts([{"id": "a", "text": "x"}, {"id": "b", "text": "y"}])
        >>> [block.batch().texts.to_pylist() for block in texts.blocks()]
        [['x', 'y']]
    """

    data: Any
    columns: TextColumns = field(default_factory=TextColumns)

    def __post_init__(self) -> None:
        """Check that the data is there and can be read again."""
        for path in self.paths:
            _check_path(path)
        if isinstance(self.data, Iterator):
            raise TypeError(
                "`data` must be something that can be read more than once. Got "
                f"{type(self.data).__name__}. Pass a list, or a function that returns an iterator."
            )

    @property
    def paths(self) -> list[Path]:
        """The files, if the data comes from files."""
        if isinstance(self.data, str | Path):
            return [Path(self.data)]
        several = isinstance(self.data, list | tuple) and len(self.data) > 0
        return list(self.data) if several and all(isinstance(x, Path) for x in self.data) else []

    @property
    def on_ray(self) -> bool:
        """Whether the data is a dataset of Ray."""
        return is_on_ray(self.data)

    @property
    def fingerprint(self) -> str:
        """Text that changes with the files, or with what `Rows` says of the data."""
        if self.paths:
            return sha256(repr([_stamp(path) for path in self.paths]).encode()).hexdigest()[:16]
        whole = hasattr(self.data, "__len__") and not self.on_ray
        sized = whole and hasattr(self.data, "__getitem__")
        return Rows(self.data, by_position=True).fingerprint if sized else type(self.data).__name__

    @property
    def extent(self) -> tuple[int | None, str]:
        """How much there is, if that is known, and in what unit blocks have their size."""
        kinds = {without_compression(path) for path in self.paths}
        if kinds and kinds <= {".jsonl", ".json"}:
            plain = all(path.suffix not in COMPRESSED for path in self.paths)
            return sum(path.stat().st_size for path in self.paths) if plain else None, "B"
        sized = not self.paths and not self.on_ray and hasattr(self.data, "__len__")
        return len(self.data) if sized else None, "rows"

    def blocks(self) -> Iterator[Block]:
        """Yield the rows in blocks, the same ones each time."""
        if self.paths:
            for path, prefix in zip(self.paths, _prefixes(self.paths), strict=True):
                yield from file_blocks(path, self.columns, prefix)
        elif isinstance(self.data, datasets.Dataset):
            yield from dataset_blocks(self.data, self.columns, "the dataset")
        elif self.on_ray:
            for table in ray_tables(self.data):
                yield ray_block(table, self.columns)
        else:
            items: Any = self.data() if callable(self.data) else _items(self.data)
            yield from item_blocks(items, self.columns)


def as_texts(data: Any) -> Texts:
    """Return ``data`` as `Texts`."""
    return data if isinstance(data, Texts) else Texts(data)


def _check_path(path: Path) -> None:
    """Refuse a path that is not there, or whose format is not known."""
    if not path.exists():
        raise DataError(f"{path} must be a data file. There is no such file.")
    known = (".jsonl", ".json", ".csv", ".parquet")
    if not path.is_dir() and without_compression(path) not in known:
        raise DataError(f"{path} must end in one of {', '.join(known)}, perhaps with .gz or .zst.")


def _prefixes(paths: Sequence[Path]) -> list[str]:
    """Return what stands before the position in the ids of rows without one."""
    if len(paths) == 1:
        return [""]
    names = [path.name for path in paths]
    return [f"{path if names.count(path.name) > 1 else path.name}:" for path in paths]


def _stamp(path: Path) -> tuple[str, int, bytes]:
    """Return name, size and beginning of a file or a folder."""
    if path.is_dir():
        return path.name, len(list(path.iterdir())), b""
    with path.open("rb") as file:
        return path.name, path.stat().st_size, file.read(STAMPED)


def _items(data: Any) -> Iterable[Any]:
    """Return an iterable of the items of a dataset of any kind."""
    if hasattr(data, "__iter__"):
        return data
    return (data[position] for position in range(len(data)))
