"""A store can be added to, deleted from, compacted, merged and repaired, and survives kills."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import killed_often
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_store import contents, table, write

from projections import (
    SJLT,
    GradientStore,
    NonFiniteError,
    PassSettings,
    Regression,
    SearchIndex,
    StoreMismatchError,
    StoreWriter,
    Table,
    append_gradients,
    compact_store,
    delete_rows,
    index_gradients,
    merge_stores,
    query_rows,
)
from projections.journal import Journal

ROOT = Path(__file__).parent.parent
HALF_STEP = {"float32": 0, "float16": 2**-11, "bfloat16": 2**-8}  # largest relative rounding


def flip_a_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def sketches(tables: Sequence[Table]) -> np.ndarray:
    return np.concatenate([part.columns["sketch"] for part in tables])


# Row types.


@pytest.mark.parametrize("dtype", list(HALF_STEP))
def test_floating_rows_are_rounded_to_the_nearest(tmp_path: Path, dtype: str) -> None:
    rows = sketches(write(tmp_path, dtype=dtype))
    store = GradientStore.open(tmp_path)
    error = np.abs(store.rows(range(9)) - rows) / np.abs(rows)
    assert error.max() <= HALF_STEP[dtype]
    np.testing.assert_array_equal(store.column("sketch"), store.rows(range(9)))
    blocks = np.concatenate([np.asarray(block, np.float32) for block in store.blocks()])
    np.testing.assert_array_equal(blocks, store.rows(range(9)))
    size = (tmp_path / "shard-000000" / "sketch.npy").stat().st_size
    assert size - 128 == 3 * 4 * (4 if dtype == "float32" else 2)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "int8"])
def test_every_row_type_is_searched_as_it_is_read(tmp_path: Path, dtype: str) -> None:
    write(tmp_path, dtype=dtype)
    delete_rows(tmp_path, [1, 4])
    store = GradientStore.open(tmp_path)
    queries = np.random.default_rng(1).standard_normal((3, 4)).astype(np.float32)
    scores = queries @ store.rows(range(7)).T
    found = SearchIndex(store).search(queries, 7)
    np.testing.assert_allclose(found.scores, -np.sort(-scores, axis=1), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(found.ids, store.ids[np.argsort(-scores, axis=1)])


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "int8"])
def test_a_row_that_is_not_finite_is_named(tmp_path: Path, dtype: str) -> None:
    part = table(5, 3)
    part.columns["sketch"][1, 2] = np.nan
    with pytest.raises(NonFiniteError, match=r"rows must be finite\. Those with the ids \[6\]"):
        StoreWriter(tmp_path, {}, num_rows=3, dtype=dtype).write(0, part)


def test_a_row_too_large_for_bfloat16_is_named(tmp_path: Path) -> None:
    part = table(0, 3)
    part.columns["sketch"][1] = np.finfo(np.float32).max
    with pytest.raises(OverflowError, match=r"fit into bfloat16\. Those with the ids \[1\]"):
        StoreWriter(tmp_path, {}, num_rows=3, dtype="bfloat16").write(0, part)


# The journal.


def test_half_a_line_is_no_entry_and_is_cut_off_by_the_next_writer(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j")
    journal.add({"number": 1})
    whole = (tmp_path / "j").read_bytes()
    journal.add({"number": 2})
    both = (tmp_path / "j").read_bytes()
    for size in range(len(whole), len(both)):
        (tmp_path / "j").write_bytes(both[:size])
        assert Journal(tmp_path / "j").entries == [{"number": 1}]
        again = Journal(tmp_path / "j")
        again.add({"number": 2})
        assert (tmp_path / "j").read_bytes() == both


def test_a_damaged_line_in_the_middle_is_refused_by_its_number(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j")
    journal.add({"number": 1})
    journal.add({"number": 2})
    (tmp_path / "j").write_bytes((tmp_path / "j").read_bytes().replace(b"1}", b"7}"))
    with pytest.raises(StoreMismatchError, match=r"Line 1 of 2 does not match its checksum"):
        Journal(tmp_path / "j")


def test_a_second_writer_is_refused_and_nothing_of_the_first_is_lost(tmp_path: Path) -> None:
    first, second = Journal(tmp_path / "j"), Journal(tmp_path / "j")
    first.add({"number": 1})
    with pytest.raises(StoreMismatchError, match=r"one writer at a time\. It had 0 .* now has 1"):
        second.add({"number": 2})
    assert Journal(tmp_path / "j").entries == [{"number": 1}]


def test_writing_a_shard_costs_the_same_however_many_there_are(tmp_path: Path) -> None:
    writer = StoreWriter(tmp_path, {}, num_rows=300)
    sizes = [0]
    for shard in range(300):
        writer.write(shard, table(shard, 1))
        sizes.append((tmp_path / "journal.jsonl").stat().st_size)
    growth = np.diff(sizes)
    assert growth.max() == growth.min()
    assert (tmp_path / "manifest.json").stat().st_size < 100


# Deleting and compacting.


@settings(max_examples=30, deadline=None)
@given(gone=st.lists(st.sets(st.integers(0, 8)), max_size=3), compacted=st.booleans())
def test_what_is_deleted_is_seen_by_no_reader(
    tmp_path_factory: pytest.TempPathFactory, gone: list[set[int]], compacted: bool
) -> None:
    path = tmp_path_factory.mktemp("store")
    rows = sketches(write(path))
    left = list(range(9))
    for ids in gone:
        ids &= set(left)
        delete_rows(path, sorted(ids))
        left = [row for row in left if row not in ids]
        if compacted:
            compact_store(path)
    store = GradientStore.open(path)
    assert (len(store), store.num_written, store.is_finished) == (len(left), 9, True)
    assert store.ids.tolist() == left
    np.testing.assert_array_equal(store.rows(range(len(left))), rows[left])
    np.testing.assert_array_equal(store.column("sketch"), rows[left])
    np.testing.assert_array_equal(
        store.column("grad_norm"), np.linalg.norm(rows[left], axis=1).astype(np.float32)
    )
    blocks = [block for block in store.blocks() if len(block)]
    np.testing.assert_array_equal(np.concatenate([*blocks, rows[:0]]), rows[left])
    on_disk = store.undeleted()
    places = np.arange(9)[left] if store.live is None and len(left) == 9 else store.live
    assert places is None or np.array_equal(on_disk.ids[places], left)
    store.verify()
    if left:
        found = SearchIndex(store).search(rows[:1], len(left))
        assert set(found.ids[0].tolist()) == set(left)


def test_deleting_what_is_not_there_is_refused_and_deletes_nothing(tmp_path: Path) -> None:
    write(tmp_path)
    delete_rows(tmp_path, [3])
    before = contents(tmp_path)
    with pytest.raises(KeyError, match=r"These are not: \[3, 99\]\. Nothing was deleted"):
        delete_rows(tmp_path, [4, 3, 99])
    assert contents(tmp_path) == before


def test_compacting_gives_back_the_space_and_keeps_the_bytes_of_the_rest(tmp_path: Path) -> None:
    write(tmp_path, dtype="int8")
    delete_rows(tmp_path, [3, 4, 8])
    before = GradientStore.open(tmp_path)
    rows, stored = before.rows(range(6)), contents(tmp_path)
    store = compact_store(tmp_path)
    np.testing.assert_array_equal(store.rows(range(6)), rows)
    assert store.live is None
    assert store.fingerprint != before.fingerprint
    folders = sorted(path.name for path in tmp_path.glob("shard-*"))
    assert folders == ["shard-000000", "shard-000001-1", "shard-000002-1"]
    now = contents(tmp_path)
    assert all(now[name] == stored[name] for name in now if name.startswith("shard-000000/"))
    delete_rows(tmp_path, [5])
    compact_store(tmp_path)
    assert sorted(path.name for path in tmp_path.glob("shard-*"))[2] == "shard-000002-2"


# Adding.


def grown(path: Path, more: int = 4) -> np.ndarray:
    """A store of 5 rows to which more are added."""
    writer = StoreWriter(path, {"model": "a", "data": "one"}, num_rows=5)
    parts = [table(0, 3), table(3, 2)]
    for shard, part in enumerate(parts):
        writer.write(shard, part)
    added = StoreWriter.extend(path, {"model": "a", "data": "two"}, num_rows=more)
    for shard, start in enumerate(range(0, more, 2)):
        parts.append(table(10 + start, 2))
        added.write(shard, parts[-1])
    return sketches(parts)


def test_rows_are_added_to_a_finished_store(tmp_path: Path) -> None:
    rows = grown(tmp_path)
    store = GradientStore.open(tmp_path)
    assert store.ids.tolist() == [0, 1, 2, 3, 4, 10, 11, 12, 13]
    np.testing.assert_array_equal(store.rows(range(9)), rows)
    again = StoreWriter.extend(tmp_path, {"model": "a", "data": "two"}, num_rows=4)
    assert again.num_finished == 2
    assert StoreWriter(tmp_path, {"model": "a", "data": "one"}, num_rows=5).num_finished == 2


def test_rows_that_are_being_added_make_the_store_unfinished(tmp_path: Path) -> None:
    grown(tmp_path)
    StoreWriter.extend(tmp_path, {"model": "a", "data": "three"}, num_rows=2)
    with pytest.raises(StoreMismatchError, match=r"It has 9 of 11 rows"):
        GradientStore.open(tmp_path)
    with pytest.raises(StoreMismatchError, match=r"must be finished before rows are added"):
        StoreWriter.extend(tmp_path, {"model": "a", "data": "four"}, num_rows=2)


def test_rows_of_another_model_or_with_known_ids_are_not_added(tmp_path: Path) -> None:
    grown(tmp_path)
    with pytest.raises(StoreMismatchError, match=r"differs in: model: 'b' against 'a'"):
        StoreWriter.extend(tmp_path, {"model": "b", "data": "two"}, num_rows=2)
    writer = StoreWriter.extend(tmp_path, {"model": "a", "data": "three"}, num_rows=2)
    with pytest.raises(StoreMismatchError, match=r"Both have \[4\]\. Delete these rows first"):
        writer.write(0, table(4, 1))
    delete_rows(tmp_path, [4])
    StoreWriter.extend(tmp_path, {"model": "a", "data": "three"}, num_rows=2).write(0, table(4, 1))


def test_gradients_of_more_data_continue_those_that_are_there(tmp_path: Path) -> None:
    torch.manual_seed(0)
    task = Regression(torch.nn.Linear(3, 2))
    data = [{"id": n, "x": torch.randn(3), "y": torch.randn(2)} for n in range(7)]
    task.encode = lambda rows: [(row["x"], row["y"]) for row in rows]  # pyright: ignore
    reading = PassSettings(shard_size=2)
    projector = SJLT(num_dims=8, seed=0)
    whole = index_gradients(task, data, projector, path=tmp_path / "whole", settings=reading)
    index_gradients(task, data[:3], projector, path=tmp_path / "grown", settings=reading)
    for _ in range(2):
        store = append_gradients(
            task, data[3:], projector, path=tmp_path / "grown", settings=reading
        )
    assert store.ids.tolist() == whole.ids.tolist()
    np.testing.assert_array_equal(store.rows(range(7)), whole.rows(range(7)))
    np.testing.assert_array_equal(store.column("loss"), whole.column("loss"))
    rows = query_rows(task, data[:1], projector, store=store)
    np.testing.assert_allclose(rows, whole.rows([0]), rtol=1e-5)
    with pytest.raises(StoreMismatchError, match=r"Both have \[2\]"):
        append_gradients(task, data[2:3], projector, path=tmp_path / "grown", settings=reading)


# Merging.


def two(folder: Path, **settings: Any) -> list[Path]:
    """Two stores of the same kind."""
    paths = []
    for number in range(2):
        paths.append(folder / f"part-{number}")
        writer = StoreWriter(paths[-1], {"model": "a", "data": str(number)}, num_rows=5, **settings)
        writer.write(0, table(10 * number, 3))
        writer.write(1, table(10 * number + 3, 2))
    return paths


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_a_merged_store_has_the_rows_of_all_without_the_deleted(tmp_path: Path, dtype: str) -> None:
    paths = two(tmp_path, dtype=dtype)
    delete_rows(paths[0], [3, 4])
    stores = [GradientStore.open(path) for path in paths]
    merged = merge_stores(paths, tmp_path / "both")
    assert merged.ids.tolist() == [0, 1, 2, 10, 11, 12, 13, 14]
    rows = np.concatenate([store.column("sketch") for store in stores])
    np.testing.assert_array_equal(merged.column("sketch"), rows)
    assert (merged.manifest["model"], merged.manifest["data"]) == ("a", ["0", "1"])
    merged.verify()
    assert len(merge_stores(paths, tmp_path / "both")) == 8


def test_stores_that_do_not_belong_together_are_not_merged(tmp_path: Path) -> None:
    paths = two(tmp_path)
    other = tmp_path / "other"
    StoreWriter(other, {"model": "b", "data": "x"}, num_rows=1).write(0, table(50, 1))
    with pytest.raises(
        StoreMismatchError, match=r"part-0 \(first\) and .*other \(second\) differ "
    ):
        merge_stores([paths[0], other], tmp_path / "both")
    half = tmp_path / "half"
    StoreWriter(half, {"model": "a"}, num_rows=1, dtype="float16").write(0, table(50, 1))
    with pytest.raises(StoreMismatchError, match=r"dtype: 'float32' against 'float16'"):
        merge_stores([paths[0], half], tmp_path / "both")
    with pytest.raises(StoreMismatchError, match=r"part-0 and .*part-0 both have \[0, 1, 2"):
        merge_stores([paths[0], paths[0]], tmp_path / "both")
    with pytest.raises(ValueError, match=r"`paths` must hold at least one"):
        merge_stores([], tmp_path / "both")
    assert not (tmp_path / "both").exists()


# Damage.


def test_a_store_is_usable_without_its_damaged_shards(tmp_path: Path) -> None:
    tables = write(tmp_path)
    flip_a_bit(tmp_path / "shard-000001" / "sketch.npy")
    (tmp_path / "shard-000000" / "grad_norm.npy").unlink()
    store = GradientStore.open(tmp_path)
    message = r"shard-000000/grad_norm\.npy, shard-000001/sketch\.npy\. The other 4 of 9 rows are"
    with pytest.raises(StoreMismatchError, match=message):
        store.verify()
    rest = store.without_damaged()
    rest.verify()
    assert rest.ids.tolist() == [5, 6, 7, 8]
    np.testing.assert_array_equal(rest.rows(range(4)), tables[2].columns["sketch"])
    found = SearchIndex(rest).search(tables[2].columns["sketch"][:1], 1)
    assert found.ids.tolist() == [[5]]


# Kills.


def killed(name: str, path: Path, num_rows: int, mean: tuple[str, float]) -> int:
    """Work on a store until it is done, and return the number of kills on the way."""
    unit, amount = mean
    words = ["tests/killed_often.py", name, path, num_rows, unit, 0, amount]
    environment = {"PYTHONPATH": ".", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *map(str, words)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@pytest.mark.parametrize("name", list(killed_often.WORK))
def test_work_that_is_killed_at_random_ends_with_the_same_bytes(tmp_path: Path, name: str) -> None:
    killed_often.WORK[name](tmp_path / "whole", 10_000)
    kills = killed(name, tmp_path / "killed", 10_000, ("accesses", 60))
    whole, found = (GradientStore.open(path) for path in final(name, tmp_path))
    whole.verify()
    found.verify()
    np.testing.assert_array_equal(found.ids, whole.ids)
    np.testing.assert_array_equal(found.column("sketch"), whole.column("sketch"))
    assert contents(found.path) == contents(whole.path)
    assert kills > 0  # of counted accesses, not of moments in time


@pytest.mark.slow
def test_a_million_rows_survive_kills_at_random(tmp_path: Path) -> None:
    killed_often.write(tmp_path / "whole", 1_000_000)
    assert killed("write", tmp_path / "killed", 1_000_000, ("seconds", 0.1)) > 5
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def final(name: str, folder: Path) -> list[Path]:
    """The stores that some work ends with."""
    inner = "both" if name == "merge" else "."
    return [folder / "whole" / inner, folder / "killed" / inner]
