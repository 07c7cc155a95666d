"""Facility location, k-centre and semantic deduplication, against slow versions of themselves."""

from itertools import combinations
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from projections import DataError, Embeddings, GradientStore, NonFiniteError, StoreWriter, Table
from selection import FacilityLocation, KCenter, KMeans, NeighbourGraph, SemanticDedup
from selection.coverage.neighbours import TICKS

METHODS = {
    "facility": FacilityLocation(graph=NeighbourGraph(num_neighbours=8, seed=0)),
    "facility, euclidean": FacilityLocation(
        graph=NeighbourGraph(num_neighbours=8, similarity="euclidean", seed=0)
    ),
    "k-centre": KCenter(),
    "k-centre, cosine": KCenter(similarity="cosine"),
}


def points(seed: int, count: int, dims: int = 5) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, dims)).astype(np.float32)


def all_similarities(rows: np.ndarray, name: str) -> np.ndarray:
    """Every pair, in ticks; obviously correct, slow."""
    rows = rows.astype(np.float64)
    if name == "cosine":
        rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        values = np.maximum(rows @ rows.T, 0)
    else:
        squares = ((rows[:, None] - rows[None]) ** 2).sum(-1)
        values = 1 - squares / squares.max()
    np.fill_diagonal(values, 1)
    return values


@pytest.mark.parametrize("name", ["cosine", "euclidean"])
def test_lazy_greedy_on_a_complete_graph_is_naive_greedy_over_all_pairs(name: Any) -> None:
    rows = points(0, 60)
    values = all_similarities(rows, name)
    graph = NeighbourGraph(num_neighbours=59, similarity=name, seed=0)
    chosen = FacilityLocation(graph=graph).select(rows, num_selected=30)
    best = np.zeros(60)
    for pick in chosen.ids.tolist():
        gains = np.maximum(values - best, 0).sum(axis=1)
        assert gains[pick] >= gains.max() - 1e-4  # similarities of FAISS are float32
        best = np.maximum(best, values[pick])
    assert chosen.provenance["value"] == pytest.approx(best.sum(), abs=1e-4)


@given(seed=st.integers(0, 10**6), neighbours=st.integers(1, 9))
@settings(max_examples=15, deadline=None)
def test_lazy_greedy_picks_what_trying_every_row_picks(seed: int, neighbours: int) -> None:
    rows = np.round(points(seed, 40, 3))  # rounded, so that there are ties
    graph = NeighbourGraph(num_neighbours=neighbours, seed=0)
    values = graph.build(Embeddings(rows)).toarray().astype(np.int64)
    assert (values == values.T).all()
    assert (values.diagonal() == TICKS).all()
    best, picks = np.zeros(40, np.int64), []
    for _ in range(40):
        gains = np.maximum(values - best, 0).sum(axis=1)
        gains[picks] = -1
        picks.append(int(gains.argmax()))
        best = np.maximum(best, values[picks[-1]])
    assert FacilityLocation(graph=graph).select(rows).ids.tolist() == picks


def test_greedy_reaches_its_share_of_the_best_subset() -> None:
    for seed in range(5):
        rows = points(seed, 10)
        graph = NeighbourGraph(num_neighbours=3, seed=0)
        values = graph.build(Embeddings(rows)).toarray() / TICKS
        best = max(values[list(some)].max(0).sum() for some in combinations(range(10), 3))
        chosen = FacilityLocation(graph=graph).select(rows, num_selected=3)
        assert (1 - 1 / np.e) * best <= chosen.provenance["value"] <= best + 1e-6


def test_farthest_first_leaves_at_most_twice_the_smallest_radius() -> None:
    for seed in range(5):
        rows = points(seed, 10)
        far = np.sqrt(((rows[:, None] - rows[None]) ** 2).sum(-1))
        best = min(far[list(some)].min(0).max() for some in combinations(range(10), 3))
        chosen = KCenter().select(rows, num_selected=3)
        radius = far[chosen.ids].min(0).max()
        assert chosen.provenance["radius"] == pytest.approx(radius, rel=1e-5)
        assert radius <= 2 * best


def test_farthest_first_picks_what_a_matrix_of_all_distances_says() -> None:
    rows = points(3, 50).astype(np.float64)
    far = np.sqrt(((rows[:, None] - rows[None]) ** 2).sum(-1))
    picks = [int(((rows - rows.mean(0)) ** 2).sum(1).argmin())]
    while len(picks) < 50:
        left = far[picks].min(0)
        left[picks] = -1
        picks.append(int(left.argmax()))
    assert KCenter().select(rows).ids.tolist() == picks


