"""Ids, texts and domains of rows, out of tables and mappings.

Where a row has no text, or no id or domain although others have one, that is refused, and
whoever calls says how its place is called.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from projections.errors import DataError


@dataclass(frozen=True, kw_only=True)
class TextColumns:
    """Names of the columns that are read."""

    text: str = "text"
    """The column with the text."""

    id: str = "id"
    """The column with the ids; rows are known by their position where there is none."""

    domain: str | None = None
    """The column that says where a row comes from, if any."""

    @property
    def names(self) -> list[str]:
        """The columns that are read."""
        return [self.id, self.text] + ([] if self.domain is None else [self.domain])


@dataclass(frozen=True)
class TextBatch:
    """Ids and texts of some rows, as arrow arrays.

    Args:
        ids: Whole numbers or text.
        texts: The texts.
        domains: Text, or None where no column was asked for.
    """

    ids: pa.Array
    texts: pa.Array
    domains: pa.Array | None

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.ids)


def table_of(rows: Sequence[Any], columns: TextColumns, where: Callable[[int], str]) -> pa.Table:
    """Return id, text and domain of rows as a table.

    Raises:
        DataError: The text of a row is no text.
    """
    for row, item in enumerate(rows):
        text = item.get(columns.text)
        if not isinstance(text, str):
            raise DataError(_no_text(where(row), columns.text, text, item))
        if not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text):
            raise DataError(
                f"{where(row)}: the text must be Unicode. It has half a surrogate pair."
            )
    arrays = {columns.text: pa.array([item[columns.text] for item in rows], pa.string())}
    ids = [item.get(columns.id) for item in rows]
    if any(value is not None for value in ids):
        whole = all(isinstance(value, int) or value is None for value in ids)
        kept = ids if whole else [None if value is None else str(value) for value in ids]
        arrays[columns.id] = pa.array(kept, pa.int64() if whole else pa.string())
    if columns.domain is not None:
        domains = [item.get(columns.domain) for item in rows]
        arrays[columns.domain] = pa.array([None if d is None else str(d) for d in domains])
    return pa.table(arrays)


def batch_of(
    table: pa.Table,
    columns: TextColumns,
    *,
    first_row: int,
    prefix: str,
    where: Callable[[int], str],
) -> TextBatch:
    """Return the columns of a table.

    Args:
        table: Some rows.
        columns: Names of its columns.
        first_row: Position of the first row, which is known by it where there are no ids.
        prefix: What stands before that position.
        where: From the number of a row in the table to what its place is called.

    Raises:
        DataError: A row has no text, or lacks its id or domain.
    """
    if columns.text not in table.column_names:
        raise DataError(_no_text(where(0), columns.text, None, dict.fromkeys(table.column_names)))
    texts = _one_array(table.column(columns.text))
    if pa.types.is_dictionary(texts.type):
        texts = texts.dictionary_decode()
    if texts.null_count:
        row = texts.is_null().to_pylist().index(True)
        raise DataError(_no_text(where(row), columns.text, None, {}))
    if not pa.types.is_string(texts.type) and not pa.types.is_large_string(texts.type):
        raise DataError(f"{where(0)}: {columns.text!r} must be text. Got {texts.type}.")
    return TextBatch(
        _ids(table, columns.id, first_row, prefix, where),
        texts.cast(pa.large_string()),
        _domains(table, columns.domain, where),
    )


def _ids(
    table: pa.Table, column: str, first_row: int, prefix: str, where: Callable[[int], str]
) -> pa.Array:
    """Return the ids of a table."""
    if column not in table.column_names:
        numbers = range(first_row, first_row + table.num_rows)
        return pa.array([f"{prefix}{n}" for n in numbers] if prefix else numbers)
    ids = _one_array(table.column(column))
    if ids.null_count:
        row = ids.is_null().to_pylist().index(True)
        raise DataError(f"{where(row)}: every row must have an id in {column!r}. This has none.")
    return ids.cast(pa.int64() if pa.types.is_integer(ids.type) else pa.string())


def _domains(table: pa.Table, column: str | None, where: Callable[[int], str]) -> pa.Array | None:
    """Return the domains of a table."""
    if column is None:
        return None
    there = column in table.column_names
    if not there or table.column(column).null_count:
        row = table.column(column).is_null().to_pylist().index(True) if there else 0
        raise DataError(f"{where(row)}: every row must have a domain in {column!r}. This has none.")
    return _one_array(table.column(column)).cast(pa.string())


def _no_text(where: str, column: str, got: Any, row: Any) -> str:
    """Return what is said of a row without text."""
    found = f"Its columns are {sorted(row)}." if row and got is None else f"Got {got!r}."
    return f"{where}: every row must have a text in {column!r}. {found}"


def _one_array(column: pa.ChunkedArray) -> pa.Array:
    """Return a column as one array."""
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
