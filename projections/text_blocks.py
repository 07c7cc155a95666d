"""Some texts that follow each other, as lines of JSON, as a table or as items.

A block is cheap to send: it is parsed by whoever works on it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol, runtime_checkable

import pyarrow as pa
import pyarrow.json as pa_json
from pyarrow import ArrowInvalid

from projections.errors import DataError
from projections.ray_data import check_ray_ids
from projections.streams import Lines, parse_line
from projections.text_columns import TextBatch, TextColumns, batch_of, table_of


@runtime_checkable
class Block(Protocol):
    """Some rows that follow each other."""

    @property
    def num_rows(self) -> int:
        """Number of rows."""
        ...

    @property
    def size(self) -> int:
        """Size in the unit of `Texts.extent`."""
        ...

    def batch(self) -> TextBatch:
        """Return ids and texts."""
        ...

    def rows(self, positions: Sequence[int]) -> list[dict[str, Any]]:
        """Return some rows with all their columns."""
        ...


@dataclass(frozen=True)
class LineBlock:
    """Lines of JSON."""

    lines: Lines
    columns: TextColumns
    id_type: pa.DataType | None
    prefix: str

    @property
    def num_rows(self) -> int:
        """Number of rows."""
        return self.lines.num_rows

    @property
    def size(self) -> int:
        """Bytes."""
        return len(self.lines.data)

    def batch(self) -> TextBatch:
        """Parse by arrow, and what that refuses line by line, for its error or its value."""
        if not self.num_rows:
            return TextBatch(pa.array([], pa.int64()), pa.array([], pa.string()), None)
        types = [self.id_type, pa.string(), pa.string()]
        wanted = zip(self.columns.names, types, strict=False)
        schema = pa.schema([(name, kind) for name, kind in wanted if kind is not None])
        table = _parse(self.lines.data, schema)
        if table is None or table.num_rows != self.num_rows:
            table = self._line_by_line()
        return batch_of(
            table,
            self.columns,
            first_row=self.lines.first_row,
            prefix=self.prefix,
            where=self._where,
        )

    def rows(self, positions: Sequence[int]) -> list[dict[str, Any]]:
        """Return some rows with all their columns."""
        numbered = list(self.lines.numbered())
        return [
            parse_line(line, self.lines.path, number)
            for number, line in (numbered[position] for position in positions)
        ]

    def _where(self, row: int) -> str:
        """Return how the place of a row is called."""
        (number, _) = next(islice(self.lines.numbered(), row, None))
        return f"{self.lines.path}, line {number}"

    def _line_by_line(self) -> pa.Table:
        """Parse by the json module, whose errors name the line."""
        rows = self.rows(range(self.num_rows))
        return table_of(rows, self.columns, self._where)


@dataclass(frozen=True)
class TableBlock:
    """Rows of an arrow table."""

    table: pa.Table
    columns: TextColumns
    first_row: int
    prefix: str
    source: str

    @property
    def num_rows(self) -> int:
        """Number of rows."""
        return self.table.num_rows

    @property
    def size(self) -> int:
        """Number of rows."""
        return self.table.num_rows

    def batch(self) -> TextBatch:
        """Return ids and texts."""
        try:
            self.table.validate(full=True)
        except ArrowInvalid as error:
            raise DataError(
                f"{self._where(0)} and after: the text must be UTF-8. {error}"
            ) from error
        return batch_of(
            self.table,
            self.columns,
            first_row=self.first_row,
            prefix=self.prefix,
            where=self._where,
        )

    def rows(self, positions: Sequence[int]) -> list[dict[str, Any]]:
        """Return some rows with all their columns."""
        return self.table.take(pa.array(positions, pa.int64())).to_pylist()

    def _where(self, row: int) -> str:
        """Return how the place of a row is called."""
        return f"{self.source}, row {self.first_row + row}"


def ray_block(table: pa.Table, columns: TextColumns) -> TableBlock:
    """Return a block of a Ray dataset, whose rows have no number to know them by.

    Raises:
        DataError: It has no column of ids.
    """
    check_ray_ids(table, columns.id)
    return TableBlock(table, columns, 0, "", "a block of the Ray dataset")


@dataclass(frozen=True)
class ItemBlock:
    """Items of an iterable: texts or mappings."""

    items: list[Any]
    columns: TextColumns
    first_row: int

    @property
    def num_rows(self) -> int:
        """Number of rows."""
        return len(self.items)

    @property
    def size(self) -> int:
        """Number of rows."""
        return len(self.items)

    def batch(self) -> TextBatch:
        """Return ids and texts."""
        table = table_of(self.rows(range(len(self.items))), self.columns, self._where)
        return batch_of(table, self.columns, first_row=self.first_row, prefix="", where=self._where)

    def rows(self, positions: Sequence[int]) -> list[dict[str, Any]]:
        """Return some rows with all their columns."""
        return [self._row(position) for position in positions]

    def _row(self, position: int) -> dict[str, Any]:
        """Return an item as a row."""
        item = self.items[position]
        if not isinstance(item, str | Mapping):
            raise DataError(
                f"{self._where(position)}: a row must be a text or a mapping. Got "
                f"{type(item).__name__}."
            )
        return {self.columns.text: item} if isinstance(item, str) else dict(item)

    def _where(self, row: int) -> str:
        """Return how the place of a row is called."""
        return f"row {self.first_row + row}"


def _parse(data: bytes, schema: pa.Schema) -> pa.Table | None:
    """Return some columns of lines of JSON, or None if arrow cannot read all of them."""
    try:
        table = pa_json.read_json(
            pa.BufferReader(data),
            read_options=pa_json.ReadOptions(use_threads=False, block_size=len(data) + 1),
            parse_options=pa_json.ParseOptions(
                explicit_schema=schema, unexpected_field_behavior="ignore"
            ),
        )
        table.validate(full=True)  # UTF-8, above all
    except ArrowInvalid:
        return None
    return table
