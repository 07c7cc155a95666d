"""Texts come from anything with the same ids, and what cannot be read is named."""

import contextlib
import gzip
import json
import os
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from projections import (
    DataError,
    TextColumns,
    Texts,
    ordered_map,
    read_dataset,
    text_sources,
    write_dataset,
)
from projections.streams import line_blocks, lines

ROWS: list[dict[str, Any]] = [
    {"id": f"r{n}", "text": f'Grüße {n}\n"quoted", 你好', "source": "ab"[n % 2]} for n in range(50)
]


def jsonl(rows: list[Any]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def read(data: Any, **columns: Any) -> list[tuple[Any, str, Any]]:
    found = []
    for block in Texts(data, TextColumns(**columns)).blocks():
        batch = block.batch()
        assert len(batch) == block.num_rows
        domains = [None] * len(batch) if batch.domains is None else batch.domains.to_pylist()
        found += zip(batch.ids.to_pylist(), batch.texts.to_pylist(), domains, strict=True)
    return found


EXPECTED = [(row["id"], row["text"], row["source"]) for row in ROWS]


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("projections.text_sources.BLOCK_BYTES", 700)
    monkeypatch.setattr("projections.text_sources.BLOCK_ROWS", 7)
    monkeypatch.setattr("projections.streams.PIECE", 97)


@pytest.mark.parametrize(
    "ending", ["jsonl", "jsonl.gz", "jsonl.zst", "json", "parquet", "csv", "csv.gz", "csv.zst"]
)
def test_every_format_gives_the_same_texts(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"data.{ending}"
    write_dataset(datasets.Dataset.from_list(ROWS), path)
    assert read(path, domain="source") == EXPECTED
    assert read(str(path), domain="source") == EXPECTED


def test_datasets_lists_and_functions_give_the_same_texts(tmp_path: Path) -> None:
    dataset = datasets.Dataset.from_list(ROWS)
    dataset.save_to_disk(str(tmp_path / "folder"))
    shuffled = dataset.select(range(49, -1, -1)).select(range(49, -1, -1))
    for data in (dataset, shuffled, tmp_path / "folder", ROWS, lambda: iter(ROWS)):
        assert read(data, domain="source") == EXPECTED
    assert read(["a", "b"]) == [(0, "a", None), (1, "b", None)]


def test_rows_without_ids_are_known_by_their_position(tmp_path: Path) -> None:
    bare = [{"text": row["text"]} for row in ROWS]
    one, two = tmp_path / "one.jsonl", tmp_path / "two.jsonl"
    one.write_bytes(b"\n" + jsonl(bare[:30]) + b"  \n\n")
    two.write_bytes(jsonl(bare[30:]))
    assert [row_id for row_id, *_ in read(one)] == list(range(30))
    ids = [row_id for row_id, *_ in read([one, two])]
    assert ids[:2] == ["one.jsonl:0", "one.jsonl:1"]
    assert sorted(row_id for row_id, *_ in read([two, one])) == sorted(ids)
    assert [i for i, *_ in read(datasets.Dataset.from_list(bare))] == list(range(50))


def test_rows_can_be_fetched_whole(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(jsonl(ROWS))
    for data in (path, ROWS, datasets.Dataset.from_list(ROWS)):
        found = [row for block in Texts(data).blocks() for row in block.rows(range(block.num_rows))]
        assert found == ROWS


def test_ids_may_be_numbers_text_or_both(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(jsonl([{"id": n, "text": "x"} for n in (3, 1)]))
    assert [row_id for row_id, *_ in read(path)] == [3, 1]
    path.write_bytes(jsonl([{"id": n, "text": "x"} for n in (3, "b")]))
    assert [row_id for row_id, *_ in read(path)] == ["3", "b"]


BROKEN = [
    (b'{"id": "x", "text": \n', r"line 3: every line must be JSON"),
    (b"[1]\n", r"line 3: every line must be a JSON object"),
    (b'{"id": "x", "text": "caf\xe9"}\n', r"line 3: the text must be UTF-8"),
    (b'{"id": "x", "text": "\\ud800"}\n', r"line 3: the text must be Unicode. It has half a"),
    (b'{"id": "x", "text": null}\n', r"line 3: every row must have a text in 'text'"),
    (b'{"id": "x", "text": 5}\n', r"line 3: every row must have a text in 'text'\. Got 5"),
    (b'{"id": "x", "body": "y"}\n', r"line 3: every row must have a text in 'text'"),
    (b'{"text": "y"}\n', r"line 3: every row must have an id in 'id'\. This has none"),
    (b'{"id": "a", "text": "x"} {"id": "b", "text": "y"}\n', r"line 3: every line must be JSON"),
]


@pytest.mark.parametrize("ending", ["jsonl", "jsonl.gz", "jsonl.zst"])
@pytest.mark.parametrize(("line", "message"), BROKEN)
def test_a_broken_line_is_named(tmp_path: Path, ending: str, line: bytes, message: str) -> None:
    content = jsonl(ROWS[:1]) + b"\n" + line + jsonl(ROWS[1:])
    compress = {"gz": gzip.compress, "zst": zstandard.compress}.get(ending[6:], bytes)
    path = tmp_path / f"data.{ending}"
    path.write_bytes(compress(content))
    with pytest.raises(DataError, match=rf"data\.{ending}, {message}"):
        read(path)


@pytest.mark.parametrize("ending", ["jsonl", "jsonl.gz", "jsonl.zst"])
def test_the_mark_that_some_programs_write_before_a_text_is_no_part_of_it(
    tmp_path: Path, ending: str
) -> None:
    compress = {"gz": gzip.compress, "zst": zstandard.compress}.get(ending[6:], bytes)
    path = tmp_path / f"data.{ending}"
    path.write_bytes(compress(b"\xef\xbb\xbf" + jsonl(ROWS)))
    assert read(path) == read(ROWS)
    assert list(read_dataset(path)) == ROWS
    path.write_bytes(compress(jsonl(ROWS).decode().encode("utf-16")))
    with pytest.raises(DataError, match=rf"data\.{ending}, line 1: the text must be UTF-8"):
        read(path)


def test_what_json_takes_and_arrow_does_not_is_read(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(b'{"text": "x", "text": "y", "id": "a"}\n{"id": "b", "text": "z"}\n')
    assert read(path) == [("a", "y", None), ("b", "z", None)]


@pytest.mark.parametrize("ending", ["gz", "zst"])
def test_a_file_that_breaks_off_is_named(tmp_path: Path, ending: str) -> None:
    rows = [{"text": f"{random.Random(n).random()}"} for n in range(500)]
    whole = {"gz": gzip.compress, "zst": zstandard.compress}[ending](jsonl(rows))
    path = tmp_path / f"data.jsonl.{ending}"
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=rf"{ending} must be a whole compressed file\.") as caught:
        read(path)
    named = int(re.findall(r"breaks off after line (\d+)", str(caught.value))[0])
    assert (0 if ending == "zst" else 1) <= named < 500  # zstd gives whole blocks only
    before = [row for block in line_blocks_until_it_breaks(path) for row in block]
    assert len(before) == named  # all of them were read


def line_blocks_until_it_breaks(path: Path) -> Iterator[list[tuple[int, bytes]]]:
    with contextlib.suppress(DataError):
        for block in line_blocks(path, 700):
            yield list(block.numbered())


def test_other_files_that_are_damaged_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(DataError, match=r"a\.parquet must be readable as parquet, and is not"):
        read(tmp_path / "a.parquet")
    (tmp_path / "a.csv").write_text("id,text\n1,x\n2,y,z\n")
    with pytest.raises(DataError, match=r"a\.csv, after row 0: must be readable as csv"):
        read(tmp_path / "a.csv")
    (tmp_path / "b.csv").write_text("id,body\n1,x\n")
    with pytest.raises(DataError, match=r"b\.csv, row 0: every row must have a text in 'text'"):
        read(tmp_path / "b.csv")


def test_what_cannot_be_read_twice_is_refused() -> None:
    with pytest.raises(TypeError, match="must be something that can be read more than once"):
        Texts(iter(ROWS))
    with pytest.raises(DataError, match=r"none\.jsonl must be a data file\. There is no such"):
        Texts(Path("none.jsonl"))
    with pytest.raises(DataError, match="must end in one of"):
        Texts(Path(__file__))


def test_rows_that_are_no_rows_are_named() -> None:
    with pytest.raises(DataError, match=r"row 1: a row must be a text or a mapping\. Got int"):
        read(["a", 5])
    with pytest.raises(DataError, match=r"row 0: every row must have a domain in 'from'"):
        read(ROWS, domain="from")


@settings(max_examples=60, deadline=None)
@given(
    content=st.lists(st.sampled_from([b"a", b"bb", b"\n", b" ", b"\n\n"]), max_size=30),
    size=st.integers(1, 9),
    piece=st.integers(1, 9),
)
def test_blocks_put_together_are_the_file(content: list[bytes], size: int, piece: int) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr("projections.streams.PIECE", piece)
        path = Path(folder) / "data.jsonl"
        data = b"".join(content)
        path.write_bytes(data)
        blocks = list(line_blocks(path, size))
        assert b"".join(block.data for block in blocks) == data
        wanted = [(n, x) for n, x in enumerate(data.split(b"\n"), 1) if x.strip()]
        assert [pair for block in blocks for pair in block.numbered()] == wanted
        assert sum(block.num_rows for block in blocks) == len(wanted)
        ends = [0]
        for block in blocks:
            assert block.first_row == ends[-1]
            ends.append(ends[-1] + block.num_rows)
        assert [x for x in lines(path) if x.strip()] == [x for _, x in wanted]


@pytest.mark.parametrize("num_workers", [1, 2, 7])
def test_workers_give_results_in_order_and_errors_in_their_place(num_workers: int) -> None:
    assert list(ordered_map(lambda n: n * n, range(40), num_workers=num_workers)) == [
        n * n for n in range(40)
    ]
    found = []
    with pytest.raises(ZeroDivisionError):
        for value in ordered_map(lambda n: 1 / (5 - n), range(40), num_workers=num_workers):
            found.append(value)
    assert len(found) == 5


def dying(number: int) -> int:
    os._exit(3)


def test_a_worker_process_that_dies_is_said() -> None:
    with pytest.raises(RuntimeError, match=r"worker process must live.*__main__"):
        list(ordered_map(dying, range(2), num_workers=2, processes=True))


def test_the_fingerprint_follows_the_files(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(jsonl(ROWS))
    before = Texts(path).fingerprint
    assert Texts(path).fingerprint == before
    path.write_bytes(jsonl(ROWS[::-1]))
    assert Texts(path).fingerprint != before
    assert Texts(ROWS).fingerprint != Texts(ROWS[1:]).fingerprint


def test_how_much_there_is_is_known_where_it_can_be(tmp_path: Path) -> None:
    write_dataset(datasets.Dataset.from_list(ROWS), tmp_path / "a.jsonl")
    write_dataset(datasets.Dataset.from_list(ROWS), tmp_path / "a.jsonl.gz")
    plain = Texts(tmp_path / "a.jsonl")
    assert plain.extent == (sum(block.size for block in plain.blocks()), "B")
    assert Texts(tmp_path / "a.jsonl.gz").extent == (None, "B")
    assert Texts(ROWS).extent == (50, "rows")
    assert Texts(lambda: iter(ROWS)).extent == (None, "rows")
    assert text_sources.BLOCK_ROWS == 7
