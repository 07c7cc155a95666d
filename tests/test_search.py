"""Search finds what brute force finds, ties and blocks and all."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import best

from projections import (
    FaissIndex,
    GradientStore,
    NonFiniteError,
    Reranked,
    SearchIndex,
    StoreMismatchError,
    StoreWriter,
    Table,
    TopK,
    compact_store,
    delete_rows,
    faiss_beside,
    search,
)

SINGLE = 1e-5  # float32 sums in another order
RECALL = 0.9  # of ten neighbours, on clusters that are easy to tell apart


def random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def whole(*shape: int, seed: int = 0) -> np.ndarray:
    """Small whole numbers, whose products tie often and are exact."""
    return np.random.default_rng(seed).integers(-1, 2, size=shape).astype(np.float32)


@settings(max_examples=60, deadline=None)
@given(
    num_rows=st.integers(1, 40),
    num_queries=st.integers(1, 4),
    share=st.floats(0, 1),
    block=st.integers(1, 50),
    seed=st.integers(0, 1000),
)
def test_search_equals_brute_force_with_ties(
    num_rows: int, num_queries: int, share: float, block: int, seed: int
) -> None:
    rows, queries = whole(num_rows, 3, seed=seed), whole(num_queries, 3, seed=seed + 1)
    k = max(1, round(share * num_rows))
    scores = queries @ rows.T
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search, "BLOCK_BYTES", 4 * num_queries * block)
        top, bottom = SearchIndex(rows).search_both(queries, k)
    np.testing.assert_array_equal(top.positions, best(scores, k))
    np.testing.assert_array_equal(bottom.positions, best(-scores, k))
    np.testing.assert_array_equal(top.scores, np.take_along_axis(scores, top.positions, 1))
    np.testing.assert_array_equal(bottom.scores, np.take_along_axis(scores, bottom.positions, 1))


def test_all_rows_are_a_ranking() -> None:
    rows, queries = random(20, 4), random(3, 4, seed=1)
    top, bottom = SearchIndex(rows).search_both(queries, 20)
    np.testing.assert_array_equal(top.positions, bottom.positions[:, ::-1])


def test_rows_of_zeros_score_zero_and_keep_their_order() -> None:
    rows = np.zeros((5, 3), np.float32)
    top, bottom = SearchIndex(rows).search_both(random(2, 3), 3)
    assert top.positions.tolist() == bottom.positions.tolist() == [[0, 1, 2]] * 2
    assert not top.scores.any()


def test_no_query_has_no_neighbours() -> None:
    top = SearchIndex(random(5, 3)).search(np.zeros((0, 3), np.float32), 2)
    assert top.ids.shape == top.scores.shape == (0, 2)


@pytest.mark.parametrize("k", [0, 6, -1])
def test_more_neighbours_than_rows_are_refused(k: int) -> None:
    with pytest.raises(
        ValueError, match=rf"`k` must be in \[1, 5\] \(the number of rows\)\. Got {k}"
    ):
        SearchIndex(random(5, 3)).search(random(1, 3), k)


def test_queries_of_another_width_are_refused() -> None:
    with pytest.raises(ValueError, match=r"a matrix with 3 columns.*Got shape \(1, 4\)"):
        SearchIndex(random(5, 3)).search(random(1, 4), 1)


def test_a_query_that_is_not_finite_is_named() -> None:
    queries = random(3, 3)
    queries[1, 0] = np.nan
    with pytest.raises(NonFiniteError, match=r"queries must be finite\. Those at \[1\] are not"):
        SearchIndex(random(5, 3)).search(queries, 1)


def test_scales_multiply_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, queries = random(30, 4), random(3, 4, seed=1)
    scales = 1 / np.linalg.norm(rows, axis=1)
    monkeypatch.setattr(search, "BLOCK_BYTES", 4 * 3 * 7)
    found = SearchIndex(rows, scales=scales).search(queries, 5)
    expected = (queries @ rows.T) * scales
    np.testing.assert_array_equal(found.positions, best(expected, 5))
    np.testing.assert_allclose(found.scores, -np.sort(-expected, 1)[:, :5], rtol=SINGLE)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_store_is_searched_across_its_shards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str
) -> None:
    rows, queries = whole(20, 4), whole(3, 4, seed=1)
    ids = np.array([f"row {row}" for row in range(20)])
    writer = StoreWriter(tmp_path, {}, num_rows=20, dtype=dtype)
    for shard, part in enumerate([slice(7), slice(7, 9), slice(9, 20)]):
        writer.write(shard, Table(ids[part], {"sketch": rows[part]}))
    monkeypatch.setattr(search, "BLOCK_BYTES", 4 * 3 * 4)
    index = SearchIndex(GradientStore.open(tmp_path))
    found = index.search(queries, 6)
    expected = best(queries @ rows.T, 6)
    np.testing.assert_array_equal(found.positions, expected)
    np.testing.assert_array_equal(found.ids, ids[expected])
    assert (len(index), index.num_dims) == (20, 4)


# FAISS.


def clusters(num: int, *, seed: int = 0) -> np.ndarray:
    """Points on a sphere around 16 centres."""
    centres, noise = random(16, 16, seed=99), random(num, 16, seed=seed)
    points = centres[np.arange(num) % 16] + 0.3 * noise
    return points / np.linalg.norm(points, axis=1, keepdims=True)


def test_a_flat_faiss_index_equals_exact_search() -> None:
    pytest.importorskip("faiss")
    rows, queries = random(100, 8), random(4, 8, seed=1)
    exact = SearchIndex(rows).search_both(queries, 7)
    found = FaissIndex.build(rows, "Flat", seed=0).search_both(queries, 7)
    for one, other in zip(found, exact, strict=True):
        np.testing.assert_array_equal(one.positions, other.positions)
        np.testing.assert_allclose(one.scores, other.scores, rtol=SINGLE, atol=SINGLE)


@pytest.mark.parametrize("factory", ["IVF16,Flat", "IVF16,SQ8", "HNSW16", "SQ8"])
def test_approximate_indices_find_most_neighbours_on_easy_data(factory: str) -> None:
    pytest.importorskip("faiss")
    rows, queries = clusters(2000), clusters(20, seed=1)
    index = FaissIndex.build(rows, factory, seed=0)
    if factory.startswith("IVF"):
        index.with_lists_searched(4)
    found = index.search(queries, 10).positions
    exact = SearchIndex(rows).search(queries, 10).positions
    recall = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(found, exact, strict=True)])
    assert recall >= RECALL


def test_a_faiss_index_is_the_same_for_the_same_seed() -> None:
    pytest.importorskip("faiss")
    rows, queries = clusters(1000), clusters(5, seed=1)
    found = [FaissIndex.build(rows, "IVF8,SQ8", seed=3).search(queries, 5) for _ in range(2)]
    np.testing.assert_array_equal(found[0].positions, found[1].positions)


@pytest.mark.parametrize("factory", ["Flat", "IVF4,Flat", "SQ8", "HNSW8", "PQ4", "RaBitQ"])
def test_a_saved_faiss_index_is_loaded(tmp_path: Path, factory: str) -> None:
    pytest.importorskip("faiss")
    rows, queries = clusters(500), clusters(3, seed=1)
    ids = np.array([f"row {row}" for row in range(500)])
    index = FaissIndex.build(rows, factory, seed=0, ids=ids)
    if factory.startswith("IVF"):
        index.with_lists_searched(3)
    index.save(tmp_path / "index.faiss")
    loaded = FaissIndex.load(tmp_path / "index.faiss")
    expected, found = index.search(queries, 5), loaded.search(queries, 5)
    np.testing.assert_array_equal(found.ids, expected.ids)
    np.testing.assert_array_equal(found.scores, expected.scores)
    assert len(loaded) == 500


@pytest.mark.parametrize("factory", ["Flat", "IVF4,Flat", "SQ8"])
def test_a_loaded_faiss_index_is_mapped_and_not_read(tmp_path: Path, factory: str) -> None:
    pytest.importorskip("faiss")
    FaissIndex.build(random(40_000, 256), factory, seed=0).save(tmp_path / "i")
    program = (
        "from projections import FaissIndex\n"
        "def held():\n"
        "    lines = open('/proc/self/status').read().splitlines()\n"
        "    return sum(int(l.split()[1]) for l in lines if l.startswith('RssAnon:'))\n"
        "import faiss\n"
        "before = held()\n"
        f"index = FaissIndex.load({str(tmp_path / 'i')!r})\n"
        "print(held() - before)\n"
    )
    if not Path("/proc/self/status").exists():
        pytest.skip("needs /proc")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    size = (tmp_path / "i").stat().st_size // 1024
    assert int(done.stdout) < size / 4, done.stderr


@pytest.mark.parametrize("factory", ["Flat", "IVF4,Flat", "HNSW16", "SQ8", "RaBitQ", "IVF4,PQ4"])
def test_a_faiss_index_passes_over_rows_that_are_deleted_later(
    tmp_path: Path, factory: str
) -> None:
    pytest.importorskip("faiss")
    rows, queries = clusters(600), clusters(5, seed=1)
    store = stored(tmp_path, rows)
    faiss_beside(store, factory)
    gone = SearchIndex(store).search(queries, 8).ids.ravel()
    store = delete_rows(tmp_path, sorted({int(row) for row in gone}))
    index = faiss_beside(store, factory)
    found = index.search(queries, 20)
    assert not np.isin(found.ids, gone).any()
    known = found.positions >= 0
    np.testing.assert_array_equal(store.ids[found.positions[known]], found.ids[known])
    assert len(index) == len(store)
    if factory == "Flat":
        exact = SearchIndex(store).search_both(queries, 20)
        for one, other in zip(index.search_both(queries, 20), exact, strict=True):
            np.testing.assert_array_equal(one.positions, other.positions)


def test_an_index_that_cannot_pass_over_deleted_rows_says_what_to_do(tmp_path: Path) -> None:
    pytest.importorskip("faiss")
    store = stored(tmp_path, clusters(600))
    faiss_beside(store, "PQ4")
    index = faiss_beside(delete_rows(tmp_path, [0]), "PQ4")
    with pytest.raises(ValueError, match=r"FAISS cannot with 'PQ4'\. Run `compact_store`"):
        index.search(clusters(2), 3)


def test_a_faiss_index_of_other_rows_is_refused_and_built_again_beside(tmp_path: Path) -> None:
    pytest.importorskip("faiss")
    store = stored(tmp_path / "s", random(300, 8))
    FaissIndex.build(store, "Flat", seed=0).save(tmp_path / "index")
    assert len(FaissIndex.load(tmp_path / "index", store=store)) == 300
    other = stored(tmp_path / "other", random(300, 8, seed=1))
    with pytest.raises(StoreMismatchError, match=r"index must have been built from the rows of"):
        FaissIndex.load(tmp_path / "index", store=other)
    with pytest.raises(StoreMismatchError, match=r"must be a FAISS index made by"):
        FaissIndex.load(tmp_path / "nothing")
    faiss_beside(store, "Flat")
    delete_rows(tmp_path / "s", [5])
    compacted = compact_store(tmp_path / "s")
    assert len(faiss_beside(compacted, "Flat")) == 299


def test_lists_are_for_indexes_with_lists() -> None:
    pytest.importorskip("faiss")
    with pytest.raises(ValueError, match=r"whose factory string has 'IVF'\. This is 'Flat'"):
        FaissIndex.build(random(10, 4), "Flat", seed=0).with_lists_searched(2)


# Re-ranking.


@pytest.mark.parametrize("factory", ["SQ4", "IVF4,PQ4", "RaBitQ"])
def test_enough_candidates_scored_again_are_exact_search(tmp_path: Path, factory: str) -> None:
    pytest.importorskip("faiss")
    rows, queries = clusters(500), clusters(4, seed=1)
    store = stored(tmp_path, rows)
    index = FaissIndex.build(store, factory, seed=0)
    if factory.startswith("IVF"):
        index.with_lists_searched(4)
    exact = SearchIndex(store).search_both(queries, 10)
    for one, other in zip(Reranked(index, store, 500).search_both(queries, 10), exact, strict=True):
        np.testing.assert_array_equal(one.positions, other.positions)
        np.testing.assert_allclose(one.scores, other.scores, rtol=SINGLE, atol=SINGLE)
    coarse = index.search(queries, 10).positions
    better = Reranked(index, store, 60).search(queries, 10).positions
    assert shared(better, exact[0].positions) >= shared(coarse, exact[0].positions)


def test_candidates_are_ordered_with_the_scales_of_rows(tmp_path: Path) -> None:
    rows, queries = random(50, 4), random(3, 4, seed=1)
    store, scales = stored(tmp_path, rows), 1 / np.linalg.norm(rows, axis=1)
    found = Reranked(SearchIndex(store), store, 50, scales).search_both(queries, 5)
    exact = SearchIndex(store, scales=scales).search_both(queries, 5)
    for one, other in zip(found, exact, strict=True):
        np.testing.assert_array_equal(one.positions, other.positions)


def test_rows_that_were_not_found_come_last(tmp_path: Path) -> None:
    store = stored(tmp_path, random(5, 4))
    few = FewFound(np.array([[3, -1, 1]]))
    found = Reranked(few, store, 3).search(random(1, 4), 3)
    assert sorted(found.ids[0, :2].tolist()) == [1, 3]
    assert (found.ids[0, 2], found.positions[0, 2], np.isnan(found.scores[0, 2])) == (-1, -1, True)


@pytest.mark.parametrize("number", [2, 6])
def test_the_number_of_candidates_is_from_k_to_the_rows(tmp_path: Path, number: int) -> None:
    store = stored(tmp_path, random(5, 4))
    with pytest.raises(ValueError, match=rf"`num_candidates` must be in \[3, 5\].*Got {number}"):
        Reranked(SearchIndex(store), store, number).search(random(1, 4), 3)


class FewFound:
    """An index that finds the same few rows whatever is asked."""

    def __init__(self, positions: np.ndarray) -> None:
        self.positions = positions

    def __len__(self) -> int:
        return 5

    def search(self, queries: np.ndarray, k: int) -> TopK:
        return TopK(self.positions, np.zeros(self.positions.shape, np.float32), self.positions)

    def search_both(self, queries: np.ndarray, k: int) -> tuple[TopK, TopK]:
        return self.search(queries, k), self.search(queries, k)


def shared(found: np.ndarray, expected: np.ndarray) -> int:
    return sum(len(set(a) & set(b)) for a, b in zip(found, expected, strict=True))


def stored(path: Path, rows: np.ndarray) -> GradientStore:
    StoreWriter(path, {}, num_rows=len(rows)).write(
        0, Table(np.arange(len(rows)), {"sketch": rows})
    )
    return GradientStore.open(path)


def test_a_faiss_index_reads_a_store(tmp_path: Path) -> None:
    pytest.importorskip("faiss")
    rows, ids = clusters(300), np.arange(300) * 2
    StoreWriter(tmp_path, {}, num_rows=300).write(0, Table(ids, {"sketch": rows}))
    index = FaissIndex.build(GradientStore.open(tmp_path), "IVF4,Flat", seed=0)
    assert index.search(rows[:5], 1).ids.ravel().tolist() == [0, 2, 4, 6, 8]


def test_a_factory_string_that_faiss_does_not_know_is_refused() -> None:
    pytest.importorskip("faiss")
    with pytest.raises(ValueError, match=r"`factory` must be a FAISS factory string.*'Flatt'"):
        FaissIndex.build(random(10, 4), "Flatt", seed=0)
    with pytest.raises(
        ValueError, match=r"at least 256; there are 10\. Use fewer lists, or 'Flat'"
    ):
        FaissIndex.build(random(10, 4), "IVF256,Flat", seed=0)


def test_without_faiss_the_message_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    modules: dict[str, Any] = sys.modules
    monkeypatch.setitem(modules, "faiss", None)
    with pytest.raises(ImportError, match=r"'faiss', which is not installed.*gradsift\[cpu\]"):
        FaissIndex.build(random(10, 4), "Flat", seed=0)


def test_whole_numbers_of_rows_that_are_none_are_refused() -> None:
    rows = np.random.default_rng(0).standard_normal((300, 32)).astype(np.float32)
    with pytest.raises(ValueError, match=r"whole numbers.*'SQ8_direct_signed'.*build_disk_index"):
        FaissIndex.build(rows, "SQ8_direct_signed", seed=0)
