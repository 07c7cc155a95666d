"""Texts with stable ids from anything, in blocks, in constant memory.

Rows are known by the column ``id`` where there is one. Elsewhere by their position, which
is ``file:position`` where there are several files, so that no id depends on their order.
Blocks are read by whoever works on them, so that workers share the reading.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import datasets
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.json as pa_json
import pyarrow.parquet as pq
from pyarrow import ArrowInvalid

from projections.data import Rows
from projections.errors import DataError
from projections.ray_data import check_ray_ids, is_on_ray, ray_tables
from projections.streams import (
    COMPRESSED,
    Lines,
    line_blocks,
    parse_line,
    without_compression,
)

BLOCK_BYTES = 4 << 20  # of a file
BLOCK_ROWS = 2048  # of anything else
STAMPED = 1 << 16  # bytes of a file that enter the fingerprint


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
    columns: TextColumns = TextColumns()

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
                yield from _file_blocks(path, self.columns, prefix)
        elif isinstance(self.data, datasets.Dataset):
            yield from _dataset_blocks(self.data, self.columns, "the dataset")
        elif self.on_ray:
            for table in ray_tables(self.data):
                yield ray_block(table, self.columns)
        else:
            items: Any = self.data() if callable(self.data) else _items(self.data)
            yield from _item_blocks(items, self.columns)


def as_texts(data: Any) -> Texts:
    """Return ``data`` as `Texts`."""
    return data if isinstance(data, Texts) else Texts(data)


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
        table = parse_lines(self.lines.data, schema)
        if table is None or table.num_rows != self.num_rows:
            table = self._line_by_line()
        return _batch_of(table, self.columns, self.lines.first_row, self.prefix, self._where)

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
        return _batch_of(self.table, self.columns, self.first_row, self.prefix, self._where)

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
        return _batch_of(table, self.columns, self.first_row, "", self._where)

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


def parse_lines(data: bytes, schema: pa.Schema) -> pa.Table | None:
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


def _batch_of(
    table: pa.Table,
    columns: TextColumns,
    first_row: int,
    prefix: str,
    where: Callable[[int], str],
) -> TextBatch:
    """Return the columns of a table, and refuse what lacks a text or an id."""
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


def _file_blocks(path: Path, columns: TextColumns, prefix: str) -> Iterator[Block]:
    """Yield the blocks of one file."""
    kind = without_compression(path)
    if path.is_dir():
        yield from _dataset_blocks(datasets.load_from_disk(str(path)), columns, str(path), prefix)
    elif kind == ".parquet":
        yield from _parquet_blocks(path, columns, prefix)
    elif kind == ".csv":
        yield from _csv_blocks(path, columns, prefix)
    else:
        id_type = None
        for block in line_blocks(path, BLOCK_BYTES):
            id_type = _id_type(block, columns.id) if block.first_row == 0 else id_type
            yield LineBlock(block, columns, id_type, prefix)


def _id_type(block: Lines, column: str) -> pa.DataType | None:
    """Return the type of the first id, or None where there is none."""
    for number, line in block.numbered():
        value = parse_line(line, block.path, number).get(column)
        return None if value is None else pa.int64() if isinstance(value, int) else pa.string()
    return None


def _dataset_blocks(
    dataset: Any, columns: TextColumns, source: str, prefix: str = ""
) -> Iterator[Block]:
    """Yield the blocks of a dataset."""
    if not isinstance(dataset, datasets.Dataset):
        raise DataError(f"{source} must be one split of a dataset. Got {type(dataset).__name__}.")
    start = 0
    tables: Any = dataset.with_format("arrow").iter(BLOCK_ROWS)
    for table in tables:
        yield TableBlock(table, columns, start, prefix, source)
        start += table.num_rows


def _parquet_blocks(path: Path, columns: TextColumns, prefix: str) -> Iterator[Block]:
    """Yield the blocks of a parquet file."""
    start = 0
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(BLOCK_ROWS):
                yield TableBlock(pa.table(batch), columns, start, prefix, str(path))
                start += batch.num_rows
    except (ArrowInvalid, OSError) as error:
        raise DataError(f"{path} must be readable as parquet, and is not: {error}") from error


def _csv_blocks(path: Path, columns: TextColumns, prefix: str) -> Iterator[Block]:
    """Yield the blocks of a csv file."""
    start = 0
    convert = pa_csv.ConvertOptions(column_types={columns.text: pa.string()})
    parse = pa_csv.ParseOptions(newlines_in_values=True)
    read = pa_csv.ReadOptions(use_threads=False, block_size=BLOCK_BYTES)
    try:
        with pa.input_stream(str(path), compression="detect") as stream:
            for batch in pa_csv.open_csv(stream, read, parse, convert):
                yield TableBlock(pa.table(batch), columns, start, prefix, str(path))
                start += batch.num_rows
    except (ArrowInvalid, OSError) as error:
        raise DataError(f"{path}, after row {start}: must be readable as csv: {error}") from error


def _items(data: Any) -> Iterable[Any]:
    """Return an iterable of the items of a dataset of any kind."""
    if hasattr(data, "__iter__"):
        return data
    return (data[position] for position in range(len(data)))


def _item_blocks(items: Iterable[Any], columns: TextColumns) -> Iterator[Block]:
    """Yield the blocks of an iterable."""
    start, iterator = 0, iter(items)
    while taken := list(islice(iterator, BLOCK_ROWS)):
        yield ItemBlock(taken, columns, start)
        start += len(taken)
