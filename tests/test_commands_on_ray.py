"""Commands choose the same rows with a Ray cluster as without, to the bit."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ray_cluster import MARKS, small_ray
from test_cli import run

from selection import Selection

pytestmark = MARKS
RANDOM = np.random.default_rng(0)
WORDS = np.array([f"w{number}" for number in range(40)])
ROWS: list[dict[str, Any]] = [
    {"id": f"row-{row}", "text": " ".join(RANDOM.choice(WORDS[: 10 + row % 30], 12))}
    for row in range(200)
]
TARGET = [{"id": f"t{row}", "text": "w1 w2 w3 w4 w1 w5"} for row in range(20)]


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    """Two workers on this machine."""
    with small_ray():
        yield


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, rows in (("raw.jsonl", ROWS[:150]), ("target.jsonl", TARGET)):
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    pq.write_table(pa.Table.from_pylist(ROWS[150:]), tmp_path / "more.parquet")
    return tmp_path


def check_same(folder: Path, words: list[object], more: tuple[object, ...] = ()) -> None:
    """Rows, ids, weights and all columns are the same."""
    for name, ray in (("one", ()), ("two", ("--ray", "local"))):
        out = folder / f"{name}.jsonl"
        assert run(*words, "--out", out, *more, *ray) == 0
    assert (folder / "one.jsonl").read_text() == (folder / "two.jsonl").read_text()
    one, two = (
        Selection.load(folder / f"{name}.jsonl.selection.parquet") for name in ("one", "two")
    )
    assert len(one) > 0
    assert one.ids.tolist() == two.ids.tolist()
    np.testing.assert_array_equal(one.weights, two.weights)
    for name, values in one.columns.items():
        assert np.asarray(values).tobytes() == np.asarray(two.columns[name]).tobytes(), name


def test_dsir_draws_the_same_rows_of_several_files(folder: Path) -> None:
    words: list[object] = ["dsir", "--raw", folder / "raw.jsonl", folder / "more.parquet"]
    words += ["--target", folder / "target.jsonl", "--num", 30, "--min-length", 5]
    check_same(folder, [*words, "--smoothing", 0.1, "--num-buckets", 500])


def test_gio_deduplication_and_cover_choose_the_same_rows(folder: Path) -> None:
    raw = folder / "raw.jsonl"
    words: list[object] = ["gio", "--raw", raw, "--target", folder / "target.jsonl"]
    check_same(folder, [*words, "--num-centroids", 20, "--num-dims", 8, "--num", 40])
    words = ["dedup", "--data", raw, "--num-dims", 8, "--threshold", 0.9, "--num-clusters", 4]
    check_same(folder, words)
    check_same(folder, ["cover", "--data", raw, "--num-dims", 8, "--num", 20])


def test_vectors_from_a_file_are_compared_by_the_cluster(folder: Path) -> None:
    np.save(folder / "v.npy", RANDOM.standard_normal((150, 3)).astype(np.float32))
    words: list[object] = ["dedup", "--data", folder / "raw.jsonl", "--threshold", 0.9]
    words += ["--encoder", "npy", "--embeddings", folder / "v.npy", "--num-clusters", 3]
    check_same(folder, words)


def test_rows_without_ids_have_their_positions_in_commands_that_embed(folder: Path) -> None:
    lines = "".join(json.dumps({"text": row["text"]}) + "\n" for row in ROWS[:60])
    (folder / "bare.jsonl").write_text(lines)
    words: list[object] = ["dedup", "--data", folder / "bare.jsonl", "--num-dims", 8]
    check_same(folder, [*words, "--threshold", 0.9, "--num-clusters", 2])


def test_what_a_cluster_cannot_take_is_refused(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "bare.jsonl").write_text(json.dumps({"text": "w1 w2"}) + "\n")
    words: list[object] = ["dsir", "--target", folder / "target.jsonl", "--num", 3]
    words += ["--out", folder / "out.jsonl", "--ray", "local"]
    assert run(*words, "--raw", folder / "bare.jsonl") == 1
    assert "must have a column 'id' of ids" in capsys.readouterr().err
    assert run(*words, "--raw", folder / "none.jsonl", folder / "raw.jsonl") == 1
    assert "none.jsonl must be a file that ends in one of .jsonl" in capsys.readouterr().err
    assert run(*words, "--raw", folder / "raw.jsonl", "--workers", 2) == 1
    assert "`num_workers` must be left out for a Ray dataset" in capsys.readouterr().err
    words = ["dedup", "--data", folder / "raw.jsonl", "--out", folder / "out.jsonl"]
    assert run(*words, "--ray", "local", "--cache", folder / "cache") == 1
    assert "`--cache` must be left out with `--ray`" in capsys.readouterr().err
