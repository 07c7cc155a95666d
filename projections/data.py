"""Datasets as rows with stable ids, whatever they came as.

A dataset is anything with a length and an index: a `datasets.Dataset`, a torch `Dataset`,
a list of rows. Rows have an id that travels with them through stores, scores and
selections: the column ``id`` where there is one, else the position. Not handled: streams
without a length, whose rows could not be found again.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from typing import Any

import datasets
import numpy as np
import torch
from torch import Tensor

from projections.checks import check_at_least, check_not_empty
from projections.errors import DataError

NUM_SAMPLED_ROWS = 64  # rows that enter the fingerprint of a dataset without one of its own


@dataclass(frozen=True)
class Rows:
    """A dataset seen as rows with ids.

    Args:
        data: Anything with ``len`` and ``[]``.
        id_column: Name of the column with the ids. Default: ``"id"`` if rows are mappings
            that have it, else the position is the id.
        by_position: Whether the position is the id whatever columns there are.

    Raises:
        TypeError: The data has no length or no index, or is a data loader.
        DataError: An id is missing, or occurs twice.

    Example:
        >>> rows = Rows([{"id": "a", "text": "x"}, {"id": "b", "text": "y"}])
        >>> rows.ids.tolist(), rows.fetch([1])
        (['a', 'b'], [{'id': 'b', 'text': 'y'}])
    """

    data: Any
    id_column: str | None = None
    by_position: bool = False

    def __post_init__(self) -> None:
        """Check that rows can be counted and found again."""
        if isinstance(self.data, torch.utils.data.DataLoader):
            raise TypeError(
                "`data` must be a dataset with a length and an index, since rows need stable "
                "ids. Got a DataLoader. Pass its `.dataset`; batches are made here."
            )
        sized = hasattr(self.data, "__len__") and hasattr(self.data, "__getitem__")
        if not sized or isinstance(self.data, str | Mapping):
            raise TypeError(
                "`data` must have a length and an index (a list, a `datasets.Dataset`, a torch "
                f"`Dataset`). Got {type(self.data).__name__}. Collect a stream into a list, read a "
                "file with `read_dataset`, take one split of several."
            )

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.data)

    @cached_property
    def ids(self) -> np.ndarray:
        """The id of each row: int64, or text."""
        column = self.id_column or ("id" if len(self) and _has_column(self.data, "id") else None)
        if column is None or self.by_position:
            return np.arange(len(self), dtype=np.int64)
        return as_ids(_column(self.data, column), f"column {column!r}")

    def numbered(self) -> "Rows":
        """Return the same rows with their positions for ids."""
        return Rows(self.data, by_position=True)

    def fetch(self, positions: Sequence[int]) -> list[Any]:
        """Return the rows at these positions, in this order."""
        if isinstance(self.data, datasets.Dataset):
            columns = self.data[list(positions)]
            names = list(columns)
            return [
                dict(zip(names, row, strict=True)) for row in zip(*columns.values(), strict=True)
            ]
        return [self.data[position] for position in positions]

    def find(self, ids: Sequence[Any] | np.ndarray) -> list[int]:
        """Return the positions of the rows with these ids.

        Raises:
            DataError: An id is not there.
        """
        places = self._places
        missing = [row_id for row_id in np.asarray(ids).tolist() if row_id not in places]
        if missing:
            raise DataError(f"the data must have the rows with the ids {missing[:5]}. It has not.")
        return [places[row_id] for row_id in np.asarray(ids).tolist()]

    @cached_property
    def _places(self) -> dict[Any, int]:
        """The position of each id."""
        return {row_id: position for position, row_id in enumerate(self.ids.tolist())}

    @cached_property
    def fingerprint(self) -> str:
        """Text that changes with the data: the fingerprint of a `datasets.Dataset`.

        Elsewhere a hash of the length, the ids and up to 64 rows spread over the data.
        """
        own = getattr(self.data, "_fingerprint", None)
        if isinstance(own, str):
            return f"{len(self)}-{own}"
        digest = sha256(str(len(self)).encode())
        digest.update(self.ids.tobytes())
        spread = np.linspace(0, len(self) - 1, min(len(self), NUM_SAMPLED_ROWS)).astype(int)
        for row in self.fetch([int(position) for position in spread]):
            for piece in bytes_of(row):
                digest.update(piece)
        return f"{len(self)}-{digest.hexdigest()[:16]}"


def as_rows(data: Any) -> Rows:
    """Return ``data`` as `Rows`, and refuse an empty one."""
    rows = data if isinstance(data, Rows) else Rows(data)
    check_not_empty("data", len(rows))
    return rows


def as_ids(values: Sequence[Any] | np.ndarray, source: str) -> np.ndarray:
    """Return ids as int64 or as text, and refuse missing and repeated ones.

    Args:
        values: One id a row.
        source: Where they came from, for messages.

    Raises:
        DataError: An id is missing, or occurs twice.
    """
    ids = _whole_or_text(values, source)
    unique, counts = np.unique(ids, return_counts=True)
    if len(unique) != len(ids):
        repeated = unique[counts > 1][:5].tolist()
        raise DataError(
            f"{source} must hold each id once. Repeated: {repeated}. Remove the copies or name "
            "another column with `id_column`."
        )
    return ids


def _whole_or_text(values: Sequence[Any] | np.ndarray, source: str) -> np.ndarray:
    """Return ids as int64 where all are whole numbers, else as text."""
    if isinstance(values, np.ndarray) and values.dtype.kind in "iU":
        return values.astype(np.int64) if values.dtype.kind == "i" else values
    plain = [value.item() if isinstance(value, Tensor) else value for value in values]
    for position, value in enumerate(plain):
        if value is None:
            raise DataError(f"{source} must hold an id in every row. Row {position} has none.")
    whole = all(isinstance(value, int | np.integer) for value in plain)
    return np.asarray(plain, dtype=np.int64) if whole else np.asarray([str(v) for v in plain])


def flatten_batches(batches: Sequence[Any]) -> list[Any]:
    """Return the rows of ready-made batches, which are tuples or mappings of tensors.

    Args:
        batches: Tensors with the examples on the first axis, in tuples or mappings.

    Example:
        >>> flatten_batches([(torch.eye(2), torch.tensor([0, 1]))])[1]
        (tensor([0., 1.]), tensor(1))
    """
    return [row for batch in batches for row in _split(batch)]


def shard_ranges(num_rows: int, shard_size: int) -> list[range]:
    """Return the positions of each shard."""
    check_at_least("shard_size", shard_size, 1)
    return [
        range(start, min(start + shard_size, num_rows)) for start in range(0, num_rows, shard_size)
    ]


def _split(batch: Any) -> list[Any]:
    """Return the rows of one batch."""
    if isinstance(batch, Mapping):
        columns = list(batch.values())
        return [dict(zip(batch, row, strict=True)) for row in zip(*columns, strict=True)]
    return list(zip(*batch, strict=True))


def _has_column(data: Any, name: str) -> bool:
    """Tell whether rows have this column, by the first row."""
    if isinstance(data, datasets.Dataset):
        return name in data.column_names
    first = data[0]
    return isinstance(first, Mapping) and name in first


def _column(data: Any, name: str) -> list[Any]:
    """Return one column of all rows."""
    if not _has_column(data, name):
        raise DataError(f"the data must have the column {name!r}. Its rows have none of that name.")
    if isinstance(data, datasets.Dataset):
        return list(data[name])
    return [row.get(name) for row in data]


def bytes_of(value: Any) -> Iterator[bytes]:
    """Yield bytes that describe a row."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield str(key).encode()
            yield from bytes_of(item)
    elif isinstance(value, tuple | list):
        for item in value:
            yield from bytes_of(item)
    elif isinstance(value, Tensor):
        yield value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    elif hasattr(value, "tobytes"):  # arrays and images, whose text is no description
        yield value.tobytes()
    else:
        yield repr(value).encode()
