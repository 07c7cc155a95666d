"""Chosen rows written to a file as they are met, in the order of the data.

Memory is that of the chosen ids: rows go from block to file.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from projections import Block, DataError, TextColumns, as_texts, compressing, replacing, track
from projections import without_compression as format_of
from selection.base import Selection
from selection.dsir.pieces import cut

Row = dict[str, Any]
FORMATS = (".jsonl", ".json", ".parquet", ".csv")


def write_chosen(
    chosen: Selection, data: Any, path: str | Path, *, chunk_tokens: int | None = None
) -> None:
    """Write the chosen rows, each as it is in the data.

    Args:
        chosen: What was chosen.
        data: Anything that `Texts` takes.
        path: A file ``.jsonl``, ``.parquet`` or ``.csv``, also ``.gz`` or ``.zst``; it is
            whole or not there.
        chunk_tokens: Length of the pieces that rows were cut into, if they were. A piece is
            written as its row, with its own id and text.

    Raises:
        DataError: A chosen id is not in the data or in it twice, rows of a table differ in
            their columns, or the ending is none of these.
    """
    texts, path = as_texts(data), Path(path)
    left = {str(row_id) for row_id in chosen.ids.tolist()}
    num_chosen, num_written = len(left), 0
    total, unit = texts.extent
    blocks = track(texts.blocks(), "writing", total=total, unit=unit, size=lambda block: block.size)
    with row_writer(path) as write:
        for block in blocks:
            rows = list(_chosen_of(block, left, texts.columns, chunk_tokens))
            num_written += len(rows)
            if rows:
                write(rows)
        if num_written != num_chosen:
            raise DataError(
                f"the data must hold every chosen id once. It holds {num_written} rows with the "
                f"{num_chosen} ids. Apply the selection to the data that it was drawn from."
            )


@contextmanager
def row_writer(path: Path) -> Iterator[Callable[[list[Row]], None]]:
    """Open a file and yield a function that writes rows to it.

    Args:
        path: Its ending says the format.

    Raises:
        DataError: The ending is none of the formats.
    """
    kind = format_of(path)
    if kind not in FORMATS:
        raise DataError(
            f"{path} must end in one of {', '.join(FORMATS)}, perhaps with .gz or .zst."
        )
    with replacing(path) as raw, compressing(raw, path.suffix) as file:
        if kind in (".jsonl", ".json"):
            yield lambda rows: file.write(_lines(rows))
        else:
            writer = TableWriter(file, path, pq.ParquetWriter if kind == ".parquet" else None)
            try:
                yield writer.write
            finally:
                writer.close()


def check_format(path: Path) -> str:
    """Return the ending that says the format of a file of rows.

    Raises:
        DataError: The ending is none of the formats.
    """
    kind = format_of(path)
    if kind not in FORMATS:
        known = ", ".join(FORMATS)
        raise DataError(f"{path} must end in one of {known}, perhaps with .gz or .zst.")
    return kind


class TableWriter:
    """Writes rows with the columns of the first ones.

    Args:
        file: Where to.
        path: Its name, for messages.
        kind: The class of arrow that writes; None for csv.
    """

    def __init__(self, file: Any, path: Path, kind: Any) -> None:
        """Wait for the first rows."""
        self._file, self._path, self._kind = file, path, kind or pa_csv.CSVWriter
        self._writer: Any = None
        self._schema: pa.Schema | None = None

    def write(self, rows: list[Row]) -> None:
        """Write some rows.

        Raises:
            DataError: Their columns are others than those of the first.
        """
        try:
            table = pa.Table.from_pylist(rows, self._schema)
            if self._writer is None:
                self._schema = table.schema
                self._writer = self._kind(self._file, table.schema)
            if set().union(*rows) - set(table.schema.names):
                raise ValueError(f"Got {sorted(set().union(*rows))}")
            self._writer.write_table(table)
        except (pa.ArrowInvalid, pa.ArrowTypeError, ValueError) as error:
            raise DataError(
                f"{self._path} must have the same columns in every row. {error}. Write .jsonl, "
                "whose rows may differ."
            ) from error

    def close(self) -> None:
        """End the file; without rows it has no columns."""
        if self._writer is None:
            self._writer = self._kind(self._file, pa.schema([]))
        self._writer.close()


def _chosen_of(
    block: Block, wanted: set[str], columns: TextColumns, chunk_tokens: int | None
) -> Iterator[Row]:
    """Yield the chosen rows of a block."""
    batch, origin = cut(block.batch(), chunk_tokens)
    ids = batch.ids.cast(pa.large_string()).to_pylist()
    found = [row for row, row_id in enumerate(ids) if row_id in wanted]
    rows = block.rows([int(origin[row]) for row in found])
    if chunk_tokens is None:
        yield from rows
        return
    for row, place in zip(rows, found, strict=True):
        yield {**row, columns.id: ids[place], columns.text: batch.texts[place].as_py()}


def _lines(rows: list[Row]) -> bytes:
    """Return rows as lines of JSON."""
    texts = (json.dumps(row, ensure_ascii=False, default=str) for row in rows)
    return "".join(f"{text}\n" for text in texts).encode()
