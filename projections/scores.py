"""Scores: numbers about examples by row id, as a table that travels.

Letters: ``n`` examples, ``q`` queries.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from projections.base import Provenance, Table
from projections.checks import check_not_empty
from projections.errors import DataError
from projections.files import replacing

METADATA = b"gradsift"


@dataclass(frozen=True)
class Scores:
    """One or more scores of each example.

    Args:
        ids: The row ids, ``n``.
        columns: By method: one number an example, ``n``, or one for each query, ``q n``.
        query_ids: Ids of the queries, for scores of pairs.
        provenance: Where the scores came from.

    Example:
        >>> scores = Scores(np.array([7, 9]), {"loss": np.array([0.5, 2.0])})
        >>> scores["loss"].values, scores.to_dataset()[1]
        (array([0.5, 2. ]), {'id': 9, 'loss': 2.0})
    """

    ids: np.ndarray
    columns: Mapping[str, np.ndarray]
    query_ids: np.ndarray | None = None
    provenance: Provenance = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check that shapes fit."""
        check_not_empty("columns", len(self.columns))
        for name, values in self.columns.items():
            width = () if self.query_ids is None else (len(self.query_ids),)
            if values.shape != (*width, len(self.ids)):
                raise ValueError(
                    f"the column {name!r} must have the shape {(*width, len(self.ids))}. Got "
                    f"{values.shape}."
                )

    @classmethod
    def from_table(cls, table: Table, provenance: Provenance | None = None) -> "Scores":
        """Return the columns of a table that hold one number a row."""
        columns = {name: values for name, values in table.columns.items() if values.ndim == 1}
        return cls(table.ids, columns, provenance=dict(provenance or {}))

    def __len__(self) -> int:
        """Return the number ``n`` of examples."""
        return len(self.ids)

    def __getitem__(self, name: str) -> "Scores":
        """Return one column as scores of its own."""
        if name not in self.columns:
            raise KeyError(f"the scores must have the column {name!r}. They have {self.names}.")
        return Scores(self.ids, {name: self.columns[name]}, self.query_ids, self.provenance)

    @property
    def names(self) -> list[str]:
        """Names of the columns."""
        return list(self.columns)

    @property
    def values(self) -> np.ndarray:
        """The only column.

        Raises:
            ValueError: There are several; pick one with ``scores[name]``.
        """
        if len(self.columns) != 1:
            raise ValueError(f"one column must be chosen, as in scores['loss']. Got {self.names}.")
        return next(iter(self.columns.values()))

    def join(self, other: "Scores") -> "Scores":
        """Return the columns of both, which must be about the same ids.

        Raises:
            DataError: The ids or the queries differ, or a column is in both.
        """
        if not np.array_equal(self.ids, other.ids):
            raise DataError(
                f"scores that are joined must be about the same ids in the same order. Got "
                f"{len(self)} and {len(other)} rows that differ. Compute both on one dataset."
            )
        if repeated := [name for name in self.names if name in other.columns]:
            raise DataError(
                f"columns that are joined must have different names. Both have {repeated}."
            )
        queries = [None if q is None else q.tolist() for q in (self.query_ids, other.query_ids)]
        if queries[0] != queries[1]:
            raise DataError(
                "scores that are joined must be about the same queries, or all about single rows. "
                "Got different ones. Compute both for one set of queries."
            )
        provenance = {**self.provenance, **other.provenance}
        return Scores(self.ids, {**self.columns, **other.columns}, self.query_ids, provenance)

    def to_dataset(self) -> datasets.Dataset:
        """Return a `datasets.Dataset` with the column ``id`` and one column a score."""
        return datasets.Dataset(self._to_arrow())

    def save(self, path: str | Path) -> None:
        """Write parquet, with the provenance in its metadata."""
        with replacing(Path(path)) as file:
            pq.write_table(self._to_arrow(), file)

    @classmethod
    def load(cls, path: str | Path) -> "Scores":
        """Read scores.

        Raises:
            DataError: The file is no parquet, or has no column ``id``.
        """
        table = read_parquet(Path(path))
        note: dict[str, Any] = json.loads((table.schema.metadata or {}).get(METADATA, b"{}"))
        columns = {name: _stack(table.column(name)) for name in table.column_names if name != "id"}
        queries = note.get("query_ids")
        ids = np.asarray(table.column("id").to_pylist())
        query_ids = None if queries is None else np.asarray(queries)
        return cls(ids, columns, query_ids, note.get("provenance", {}))

    def _to_arrow(self) -> pa.Table:
        """Return an arrow table."""
        columns: dict[str, Any] = {"id": pa.array(self.ids.tolist())}
        for name, values in self.columns.items():
            flat = pa.array(np.ascontiguousarray(values.T).reshape(-1))
            pairs = values.ndim == 2
            columns[name] = pa.FixedSizeListArray.from_arrays(flat, len(values)) if pairs else flat
        queries = None if self.query_ids is None else self.query_ids.tolist()
        note = json.dumps({"provenance": dict(self.provenance), "query_ids": queries})
        return pa.table(columns).replace_schema_metadata({METADATA: note.encode()})


def read_parquet(path: Path) -> pa.Table:
    """Read a parquet file that has a column ``id``.

    Raises:
        DataError: It cannot be read, or has no such column.
    """
    if not path.exists():
        raise DataError(f"{path} must be a parquet file. There is no such file.")
    try:
        table = pq.read_table(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{path} must be a parquet file, and cannot be read: {error}") from error
    if "id" not in table.column_names:
        raise DataError(f"{path} must have the column 'id'. It has {table.column_names}.")
    return table


def _stack(column: pa.ChunkedArray) -> np.ndarray:
    """Return a column of numbers as ``n``, and one of lists as ``q n``."""
    if pa.types.is_fixed_size_list(column.type):
        values = column.combine_chunks().flatten().to_numpy(zero_copy_only=False)
        return values.reshape(len(column), column.type.list_size).T
    return column.to_numpy()
