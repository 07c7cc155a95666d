"""Files, datasets and iterables cut into blocks, the same ones each time."""

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
from pyarrow import ArrowInvalid

from projections.errors import DataError
from projections.streams import Lines, line_blocks, parse_line, without_compression
from projections.text_blocks import Block, ItemBlock, LineBlock, TableBlock
from projections.text_columns import TextColumns

BLOCK_BYTES = 8 << 20  # of a file
BLOCK_ROWS = 2048  # of anything else


def file_blocks(path: Path, columns: TextColumns, prefix: str) -> Iterator[Block]:
    """Yield the blocks of one file."""
    kind = without_compression(path)
    if path.is_dir():
        yield from dataset_blocks(datasets.load_from_disk(str(path)), columns, str(path), prefix)
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


def dataset_blocks(
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


def item_blocks(items: Iterable[Any], columns: TextColumns) -> Iterator[Block]:
    """Yield the blocks of an iterable."""
    start, iterator = 0, iter(items)
    while taken := list(islice(iterator, BLOCK_ROWS)):
        yield ItemBlock(taken, columns, start)
        start += len(taken)
