"""Datasets from files and back: jsonl (plain, gz, zst), parquet, csv, `datasets` folders.

Reading and caching is the work of `datasets`; what is added here is that every format is
found by its name, and that a broken line is reported with its number.
"""

import gzip
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import datasets
import zstandard

from projections.errors import DataError
from projections.files import replacing
from projections.streams import (
    BREAKS_OFF,
    COMPRESSED,
    broken_off,
    lines,
    parse_line,
    without_compression,
)

BUILDERS = {".jsonl": "json", ".json": "json", ".parquet": "parquet", ".csv": "csv"}


def read_dataset(source: str | Path, *, split: str = "train") -> datasets.Dataset:
    """Return a dataset from a file, a saved `datasets` folder, or a name on the hub.

    Args:
        source: A path ending in ``.jsonl``, ``.json`` (one object a line), ``.parquet`` or
            ``.csv``, each also with ``.gz`` or ``.zst``; a folder made by
            ``save_to_disk``; else a name for ``datasets.load_dataset``.
        split: The split to take where there are several.

    Raises:
        DataError: The file is not there, is empty, or has a line that cannot be read; the
            message names the line.
    """
    path = Path(source)
    if path.is_dir():
        try:
            return _one_split(datasets.load_from_disk(str(path)), split, path)
        except FileNotFoundError as error:
            raise DataError(
                f"{path} must be a folder made by `save_to_disk`. It is not."
            ) from error
    builder, compressed = BUILDERS.get(without_compression(path)), path.suffix in COMPRESSED
    if builder is None and not compressed and not path.exists():
        return _one_split(datasets.load_dataset(str(source), split=split), split, path)
    if not path.exists():
        raise DataError(f"{path} must be a data file. There is no such file.")
    if builder is None and compressed:
        raise DataError(f"{path} must say its format before {path.suffix}, as in data.jsonl.gz.")
    if builder is None:
        raise DataError(
            f"{path} must end in one of {', '.join(BUILDERS)}, perhaps with .gz or .zst."
        )
    if builder == "json":
        check_lines(path)
    try:
        loaded = datasets.load_dataset(builder, data_files=str(path), split="train")
    except Exception as error:  # `datasets` wraps the errors of its readers in many ways
        cause = error.__cause__ or error
        raise DataError(f"{path} must be readable as {builder}, and is not: {cause}") from error
    dataset = _one_split(loaded, split, path)
    if len(dataset) == 0:
        raise DataError(f"{path} must hold at least one row. It holds none.")
    return dataset


def write_dataset(dataset: datasets.Dataset, path: str | Path) -> None:
    """Write a dataset as ``.jsonl`` (plain, gz, zst), ``.parquet`` or ``.csv``.

    Args:
        dataset: The rows.
        path: Its ending says the format; the file is whole or not there.

    Raises:
        DataError: The ending is none of these.
    """
    path = Path(path)
    kind = without_compression(path)
    if kind not in BUILDERS:
        raise DataError(
            f"{path} must end in one of {', '.join(BUILDERS)}, perhaps with .gz or .zst."
        )
    with replacing(path) as raw, compressing(raw, path.suffix) as file:
        if kind == ".parquet":
            dataset.to_parquet(file)
        elif kind == ".csv":
            dataset.to_csv(file)
        else:
            for row in dataset:
                file.write(json.dumps(row, ensure_ascii=False, default=str).encode() + b"\n")


def check_lines(path: Path) -> None:
    """Refuse a file with a line that is not a JSON object, and one without lines.

    Raises:
        DataError: Names the first such line.
    """
    number, empty = 0, True
    try:
        for number, line in enumerate(lines(path), start=1):
            if line.strip():
                parse_line(line, path, number)
                empty = False
    except BREAKS_OFF as error:
        raise broken_off(path, number, error) from error
    if empty:
        raise DataError(f"{path} must hold at least one row. It holds none.")


@contextmanager
def compressing(raw: IO[bytes], suffix: str) -> Iterator[Any]:
    """Wrap a file so that what is written is compressed as its ending says.

    Args:
        raw: The file.
        suffix: ``.gz``, ``.zst`` or anything else.
    """
    if suffix == ".gz":
        with gzip.GzipFile("", "wb", fileobj=raw, mtime=0) as file:
            yield file
    elif suffix == ".zst":
        with zstandard.ZstdCompressor().stream_writer(raw, closefd=False) as file:
            yield file
    else:
        yield raw


def _one_split(loaded: Any, split: str, path: Path) -> datasets.Dataset:
    """Return a dataset, picking a split from a dictionary of them."""
    if isinstance(loaded, datasets.Dataset):
        return loaded
    if isinstance(loaded, datasets.DatasetDict):
        if split not in loaded:
            raise DataError(f"{path} must have the split {split!r}. It has {sorted(loaded)}.")
        return loaded[split]
    raise DataError(f"{path} must be a dataset with a length. Got {type(loaded).__name__}.")