@pytest.mark.parametrize("method", METHODS.values(), ids=list(METHODS))
class TestEverySelector:
    """What holds for each of them."""

    def test_weights_count_the_rows_that_each_stands_for(self, method: Any) -> None:
        chosen = method.select(points(0, 80), num_selected=12)
        assert len(chosen) == len(set(chosen.ids.tolist())) == 12
        assert (chosen.weights >= 1).all()
        unreached = sum("no chosen row" in reason for reason in chosen.rejected.values())
        assert chosen.weights.sum() == 80 - unreached

    def test_every_count_is_respected(self, method: Any) -> None:
        rows = points(0, 30)
        everything = method.select(rows)
        assert sorted(everything.ids.tolist()) == list(range(30))
        assert method.select(rows, num_selected=1000).ids.tolist() == everything.ids.tolist()
        assert method.select(rows, num_selected=7).ids.tolist() == everything.ids[:7].tolist()
        nothing = method.select(rows, num_selected=0)
        assert len(nothing) == 0
        assert len(nothing.rejected) == 30
        assert everything.rejected == {}

    def test_the_order_of_the_rows_does_not_matter(self, method: Any) -> None:
        rows, ids = points(0, 60), np.array([f"r{number:02d}" for number in range(60)])
        rows[10] = rows[20] = rows[30]  # ties
        scrambled = np.random.default_rng(1).permutation(60)
        first = method.select(Embeddings(rows, ids), num_selected=25)
        again = method.select(Embeddings(rows[scrambled], ids[scrambled]), num_selected=25)
        assert first.ids.tolist() == again.ids.tolist()
        assert first.weights.tolist() == again.weights.tolist()
        assert first.rejected == again.rejected

    def test_tokens_are_counted_up_to_the_first_row_that_does_not_fit(self, method: Any) -> None:
        rows, tokens = points(0, 30), 1 + np.arange(30) % 7
        chosen = method.select(rows, num_tokens=40, tokens=tokens)
        ranking = method.select(rows).ids
        assert chosen.ids.tolist() == ranking[: len(chosen)].tolist()
        spent = tokens[chosen.ids].sum()
        assert spent <= 40 < spent + tokens[ranking[len(chosen)]]
        unreached = sum("no chosen row" in reason for reason in chosen.rejected.values())
        assert chosen.weights.sum() == 30 - unreached

    def test_rows_that_may_not_be_chosen_are_represented_all_the_same(self, method: Any) -> None:
        rows, marks = points(0, 30), np.arange(30) % 3 == 0
        chosen = method.select(rows, num_selected=30, eligible=marks)
        assert sorted(chosen.ids.tolist()) == np.flatnonzero(marks).tolist()
        assert set(chosen.rejected.values()) == {"not eligible"}
        assert chosen.weights.sum() > 10
        nothing = method.select(rows, eligible=np.zeros(30, dtype=bool))
        assert len(nothing) == 0
        assert nothing.rejected == dict.fromkeys(range(30), "not eligible")
        with pytest.raises(DataError, match="one mark a row, 30"):
            method.select(rows, eligible=np.ones(3, dtype=bool))

    def test_odd_rows_are_no_trouble(self, method: Any) -> None:
        equal = np.ones((6, 3), np.float32)
        assert method.select(equal).ids.tolist() == list(range(6))
        zeros = np.zeros((4, 3), np.float32)
        assert sorted(method.select(zeros).ids.tolist()) == list(range(4))
        assert method.select(points(0, 1)).ids.tolist() == [0]
        assert len(method.select(points(0, 0))) == 0

    def test_bad_numbers_are_refused_with_their_ids(self, method: Any) -> None:
        rows = points(0, 9)
        rows[4, 1] = np.inf
        with pytest.raises(NonFiniteError, match=r"ids \[4\]"):
            method.select(rows, num_selected=2)

    def test_a_store_is_as_good_as_an_array(self, method: Any, tmp_path: Any) -> None:
        rows = points(0, 20)
        writer = StoreWriter(tmp_path / "store", {"made": "here"}, num_rows=20)
        writer.write(0, Table(np.arange(100, 120), {"sketch": rows}))
        chosen = method.select(GradientStore.open(tmp_path / "store"), num_selected=5)
        assert (chosen.ids - 100).tolist() == method.select(rows, num_selected=5).ids.tolist()
        assert chosen.provenance["store"]["made"] == "here"


def test_a_row_is_rejected_with_the_row_that_represents_it() -> None:
    rows = np.array([[1.0, 0.1], [1, 0], [0, 1]])
    chosen = METHODS["facility"].select(rows, num_selected=2)
    assert chosen.rejected == {1: "represented by 0 (similarity 0.995)"}
    chosen = METHODS["k-centre"].select(rows, num_selected=2)
    assert chosen.rejected == {1: "nearest to 0 (distance 0.1)"}


