"""An index on the disk finds what exact search finds, however it was built, added to or merged."""

import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from projections import (
    DiskIndex,
    GradientStore,
    Reranked,
    SearchIndex,
    StoreMismatchError,
    StoreWriter,
    Table,
    build_disk_index,
    compact_store,
    delete_rows,
    faiss_beside,
    index_building,
    merge_parts,
)

pytest.importorskip("faiss")
NUM_ROWS, NUM_DIMS, SHARD = 600, 16, 100
LISTS = 8
SINGLE = 1e-5  # of inner products in float32, in another order
EIGHT_BITS = 0.03  # of numbers of one byte, to the largest


def clusters(count: int, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    centres = np.random.default_rng(99).standard_normal((LISTS, NUM_DIMS)).astype(np.float32)
    return centres[random.integers(0, LISTS, count)] + 0.3 * random.standard_normal(
        (count, NUM_DIMS)
    ).astype(np.float32)


ROWS, QUERIES = clusters(NUM_ROWS), clusters(9, seed=1)
TEXTS = np.array([f"row {row}" for row in range(2 * NUM_ROWS)])


def write(path: Path, rows: np.ndarray = ROWS, dtype: str = "float32") -> GradientStore:
    fill(StoreWriter(path, {"data": "a"}, num_rows=len(rows), dtype=dtype), rows, 0)
    return GradientStore.open(path)


def add(path: Path, rows: np.ndarray) -> GradientStore:
    first = len(GradientStore.open(path))
    fill(StoreWriter.extend(path, {"data": str(first)}, num_rows=len(rows)), rows, first)
    return GradientStore.open(path)


def fill(writer: StoreWriter, rows: np.ndarray, first: int) -> None:
    for shard, start in enumerate(range(0, len(rows), SHARD)):
        some = rows[start : start + SHARD]
        ids = TEXTS[first + start : first + start + len(some)]
        writer.write(shard, Table(ids, {"sketch": some}))


def check_exact(index: DiskIndex, store: GradientStore, tolerance: float = SINGLE) -> None:
    """With all lists looked into, hits are those of exact search."""
    found = index.with_lists_searched(LISTS).search_both(QUERIES, 7)
    for one, other in zip(found, SearchIndex(store).search_both(QUERIES, 7), strict=True):
        if tolerance == SINGLE:
            np.testing.assert_array_equal(one.positions, other.positions)
            np.testing.assert_array_equal(one.ids, other.ids)
        np.testing.assert_allclose(
            one.scores, other.scores, rtol=tolerance, atol=tolerance * np.abs(other.scores).max()
        )


@pytest.mark.parametrize("dtype", ["float32", "int8"])
@pytest.mark.parametrize("rows_per_part", [1, 2 * SHARD, None])
def test_all_lists_of_all_parts_are_exact_search(
    tmp_path: Path, dtype: str, rows_per_part: int | None
) -> None:
    store = write(tmp_path, dtype=dtype)
    index = build_disk_index(store, "IVF8,Flat", seed=0, rows_per_part=rows_per_part)
    assert len(index.parts) == (6 if rows_per_part == 1 else 3 if rows_per_part else 1)
    check_exact(index, store)


@pytest.mark.parametrize(
    "factory", ["IVF8,SQ8", "IVF8,SQ8_direct_signed", "IVF8_HNSW4,SQ8", "IVF8,RaBitQ", "IVF8,PQ4"]
)
def test_neither_parts_nor_mergers_change_what_is_found(tmp_path: Path, factory: str) -> None:
    store = write(tmp_path, dtype="int8")
    whole = build_disk_index(store, factory, seed=0, path=tmp_path / "whole")
    parts = build_disk_index(store, factory, seed=0, path=tmp_path / "parts", rows_per_part=1)
    expected = whole.with_lists_searched(3).search(QUERIES, 20)
    two = merge_parts(parts, into=2)
    one = merge_parts(two)
    assert [len(index.parts) for index in (parts, two, one)] == [6, 2, 1]
    parts = build_disk_index(store, factory, seed=0, path=tmp_path / "again", rows_per_part=1)
    for index in (parts, two if two.path != one.path else one, one):
        found = index.with_lists_searched(3).search(QUERIES, 20)
        np.testing.assert_array_equal(found.positions, expected.positions)
        np.testing.assert_array_equal(found.scores, expected.scores)
    if "SQ8" in factory:
        check_exact(one, store, EIGHT_BITS)
    reranked = Reranked(one.with_lists_searched(LISTS), store, NUM_ROWS).search(QUERIES, 7)
    exact = SearchIndex(store).search(QUERIES, 7)
    np.testing.assert_array_equal(reranked.positions, exact.positions)


@pytest.mark.parametrize("width", [16, 64])
def test_whole_numbers_of_one_byte_in_one_unit_are_kept_as_they_are(
    tmp_path: Path, width: int
) -> None:
    random = np.random.default_rng(0)
    numbers = random.integers(-127, 128, (NUM_ROWS, width)).astype(np.float32)
    numbers[:, 0] = 127  # so that the rows have one scale
    store = write(tmp_path, numbers / 2, "int8")
    index = build_disk_index(store, "IVF8,SQ8_direct_signed", seed=0, rows_per_part=1)
    assert index.note["unit"] == 0.5
    found = index.with_lists_searched(LISTS).search(numbers[:5] / 4, 7)
    exact = SearchIndex(store).search(numbers[:5] / 4, 7)
    np.testing.assert_array_equal(found.positions, exact.positions)
    np.testing.assert_allclose(found.scores, exact.scores, rtol=SINGLE)
    queries = random.standard_normal((5, width)).astype(np.float32)
    found = index.with_lists_searched(LISTS).search(queries, NUM_ROWS)
    true = np.take_along_axis(queries @ numbers.T / 2, found.positions, 1)
    assert np.abs(found.scores - true).max() < EIGHT_BITS * np.abs(true).max()


def test_rows_that_are_added_are_built_beside_what_is_there(tmp_path: Path) -> None:
    store = write(tmp_path)
    before = build_disk_index(store, "IVF8,Flat", seed=0, rows_per_part=2 * SHARD)
    kept = {file: file.stat().st_mtime_ns for file in before.path.rglob("*.index")}
    store = add(tmp_path, clusters(150, seed=2))
    with pytest.raises(StoreMismatchError, match=r"150 of the store's 750 rows are in none\. Run"):
        DiskIndex.open(before.path, store)
    after = build_disk_index(store, "IVF8,Flat", seed=0, rows_per_part=2 * SHARD)
    assert len(after.parts) == len(before.parts) + 1
    assert kept.items() <= {f: f.stat().st_mtime_ns for f in before.path.rglob("*.index")}.items()
    check_exact(after, store)
    check_exact(merge_parts(after, into=2), store)


def test_deleted_rows_are_passed_over_and_compacted_shards_built_again(tmp_path: Path) -> None:
    store = write(tmp_path)
    index = build_disk_index(store, "IVF8,Flat", seed=0, rows_per_part=1)
    gone = sorted(set(SearchIndex(store).search(QUERIES, 3).ids.ravel().tolist()))
    store = delete_rows(tmp_path, gone)
    check_exact(DiskIndex.open(index.path, store), store)
    touched = {TEXTS.tolist().index(one) // SHARD for one in gone}
    store = compact_store(tmp_path)
    with pytest.raises(StoreMismatchError, match=rf"{len(touched)} of its 6 parts are of other"):
        DiskIndex.open(index.path, store)
    after = faiss_beside(store, "IVF8,Flat")
    assert isinstance(after, DiskIndex)
    check_exact(after, store)
    check_exact(merge_parts(after), store)


def test_a_build_that_was_stopped_goes_on_with_what_is_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = write(tmp_path)
    real, written = index_building.write_part, []

    def stop_at_the_third(folder: Path, number: int, *rest: Any) -> Any:
        if number == 2:
            (folder / "part-000002").mkdir()
            (folder / "part-000002" / "lists.index").write_bytes(b"half")
            raise KeyboardInterrupt
        written.append(number)
        return real(folder, number, *rest)

    monkeypatch.setattr(index_building, "write_part", stop_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        build_disk_index(store, "IVF8,Flat", seed=0, rows_per_part=1)
    monkeypatch.setattr(
        index_building, "write_part", lambda *all_: (written.append(all_[1]), real(*all_))[1]
    )
    check_exact(build_disk_index(store, "IVF8,Flat", seed=0, rows_per_part=1), store)
    assert written == [0, 1, 2, 3, 4, 5]


def test_a_merger_that_was_stopped_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = write(tmp_path)
    index = build_disk_index(store, "IVF8,Flat", seed=0, rows_per_part=1)
    real = index_building.merge_files

    def stop_at_the_end(folder: Path, number: int, parts: Any) -> Any:
        merged = real(folder, number, parts)
        if number == 7:
            raise KeyboardInterrupt
        return merged

    monkeypatch.setattr(index_building, "merge_files", stop_at_the_end)
    with pytest.raises(KeyboardInterrupt):
        merge_parts(index, into=2)
    halfway = DiskIndex.open(index.path, store)
    assert len(halfway.parts) == 4
    check_exact(halfway, store)
    monkeypatch.setattr(index_building, "merge_files", real)
    merged = merge_parts(halfway, into=2)
    assert len(merged.parts) == 2
    assert len(list(index.path.glob("part-*"))) == 2
    check_exact(merged, store)


def test_an_index_that_was_merged_after_it_was_opened_says_so(tmp_path: Path) -> None:
    store = write(tmp_path)
    index = build_disk_index(store, "IVF8,Flat", seed=0, rows_per_part=1)
    merge_parts(index)
    with pytest.raises(StoreMismatchError, match=r"lists.index must be there\. Parts were merged"):
        index.search(QUERIES, 3)


def test_damage_is_named(tmp_path: Path) -> None:
    store = write(tmp_path)
    index = merge_parts(build_disk_index(store, "IVF8,Flat", seed=0, rows_per_part=1), into=2)
    index.verify()
    file = index.path / index.parts[1].folder / "lists.ivfdata"
    content = bytearray(file.read_bytes())
    content[5] ^= 1
    file.write_bytes(content)
    with pytest.raises(StoreMismatchError, match=r"Damaged or missing: part-00000\d/lists.ivfdata"):
        index.verify()


def test_what_does_not_belong_together_is_refused(tmp_path: Path) -> None:
    store = write(tmp_path / "a")
    index = build_disk_index(store, "IVF8,Flat", seed=0, path=tmp_path / "i")
    with pytest.raises(StoreMismatchError, match=r"differs in: seed: 1 against 0"):
        build_disk_index(store, "IVF8,Flat", seed=1, path=tmp_path / "i")
    other = write(tmp_path / "b", clusters(NUM_ROWS, seed=5))
    with pytest.raises(StoreMismatchError, match=r"6|1 of its 1 parts are of other rows"):
        DiskIndex.open(index.path, other)
    with pytest.raises(StoreMismatchError, match=r"must be an index made by `build_disk_index`"):
        DiskIndex.open(tmp_path / "nothing", store)


@pytest.mark.parametrize("factory", ["Flat", "HNSW8", "OPQ4,IVF8,PQ4", "IVF8,PQ4x4fs"])
def test_indexes_without_plain_lists_are_refused(tmp_path: Path, factory: str) -> None:
    with pytest.raises(ValueError, match=rf"must begin with 'IVF'.*Got '{factory}'\. `FaissIndex"):
        build_disk_index(write(tmp_path), factory, seed=0)


def test_wrong_arguments_are_refused_before_anything_is_built(tmp_path: Path) -> None:
    store = write(tmp_path)
    with pytest.raises(ValueError, match=r"must be a FAISS factory string.*'IVF8,Flatt'"):
        build_disk_index(store, "IVF8,Flatt", seed=0)
    with pytest.raises(ValueError, match=r"trained on at least 1024; there are 600"):
        build_disk_index(store, "IVF1024,Flat", seed=0)
    with pytest.raises(ValueError, match=r"must name 'SQ8_direct_signed'.*Got 'IVF8,SQ8_direct'"):
        build_disk_index(store, "IVF8,SQ8_direct", seed=0)
    with pytest.raises(ValueError, match=r"`rows_per_part` must be at least 1\. Got 0"):
        build_disk_index(store, "IVF8,Flat", seed=0, rows_per_part=0)
    index = build_disk_index(store, "IVF8,Flat", seed=0)
    with pytest.raises(ValueError, match=r"`k` must be in \[1, 600\]"):
        index.search(QUERIES, 601)
    with pytest.raises(ValueError, match=r"matrix with 16 columns"):
        index.search(QUERIES[:, :3], 1)
    with pytest.raises(ValueError, match=r"`num_lists` must be at least 1"):
        index.with_lists_searched(0)
    with pytest.raises(ValueError, match=r"`into` must be at least 1"):
        merge_parts(index, into=0)


def test_a_merger_without_room_is_refused_and_nothing_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = write(tmp_path)
    index = build_disk_index(store, "IVF8,Flat", seed=0, rows_per_part=1)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(OSError, match=r"merging into 1 needs .* There are 1,000\. Free some, or"):
        merge_parts(index)
    assert len(DiskIndex.open(index.path, store).parts) == 6


def test_rows_that_lists_do_not_hold_have_no_id(tmp_path: Path) -> None:
    store = write(tmp_path)
    index = build_disk_index(store, "IVF8,Flat", seed=0, rows_per_part=1).with_lists_searched(1)
    found = index.search(QUERIES[:1], NUM_ROWS)
    none = found.positions[0] == -1
    assert 0 < none.sum() < NUM_ROWS
    assert set(found.ids[0, none]) == {""} and np.isneginf(found.scores[0, none]).all()


def test_lists_are_mapped_and_not_read(tmp_path: Path) -> None:
    if not Path("/proc/self/status").exists():
        pytest.skip("needs /proc")
    random = np.random.default_rng(0).standard_normal((40_000, 256)).astype(np.float32)
    writer = StoreWriter(tmp_path, {}, num_rows=len(random))
    writer.write(0, Table(np.arange(len(random)), {"sketch": random}))
    index = build_disk_index(GradientStore.open(tmp_path), "IVF4,Flat", seed=0)
    before = held()
    DiskIndex.open(index.path, index.store).with_lists_searched(4).search(random[:1], 5)
    assert held() - before < random.nbytes / 4 / 1024
    assert "faiss" in sys.modules


def held() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("RssAnon:"))
