"""Files as streams of lines, plain or compressed, in constant memory.

A line that cannot be read, and a compressed file that breaks off, are reported with the
number of the line.
"""

import gzip
import json
import zlib
from codecs import BOM_UTF8
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import zstandard

from projections.errors import DataError

COMPRESSED = (".gz", ".zst")
PIECE = 1 << 20  # bytes read at a time
BREAKS_OFF = (EOFError, gzip.BadGzipFile, zlib.error, zstandard.ZstdError)
NEWLINE = 10
WHITE = np.frombuffer(b"\t\n\x0b\x0c\r ", dtype=np.uint8)


def without_compression(path: Path) -> str:
    """Return the ending that says the format: the last one that is no compression."""
    return path.with_suffix("").suffix if path.suffix in COMPRESSED else path.suffix


def pieces(path: Path) -> Iterator[bytes]:
    """Yield the content of a plain or compressed file in pieces of any length.

    The mark of UTF-8 that some programs write before a text is no part of it.
    """
    found, start = _all_pieces(path), b""
    for piece in found:
        start += piece
        if len(start) >= len(BOM_UTF8):
            break
    yield start.removeprefix(BOM_UTF8)
    yield from found


def _all_pieces(path: Path) -> Iterator[bytes]:
    """Yield every byte."""
    with path.open("rb") as raw:
        if path.suffix == ".gz":
            with gzip.GzipFile(fileobj=raw) as stream:
                while piece := stream.read(PIECE):
                    yield piece
        elif path.suffix == ".zst":
            yield from _zstd_pieces(raw)
        else:
            while piece := raw.read(PIECE):
                yield piece


def lines(path: Path) -> Iterator[bytes]:
    """Yield the lines of a plain or compressed file, without their ends."""
    rest: list[bytes] = []
    for piece in pieces(path):
        first, *others = piece.split(b"\n")
        rest.append(first)
        if others:
            yield b"".join(rest)
            yield from others[:-1]
            rest = [others[-1]]
    if last := b"".join(rest):
        yield last


def parse_line(line: bytes, path: Path, number: int) -> dict[str, Any]:
    """Return the JSON object of a line.

    Raises:
        DataError: It is none, or not UTF-8; the message names file and line.
    """
    try:
        row = json.loads(line.decode())
    except json.JSONDecodeError as error:
        raise DataError(f"{path}, line {number}: every line must be JSON. {error}.") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}, line {number}: the text must be UTF-8. {error}.") from error
    if not isinstance(row, dict):
        raise DataError(f"{path}, line {number}: every line must be a JSON object {{...}}.")
    return row


@dataclass(frozen=True)
class Lines:
    """Some whole lines of a file.

    Args:
        path: The file.
        data: The lines with their ends.
        first_line: Number of the first, from 1.
        first_row: Number of the first row, from 0; blank lines are no rows.
        num_rows: Number of lines that are not blank.
    """

    path: Path
    data: bytes
    first_line: int
    first_row: int
    num_rows: int

    def numbered(self) -> Iterator[tuple[int, bytes]]:
        """Yield number and content of the lines that are not blank."""
        for number, line in enumerate(self.data.split(b"\n"), start=self.first_line):
            if line.strip():
                yield number, line


def line_blocks(path: Path, size: int) -> Iterator[Lines]:
    """Yield a file in blocks of whole lines.

    Args:
        path: A plain or compressed file.
        size: Bytes of a block at the least; a longer line makes it longer.

    Raises:
        DataError: A compressed file breaks off.
    """
    line, row = 1, 0
    try:
        for data in _whole_lines(path, size):
            starts = _line_starts(data)
            block = Lines(path, data, line, row, _count_rows(data, starts))
            line, row = line + len(starts), row + block.num_rows
            yield block
    except BREAKS_OFF as error:
        raise broken_off(path, line - 1, error) from error


def broken_off(path: Path, line: int, error: Exception) -> DataError:
    """Return the error of a compressed file that ends too early."""
    return DataError(
        f"{path} must be a whole compressed file. It breaks off after line {line}: {error}."
    )


def _whole_lines(path: Path, size: int) -> Iterator[bytes]:
    """Yield the content cut at ends of lines, each part at least so long."""
    waiting, length = [], 0
    try:
        for piece in pieces(path):
            waiting.append(piece)
            length += len(piece)
            end = piece.rfind(b"\n") + 1 if length >= size else 0
            if end:
                whole = b"".join([*waiting[:-1], piece[:end]])
                waiting, length = [piece[end:]], len(piece) - end
                yield whole
    except BREAKS_OFF:
        whole = b"".join(waiting)
        if end := whole.rfind(b"\n") + 1:
            yield whole[:end]
        raise
    if last := b"".join(waiting):
        yield last


def _line_starts(data: bytes) -> np.ndarray:
    """Return where lines begin."""
    ends = np.flatnonzero(np.frombuffer(data, dtype=np.uint8) == NEWLINE)
    starts = np.concatenate([np.zeros(1, dtype=np.int64), ends + 1])
    return starts if starts[-1] < len(data) else starts[:-1]


def _count_rows(data: bytes, starts: np.ndarray) -> int:
    """Return the number of lines that are not blank; only those that begin so are looked at."""
    array = np.frombuffer(data, dtype=np.uint8)
    suspects = np.flatnonzero(np.isin(array[starts], WHITE)).tolist()
    bounds = [*starts.tolist(), len(data)] if suspects else []
    blank = sum(not data[bounds[at] : bounds[at + 1]].strip() for at in suspects)
    return len(starts) - blank


def _zstd_pieces(raw: IO[bytes]) -> Iterator[bytes]:
    """Yield the content of a zstd file of any number of frames, each of which must be whole."""
    # NOTE: `stream_reader` takes a frame that breaks off for one that ends.
    unread = b""
    frame = None
    while chunk := unread or raw.read(PIECE):
        frame = frame or zstandard.ZstdDecompressor().decompressobj()
        yield frame.decompress(chunk)
        unread = frame.unused_data
        frame = None if frame.eof else frame
    if frame is not None:
        raise EOFError("the last frame has no end")
