"""A journal: JSON entries that are only ever added, one line each with its checksum.

Adding an entry costs the entry, however many there are. A line that a killed writer left
half-written is no entry: readers pass over it and the next writer cuts it off. One writer
at a time; any number of readers.
"""

import json
import os
from pathlib import Path
from typing import Any, BinaryIO
from zlib import crc32

from projections.errors import StoreMismatchError
from projections.files import reporting_full_disk, sync_folder

Entry = dict[str, Any]


class Journal:
    """The entries of one file, read when it is opened.

    Args:
        path: The file; it need not exist yet.

    Raises:
        StoreMismatchError: A line is damaged that is not the last.
    """

    def __init__(self, path: Path) -> None:
        """Read what is there."""
        self.path = path
        self.entries, self._size = _read(path)

    def add(self, entry: Entry) -> None:
        """Write one entry to the disk.

        Raises:
            OSError: The disk is full; the journal is as it was.
        """
        line = _line(entry)
        is_new = not self.path.exists()
        with reporting_full_disk(self.path), self.path.open("ab") as file:
            if file.tell() != self._size:
                self._cut_off_half_a_line(file)
            try:
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
            except OSError:
                file.truncate(self._size)
                raise
        if is_new:
            sync_folder(self.path.parent)
        self._size += len(line)
        self.entries.append(entry)

    def _cut_off_half_a_line(self, file: BinaryIO) -> None:
        """Remove what a killed writer left; refuse to remove what another one is writing."""
        entries, _ = _read(self.path)
        if len(entries) != len(self.entries):
            raise StoreMismatchError(
                f"{self.path} must have one writer at a time. It had {len(self.entries)} entries "
                f"when it was opened, and now has {len(entries)}. Run this again when the other "
                "command has ended."
            )
        file.truncate(self._size)


def _line(entry: Entry) -> bytes:
    """Return an entry as a line."""
    text = json.dumps(entry, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
    return b"%08x " % crc32(text) + text + b"\n"


def _read(path: Path) -> tuple[list[Entry], int]:
    """Return the entries of a file, and the bytes that they take."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return [], 0
    entries: list[Entry] = []
    *lines, cut_short = content.split(b"\n")
    for number, line in enumerate(lines, 1):
        checksum, _, text = line.partition(b" ")
        if checksum != b"%08x" % crc32(text):
            if number == len(lines) and not cut_short:
                return entries, len(content) - len(line) - 1
            raise StoreMismatchError(
                f"{path} must be whole. Line {number} of {len(lines)} does not match its checksum. "
                "Restore the file from a copy, or build the store again."
            )
        entries.append(json.loads(text))
    return entries, len(content) - len(cut_short)
