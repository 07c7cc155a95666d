"""Files that are either whole or not there: written beside, synced, renamed.

A full disk is reported in one sentence, and what was there before stays.
"""

import errno
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from projections.errors import StoreMismatchError
from projections.ranks import suffix_of_rank

SUFFIX = ".partial"


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Open a file beside ``path`` that takes its place when the block ends well.

    Args:
        path: The file to write.

    Raises:
        OSError: The disk is full or cannot be written; ``path`` is as it was.
    """
    partial = path.with_name(path.name + suffix_of_rank() + SUFFIX)
    try:
        with reporting_full_disk(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with partial.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


@contextmanager
def reporting_full_disk(path: Path) -> Iterator[None]:
    """Say in one sentence that the disk is full, where that stops the block.

    Args:
        path: What is being written.

    Raises:
        OSError: The disk is full or cannot be written.
    """
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise OSError(
                error.errno,
                f"the disk must have room for {path}, and is full. Free some space and run the "
                "same command again: what was finished is kept",
            ) from error
        raise


def sync_folder(path: Path) -> None:
    """Wait until the names in a folder are on the disk, as their files are already."""
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def write_array(path: Path, array: np.ndarray) -> None:
    """Write an array as ``.npy``, whole or not at all."""
    with replacing(path) as file:
        np.save(file, array, allow_pickle=False)


def write_json(path: Path, value: Any) -> None:
    """Write JSON, whole or not at all."""
    text = json.dumps(value, indent=1, sort_keys=True, allow_nan=False)
    with replacing(path) as file:
        file.write(text.encode() + b"\n")


def read_json(path: Path, kind: str) -> Any:
    """Read a JSON file.

    Args:
        path: The file.
        kind: What it should be, for messages.

    Raises:
        StoreMismatchError: It is not there, or is not JSON.
    """
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError) as error:
        raise StoreMismatchError(
            f"{path.parent} must be {kind}. There is no {path.name}."
        ) from error
    except ValueError as error:
        raise StoreMismatchError(f"{path} must be {kind}, and is damaged: {error}.") from error
