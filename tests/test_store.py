"""A store keeps what was written, survives a kill and a full disk, and refuses what is not it."""

import errno
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import interrupted
import numpy as np
import pytest

from projections import (
    SJLT,
    GradientStore,
    PassSettings,
    Rademacher,
    StoreMismatchError,
    StoreWriter,
    Table,
    files,
    query_rows,
    read_json,
)
from projections.files import replacing

ROOT = Path(__file__).parent.parent


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder with its bytes."""
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def table(start: int, size: int, *, scale: float = 1.0) -> Table:
    ids = np.arange(start, start + size)
    sketch = scale * np.random.default_rng(start).normal(size=(size, 4)).astype(np.float32)
    return Table(ids, {"sketch": sketch, "grad_norm": np.linalg.norm(sketch, axis=1)})


def write(path: Path, sizes: tuple[int, ...] = (3, 2, 4), **settings: Any) -> list[Table]:
    writer = StoreWriter(path, {"model": "a"}, num_rows=sum(sizes), **settings)
    starts = np.cumsum([0, *sizes]).tolist()
    tables = [table(start, size) for start, size in zip(starts, sizes, strict=False)]
    for shard, part in enumerate(tables):
        writer.write(shard, part)
    return tables


def test_what_was_written_is_read(tmp_path: Path) -> None:
    tables = write(tmp_path)
    store = GradientStore.open(tmp_path)
    sketch = np.concatenate([part.columns["sketch"] for part in tables])
    assert (len(store), store.num_dims, store.column_names) == (9, 4, ["grad_norm"])
    np.testing.assert_array_equal(store.ids, np.arange(9))
    np.testing.assert_array_equal(np.concatenate(list(store.blocks())), sketch)
    np.testing.assert_array_equal(store.column("sketch"), sketch)
    np.testing.assert_array_equal(store.rows([8, 0, 3, 3, 2]), sketch[[8, 0, 3, 3, 2]])
    assert store.rows([]).shape == (0, 4)
    norms = np.concatenate([part.columns["grad_norm"] for part in tables])
    np.testing.assert_array_equal(store.table().columns["grad_norm"], norms)
    store.verify()


def test_ids_may_be_text_of_different_length(tmp_path: Path) -> None:
    writer = StoreWriter(tmp_path, {}, num_rows=2)
    for shard, row_id in enumerate(["a", "a longer one"]):
        columns = {"sketch": np.ones((1, 2), np.float32)}
        writer.write(shard, Table(np.array([row_id]), columns))
    assert GradientStore.open(tmp_path).ids.tolist() == ["a", "a longer one"]


@pytest.mark.parametrize("positions", [[9], [-1], [0, 100]])
def test_rows_that_are_not_there_are_refused(tmp_path: Path, positions: list[int]) -> None:
    write(tmp_path)
    with pytest.raises(IndexError, match=r"positions must be in \[0, 9\)"):
        GradientStore.open(tmp_path).rows(positions)


def test_a_column_that_is_not_there_is_named(tmp_path: Path) -> None:
    write(tmp_path)
    with pytest.raises(KeyError, match=r"must have the column 'loss'\. It has \['grad_norm'\]"):
        GradientStore.open(tmp_path).column("loss")


def test_rows_can_be_kept_in_half_precision(tmp_path: Path) -> None:
    tables = write(tmp_path, dtype="float16")
    store = GradientStore.open(tmp_path)
    assert next(store.blocks()).dtype == np.float16
    assert store.rows([0]).dtype == np.float32
    sketch = np.concatenate([part.columns["sketch"] for part in tables])
    np.testing.assert_allclose(store.rows(range(9)), sketch, rtol=1e-3)


def test_a_row_too_large_for_half_precision_is_named(tmp_path: Path) -> None:
    writer = StoreWriter(tmp_path, {}, num_rows=3, dtype="float16")
    part = table(0, 3)
    part.columns["sketch"][1] = 1e6
    with pytest.raises(OverflowError, match=r"ids \[1\] reach 1e\+06\. Use dtype='float32'"):
        writer.write(0, part)
    assert writer.num_finished == 0
    assert len(GradientStore.open(tmp_path, allow_unfinished=True)) == 0


def test_an_unknown_dtype_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"`dtype` must be one of .bfloat16., .float16., "):
        StoreWriter(tmp_path, {}, num_rows=1, dtype="int4")


def test_shards_come_in_order(tmp_path: Path) -> None:
    writer = StoreWriter(tmp_path, {}, num_rows=3)
    with pytest.raises(ValueError, match=r"`shard` must be 0, the next one\. Got 1\."):
        writer.write(1, table(0, 3))


# Unfinished and interrupted.


def test_a_half_written_store_is_refused_unless_asked_for(tmp_path: Path) -> None:
    writer = StoreWriter(tmp_path, {}, num_rows=5)
    writer.write(0, table(0, 3))
    with pytest.raises(StoreMismatchError, match=r"It has 3 of 5 rows\. Run the command that"):
        GradientStore.open(tmp_path)
    store = GradientStore.open(tmp_path, allow_unfinished=True)
    assert len(store) == 3
    writer.write(1, table(3, 2))
    assert len(store) == 3
    assert len(GradientStore.open(tmp_path)) == 5


@pytest.mark.parametrize(
    ("way", "number"),
    [("forward", 6), ("forward", 9), ("write", 5)],
    ids=["early-shard", "last-shard", "in-a-row-file"],
)
def test_a_killed_build_goes_on_to_the_same_bytes(tmp_path: Path, way: str, number: int) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    interrupted.build(whole)
    command = [sys.executable, "tests/interrupted.py", str(killed), way, str(number)]
    ended = subprocess.run(command, cwd=ROOT, env={"PYTHONPATH": ".", "OMP_NUM_THREADS": "1"})
    assert ended.returncode == -signal.SIGKILL
    assert contents(killed) != contents(whole)
    interrupted.build(killed)
    assert contents(killed) == contents(whole)


def test_a_finished_build_is_opened_and_not_repeated(tmp_path: Path) -> None:
    interrupted.build(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npy")}
    interrupted.build(tmp_path)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npy")} == before


def test_a_description_survives_the_way_through_json(tmp_path: Path) -> None:
    description = {"notes": {"range": (1, 2), 3: "three"}}
    StoreWriter(tmp_path, description, num_rows=2).write(0, table(0, 1))
    assert StoreWriter(tmp_path, description, num_rows=2).num_finished == 1


def test_a_full_disk_is_reported_and_leaves_nothing_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = StoreWriter(tmp_path, {}, num_rows=5)
    writer.write(0, table(0, 3))
    before = contents(tmp_path)
    save = np.save

    def save_half(file: Any, array: np.ndarray, **settings: Any) -> None:
        file.write(b"half of it")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.np, "save", save_half)
    with pytest.raises(OSError, match=r"must have room for .*is full\. Free some space"):
        writer.write(1, table(3, 2))
    assert contents(tmp_path) == before
    monkeypatch.setattr(files.np, "save", save)
    writer.write(1, table(3, 2))
    GradientStore.open(tmp_path).verify()


def test_a_file_that_cannot_be_replaced_stays_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "note.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError, match="trouble"), replacing(path) as file:
        file.write(b"new")
        raise RuntimeError("trouble")
    assert contents(tmp_path) == {"note.txt": b"old"}
    with replacing(path) as file:
        file.write(b"new")
    assert contents(tmp_path) == {"note.txt": b"new"}


# Mismatch and damage.


def test_a_store_of_another_model_is_refused_by_what_differs(tmp_path: Path) -> None:
    interrupted.build(tmp_path)
    before = contents(tmp_path)
    with pytest.raises(StoreMismatchError, match=r"differs in: model: '\w{16}' against '\w{16}'"):
        interrupted.build(tmp_path, seed=1)
    assert contents(tmp_path) == before


def test_queries_of_another_model_or_map_are_refused(tmp_path: Path) -> None:
    store = interrupted.build(tmp_path)
    model = interrupted.nn.Linear(3, 2)
    data = [(interrupted.torch.ones(3), interrupted.torch.ones(2))]
    task = interrupted.Mortal(model)
    with pytest.raises(StoreMismatchError, match=r"differ in: model: .*; projector: "):
        query_rows(task, data, Rademacher(num_dims=8, seed=0), store=store)
    settings = PassSettings(layers=("*",))
    with pytest.raises(StoreMismatchError, match=r"layers: None against \['\*'\]"):
        query_rows(task, data, SJLT(num_dims=8, seed=0), store=store, settings=settings)


def test_a_damaged_shard_is_named_and_the_rest_is_usable(tmp_path: Path) -> None:
    tables = write(tmp_path)
    file = tmp_path / "shard-000001" / "sketch.npy"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    store = GradientStore.open(tmp_path)
    with pytest.raises(StoreMismatchError, match=r"Damaged or missing: shard-000001/sketch\.npy\."):
        store.verify()
    np.testing.assert_array_equal(store.rows([0, 1, 2]), tables[0].columns["sketch"])
    np.testing.assert_array_equal(store.rows([5, 8]), tables[2].columns["sketch"][[0, 3]])


@pytest.mark.parametrize("damage", ["missing", "cut", "empty", "other"])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, damage: str) -> None:
    write(tmp_path)
    file = tmp_path / "shard-000001" / "sketch.npy"
    if damage == "missing":
        file.unlink()
    elif damage == "other":
        np.save(file, np.ones((7, 4), np.float32))
    else:
        file.write_bytes(file.read_bytes()[: 140 if damage == "cut" else 0])
    store = GradientStore.open(tmp_path)
    assert len(store.rows([0, 8])) == 2
    with pytest.raises(StoreMismatchError, match=r"shard-000001/sketch\.npy must .*`verify` lists"):
        store.rows([4])


def test_another_folder_is_not_a_store(tmp_path: Path) -> None:
    with pytest.raises(StoreMismatchError, match=r"must be a gradient store\. There is no man"):
        GradientStore.open(tmp_path / "nothing")
    file = tmp_path / "letter.txt"
    file.write_text("Dear store")
    with pytest.raises(StoreMismatchError, match=r"must be a gradient store\. There is no man"):
        GradientStore.open(file)
    with pytest.raises(StoreMismatchError, match=r"or one with a store\. It holds something else"):
        StoreWriter(tmp_path, {}, num_rows=1)
    with pytest.raises(StoreMismatchError, match=r"must be a new folder.*It is a file"):
        StoreWriter(file, {}, num_rows=1)
    assert contents(tmp_path) == {"letter.txt": b"Dear store"}


@pytest.mark.parametrize(
    ("manifest", "message"),
    [
        ("{", r"manifest\.json must be a gradient store, and is damaged: .*line 1"),
        ("[]", r"Its manifest\.json names no rows"),
        ("{}", r"Its manifest\.json names no rows"),
        ('{"num_rows": 1, "format": 99}', r"must have the format 2\. It has 99\. Use the version"),
    ],
    ids=["broken", "list", "empty", "newer"],
)
def test_a_manifest_that_is_none_is_refused(tmp_path: Path, manifest: str, message: str) -> None:
    (tmp_path / "manifest.json").write_text(manifest)
    with pytest.raises(StoreMismatchError, match=message):
        GradientStore.open(tmp_path)


def test_json_with_nan_is_never_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Out of range float"):
        files.write_json(tmp_path / "a.json", {"a": float("nan")})
    assert contents(tmp_path) == {}
    files.write_json(tmp_path / "a.json", {"a": [1, "ü"]})
    assert read_json(tmp_path / "a.json", "a note") == {"a": [1, "ü"]}
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": [1, "ü"]}


def test_int8_rows_come_back_within_half_a_step_of_their_scale(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).standard_normal((5, 8)).astype(np.float32)
    rows[2] = 0
    writer = StoreWriter(tmp_path / "s", {}, num_rows=5, dtype="int8")
    writer.write(0, Table(np.arange(5), {"sketch": rows}))
    store = GradientStore.open(tmp_path / "s")
    steps = np.abs(rows).max(1) / 127
    assert (np.abs(store.rows(range(5)) - rows).max(1) <= steps / 2 * 1.001).all()
    np.testing.assert_array_equal(np.concatenate(list(store.blocks())), store.rows(range(5)))
    assert store.column_names == []
    assert (tmp_path / "s" / "shard-000000" / "sketch.npy").stat().st_size < 200
