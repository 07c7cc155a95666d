"""Datasets come from files and go back unchanged, and a broken file is named by its line."""

import gzip
import json
from pathlib import Path
from typing import Any

import datasets
import datasets.config
import numpy as np
import pytest
import zstandard

from projections import DataError, read_dataset, write_dataset

ROWS: list[dict[str, Any]] = [
    {"id": "a", "text": "Grüße, 你好", "label": 0},
    {"id": "b", "text": 'with "quotes", commas\nand lines', "label": 1},
    {"id": "c", "text": "", "label": 2},
]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep what `datasets` caches inside the test."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "DOWNLOADED_DATASETS_PATH", tmp_path / "downloads")
    monkeypatch.setattr(datasets.config, "EXTRACTED_DATASETS_PATH", tmp_path / "extracted")


def lines(rows: list[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows)


ENDINGS = ["jsonl", "json", "jsonl.gz", "jsonl.zst", "parquet", "csv", "csv.gz", "csv.zst"]


@pytest.mark.parametrize("ending", ENDINGS)
def test_what_was_written_is_read(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"data.{ending}"
    rows = [row for row in ROWS if row["text"]] if "csv" in ending else ROWS
    write_dataset(datasets.Dataset.from_list(rows), path)
    assert list(read_dataset(path)) == rows
    assert [file.name for file in tmp_path.glob("*.partial")] == []


def test_the_bytes_of_a_file_depend_on_the_rows_alone(tmp_path: Path) -> None:
    dataset = datasets.Dataset.from_list(ROWS)
    for ending in ("jsonl", "jsonl.gz", "jsonl.zst"):
        write_dataset(dataset, tmp_path / f"one.{ending}")
        write_dataset(dataset, tmp_path / f"two.{ending}")
        one, two = (tmp_path / f"{name}.{ending}" for name in ("one", "two"))
        assert one.read_bytes() == two.read_bytes()
    assert (tmp_path / "one.jsonl").read_bytes() == lines(ROWS)


def test_a_saved_folder_is_read_by_its_split(tmp_path: Path) -> None:
    dataset = datasets.Dataset.from_list(ROWS)
    dataset.save_to_disk(str(tmp_path / "plain"))
    datasets.DatasetDict({"train": dataset, "test": dataset.select([2])}).save_to_disk(
        str(tmp_path / "splits")
    )
    assert list(read_dataset(tmp_path / "plain")) == ROWS
    assert list(read_dataset(tmp_path / "splits")) == ROWS
    assert list(read_dataset(tmp_path / "splits", split="test")) == ROWS[2:]
    with pytest.raises(DataError, match=r"must have the split 'dev'\. It has \['test', 'train'\]"):
        read_dataset(tmp_path / "splits", split="dev")


def test_a_folder_that_is_no_dataset_is_refused(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(DataError, match=r"folder must be a folder made by `save_to_disk`"):
        read_dataset(tmp_path / "folder")


def test_blank_lines_are_skipped(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(b"\n" + lines(ROWS[:1]) + b"\n  \n" + lines(ROWS[1:]) + b"\n\n")
    assert list(read_dataset(path)) == ROWS


def test_a_last_line_may_lack_its_end(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(lines(ROWS).rstrip(b"\n"))
    assert list(read_dataset(path)) == ROWS


def test_dots_in_a_name_do_not_hide_the_ending(tmp_path: Path) -> None:
    for name in ("v1.csv.cleaned.jsonl", "train.parquet.v2.jsonl", "data.gz.old.jsonl"):
        path = tmp_path / name
        write_dataset(datasets.Dataset.from_list(ROWS), path)
        assert path.read_bytes() == lines(ROWS)
        assert list(read_dataset(path)) == ROWS


@pytest.mark.parametrize("ending", ["jsonl", "jsonl.gz", "jsonl.zst"])
@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"id": "x", "text": \n', r"line 3: every line must be JSON\. Expecting value"),
        (b"[1, 2]\n", r"line 3: every line must be a JSON object"),
        (b'{"text": "caf\xe9"}\n', r"line 3: the text must be UTF-8\. .*0xe9"),
    ],
    ids=["broken", "list", "latin-1"],
)
def test_a_broken_line_is_named(tmp_path: Path, ending: str, line: bytes, message: str) -> None:
    content = lines(ROWS[:2]) + line + lines(ROWS * 50)
    if ending.endswith("gz"):
        content = gzip.compress(content)
    elif ending.endswith("zst"):
        content = zstandard.compress(content)
    path = tmp_path / f"data.{ending}"
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"data\.{ending}, {message}"):
        read_dataset(path)


@pytest.mark.parametrize("ending", ["gz", "zst"])
def test_a_compressed_file_that_breaks_off_is_refused(tmp_path: Path, ending: str) -> None:
    numbers = np.random.default_rng(0).integers(1 << 40, size=5000).tolist()
    content = lines([{"id": row, "text": str(number)} for row, number in enumerate(numbers)])
    packed = gzip.compress(content) if ending == "gz" else zstandard.compress(content)
    path = tmp_path / f"data.jsonl.{ending}"
    path.write_bytes(packed[: len(packed) // 2])
    with pytest.raises(
        DataError, match=r"must be a whole compressed file.*after line \d+|line \d+"
    ):
        read_dataset(path)
    path.write_bytes(packed[:-2])
    with pytest.raises(DataError, match=r"must be a whole compressed file|line "):
        read_dataset(path)


@pytest.mark.parametrize("ending", ["gz", "zst"])
def test_compressed_files_one_after_the_other_are_one_file(tmp_path: Path, ending: str) -> None:
    pack = gzip.compress if ending == "gz" else zstandard.compress
    path = tmp_path / f"data.jsonl.{ending}"
    path.write_bytes(pack(lines(ROWS[:1])) + pack(lines(ROWS[1:])))
    assert list(read_dataset(path)) == ROWS


@pytest.mark.parametrize("ending", ["gz", "zst"])
def test_a_file_that_only_claims_to_be_compressed_is_refused(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"data.jsonl.{ending}"
    path.write_bytes(lines(ROWS))
    with pytest.raises(DataError, match="must be a whole compressed file"):
        read_dataset(path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("data.jsonl", b"", r"must hold at least one row"),
        ("data.jsonl", b"\n\n", r"must hold at least one row"),
        ("data.txt", b"text", r"must end in one of \.jsonl, \.json, \.parquet, \.csv"),
        ("data.jsonl.bak", b"{}", r"must end in one of \.jsonl"),
        ("data.gz", b"", r"must say its format before \.gz, as in data\.jsonl\.gz"),
        ("data.parquet", b"not parquet", r"must be readable as parquet, and is not: "),
    ],
    ids=["empty", "blank", "text", "backup", "no-format", "no-parquet"],
)
def test_a_file_that_is_no_dataset_is_refused(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_dataset(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.jsonl must be a data file\. There is no such file"):
        read_dataset(tmp_path / "none.jsonl")


def test_an_unknown_ending_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data\.txt must end in one of"):
        write_dataset(datasets.Dataset.from_list(ROWS), tmp_path / "data.txt")
    assert list(tmp_path.glob("data*")) == []


def test_rows_with_different_keys_are_read_with_gaps(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(b'{"a": 1}\n{"a": 2, "b": "x"}\n')
    assert list(read_dataset(path)) == [{"a": 1, "b": None}, {"a": 2, "b": "x"}]