def test_neighbours_of_many_rows_are_found_by_an_inverted_file(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("selection.coverage.neighbours.MOST_EXACT_GRAPH", 100)
    rows = Embeddings(points(0, 2000, 8))
    exact = NeighbourGraph(num_neighbours=10, num_probes=10**6, seed=0).build(rows)
    few = NeighbourGraph(num_neighbours=10, num_probes=16, seed=0)
    found = few.build(rows)
    assert found.multiply(exact > 0).nnz / exact.nnz > 0.8
    assert (found.toarray() == few.build(rows).toarray()).all()


def first_kept(rows: np.ndarray, order: list[int], threshold: float) -> set[int]:
    """Look at rows one by one; obviously correct, slow."""
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    kept: list[int] = []
    for row in order:
        if all(unit[row] @ unit[other] <= threshold for other in kept):
            kept.append(row)
    return set(kept)


def near_copies(seed: int, count: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    rows = random.standard_normal((count // 3, 6)).repeat(3, axis=0)
    return (rows + 0.1 * random.standard_normal(rows.shape)).astype(np.float32)


def test_deduplication_keeps_what_looking_at_rows_one_by_one_keeps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows = near_copies(0, 90)
    wanted = first_kept(rows.astype(np.float64), list(range(90)), 0.95)
    for block in (7, 16, 2048):
        monkeypatch.setattr("selection.coverage.dedup.BLOCK", block)
        dedup = SemanticDedup(num_clusters=1, keep="first", seed=0)
        chosen = dedup.select(rows)
        assert set(chosen.ids.tolist()) == wanted
        assert chosen.weights.sum() == 90


def test_rows_are_only_compared_within_their_cluster_in_the_order_of_the_rule() -> None:
    rows = near_copies(1, 120)
    unit = Embeddings(rows).normalized()
    clusters = KMeans(num_clusters=5, spherical=True, seed=3).fit(unit)
    rules: list[tuple[Any, int]] = [("far", -1), ("near", 1)]
    for keep, sign in rules:
        chosen = SemanticDedup(num_clusters=5, keep=keep, seed=3).select(rows)
        wanted = set()
        for cluster in range(len(clusters)):
            members = clusters.members(cluster)
            order = members[np.argsort(sign * clusters.distances[members], kind="stable")]
            wanted |= first_kept(rows.astype(np.float64), order.tolist(), 0.95)
        assert set(chosen.ids.tolist()) == wanted


def test_every_dropped_row_names_a_kept_one_that_is_near() -> None:
    rows = near_copies(2, 90)
    chosen = SemanticDedup(seed=0).select(rows)
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    kept = set(chosen.ids.tolist())
    assert chosen.rejected
    for row, reason in chosen.rejected.items():
        owner = int(reason.split()[3].rstrip(","))
        assert owner in kept
        assert unit[row] @ unit[owner] > 0.95 - 1e-6


def test_deduplication_does_not_depend_on_the_order_of_rows() -> None:
    rows, scrambled = near_copies(0, 90), np.random.default_rng(1).permutation(90)
    dedup = SemanticDedup(num_clusters=4, seed=0)
    first = dedup.select(Embeddings(rows, np.arange(90)))
    again = dedup.select(Embeddings(rows[scrambled], scrambled))
    assert first.ids.tolist() == again.ids.tolist()
    assert first.rejected == again.rejected


def test_deduplication_of_odd_rows() -> None:
    dedup = SemanticDedup(seed=0, keep="first")
    assert dedup.select(np.ones((5, 3))).ids.tolist() == [0]
    assert dedup.select(np.ones((5, 3))).weights.tolist() == [5]
    assert dedup.select(np.zeros((5, 3))).ids.tolist() == list(range(5))  # no direction, no copy
    assert len(dedup.select(np.zeros((0, 3)))) == 0
    marks = np.array([False, True, True, False, True])
    chosen = dedup.select(np.ones((5, 3)), eligible=marks)
    assert chosen.ids.tolist() == [1]
    assert chosen.rejected[0] == "not eligible"
    assert len(dedup.select(np.ones((5, 3)), eligible=np.zeros(5, dtype=bool))) == 0
    many = SemanticDedup(num_clusters=1000, seed=0).select(near_copies(0, 30))
    assert 0 < len(many) <= 30


def test_wrong_settings_are_refused() -> None:
    for call, message in [
        (lambda: SemanticDedup(threshold=2, seed=0), "`threshold` must be in"),
        (lambda: SemanticDedup(num_clusters=0, seed=0), "`num_clusters` must be at least 1"),
        (lambda: NeighbourGraph(num_neighbours=0, seed=0), "`num_neighbours` must be at least 1"),
        (lambda: NeighbourGraph(num_probes=0, seed=0), "`num_probes` must be at least 1"),
        (lambda: KMeans(num_clusters=0, seed=0), "`num_clusters` must be at least 1"),
        (lambda: KMeans(num_clusters=2, seed=0).fit(Embeddings(np.zeros((0, 2)))), "at least one"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()
