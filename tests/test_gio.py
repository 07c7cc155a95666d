"""GIO: what each estimate is, what the greedy loop picks, when it stops, and what is refused."""

from collections.abc import Callable
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from projections import DataError, Embeddings, NonFiniteError
from selection import (
    GIO,
    DataShare,
    Increase,
    MinDifference,
    MinDivergence,
    RandomStart,
    Restarts,
    Selection,
    SequentialIncreases,
    UniformStart,
)
from selection.gio.divergence import TICKS, Targets, log_distances
from selection.gio.estimates import (
    Estimate,
    NearestDiscardedEstimate,
    NeighbourEstimate,
    PublishedEstimate,
)

TOLERANCE = 1e-5  # of divergences: logarithms are rounded to 2**-26, and multiplied by d
ESTIMATES = ("published", "nearest-discarded", "coverage", "knn")
EVERYTHING = DataShare(1.0)


def points(seed: int, count: int, dims: int = 4) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, dims))


def distances(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Distances one by one, cut and shifted as published; obviously correct, slow."""
    squares = np.array([[((a - b) ** 2).sum() for b in y] for a in x]).reshape(len(x), len(y))
    return np.sqrt(np.clip(squares, 1e-10, 1e20)) + 1e-8


def published_divergence(x: np.ndarray, w: np.ndarray, k: int, *, discard: bool = False) -> float:
    """The published estimator, term by term."""
    (n, d), m = x.shape, len(w)
    rho = np.sort(distances(x, x), axis=1)[:, k]
    nu = distances(x, w)
    if discard:
        nu = np.sort(nu, axis=1)[:, 1:]
    ratio = d * np.log(nu) - d * np.log(rho)[:, None]
    return float(ratio.mean() + np.mean(np.log(k * m / (np.arange(1, m + 1) * (n - 1)))))


def knn_divergence(x: np.ndarray, w: np.ndarray, k: int) -> float:
    """Equation 5 of Wang, Kulkarni and Verdu."""
    n, d = x.shape
    rho = np.sort(distances(x, x), axis=1)[:, k]
    nu = np.sort(distances(x, w), axis=1)[:, k - 1]
    return float(d * np.mean(np.log(nu / rho)) + np.log(len(w) / (n - 1)))


ORACLES: dict[str, Callable[[np.ndarray, np.ndarray, int], float]] = {
    "published": published_divergence,
    "nearest-discarded": lambda x, w, k: published_divergence(x, w, k, discard=True),
    "knn": knn_divergence,
}


def costs(name: str, x: np.ndarray, w: np.ndarray, k: int) -> tuple[float, float]:
    """The divergence, and what decides between equal ones."""
    second = np.log(np.sort(distances(x, w), axis=1)[:, :k]).sum() if name == "knn" else 0
    return round(ORACLES[name](x, w, k), 9), second


def naive_greedy(
    name: str, x: np.ndarray, g: np.ndarray, start: np.ndarray, k: int
) -> tuple[list[int], list[float]]:
    """Try every candidate at every step; of equals take the first."""
    chosen: list[int] = []
    values = []
    while len(chosen) < len(g):
        best = min(
            (*costs(name, x, np.concatenate([start, g[[*chosen, c]]]), k), c)
            for c in range(len(g))
            if c not in chosen
        )
        values.append(best[0])
        chosen.append(best[2])
    return chosen, values


@pytest.mark.parametrize("name", ["published", "nearest-discarded", "knn"])
def test_the_picks_are_those_that_lower_the_estimate_most_at_every_step(name: Any) -> None:
    x, g = points(0, 12), points(1, 15)
    start = UniformStart()
    gio = GIO(estimate=name, num_neighbours=3, num_centroids=None, stop=EVERYTHING, seed=5)
    path = gio.fit(g, x)
    picks, values = naive_greedy(name, x, g, start.points(4, 5), 3)
    assert [pick.candidate for pick in path.picks] == picks
    np.testing.assert_allclose(path.divergences[1:], values, atol=TOLERANCE)
    first = ORACLES[name](x, start.points(4, 5), 3)
    assert path.start == pytest.approx(first, abs=TOLERANCE)


def test_the_published_order_is_that_of_a_score_whatever_was_chosen_before() -> None:
    x, g = points(0, 20), points(1, 40)
    score = np.log(distances(x, g)).mean(axis=0)
    for initial in (None, points(2, 7), 5 + points(3, 30)):
        gio = GIO(estimate="published", num_centroids=None, stop=EVERYTHING, seed=0)
        path = gio.fit(g, x, initial=initial)
        assert [pick.candidate for pick in path.picks] == np.argsort(score).tolist()


def reference_loop(x: np.ndarray, g: np.ndarray, start: np.ndarray, num_picks: int) -> list[int]:
    """The loop of the published package: walk down the gradient, take what lies nearest."""

    def gradient(v: np.ndarray, m: int) -> np.ndarray:
        away = v - x
        return x.shape[1] / (len(x) * m) * (away / (away**2).sum(1, keepdims=True)).sum(0)

    m, v, left, picks = len(start) + 1, x.mean(axis=0), list(range(len(g))), []
    scale = np.linalg.norm(v) / np.linalg.norm(gradient(v, m))
    for step in range(num_picks):
        for _ in range(150 if step == 0 else 50):
            v = v - 0.01 * scale * gradient(v, m + step)
        picks.append(left.pop(int(np.linalg.norm(g[left] - v, axis=1).argmin())))
        v = x.mean(axis=0)
    return picks


def test_the_picks_of_the_reference_loop_are_near_the_top_of_the_published_order() -> None:
    x, g = 2 + 0.5 * points(0, 200, 8), 2 + points(1, 400, 8)
    gio = GIO(estimate="published", num_centroids=None, stop=EVERYTHING, seed=0)
    ours = [pick.candidate for pick in gio.fit(g, x, max_picks=40).picks]
    theirs = reference_loop(x, g, UniformStart().points(8, 0), 40)
    assert len(set(ours) & set(theirs)) >= 30


def test_the_gradient_of_the_published_estimate_does_not_depend_on_what_was_chosen() -> None:
    x, v, step = points(0, 9), points(7, 1)[0], 1e-6

    def gradient(w: np.ndarray) -> np.ndarray:
        ends = [
            published_divergence(x, np.concatenate([w, [v + sign * step * unit]]), 3)
            for unit in np.eye(4)
            for sign in (1, -1)
        ]
        return np.subtract(ends[::2], ends[1::2]) / (2 * step)

    away = v - x
    formula = 4 / 9 / 6 * (away / (away**2).sum(1, keepdims=True)).sum(0)
    np.testing.assert_allclose(gradient(points(1, 5)), formula, atol=1e-5)
    np.testing.assert_allclose(gradient(9 + points(2, 5)), formula, atol=1e-5)


def estimates(
    x: np.ndarray, g: np.ndarray, copies: np.ndarray, start: np.ndarray
) -> dict[str, Estimate]:
    targets = Targets(x, 1 + np.arange(len(x)) % 3, 3)
    far, begun = log_distances(x, g), log_distances(x, start)
    scores = targets.total_distances(g), targets.total_distances(start)
    return {
        "published": PublishedEstimate(targets, scores[0], copies, scores[1]),
        "nearest-discarded": NearestDiscardedEstimate(targets, far, copies, begun),
        "coverage": NeighbourEstimate(targets, far, copies, begun, 1),
        "knn": NeighbourEstimate(targets, far, copies, begun, 3),
    }


@given(seed=st.integers(0, 10**6), several=st.booleans(), num_start=st.integers(3, 6))
@settings(max_examples=15, deadline=None)
def test_an_estimate_that_is_kept_up_to_date_equals_one_that_is_computed_afresh(
    seed: int, several: bool, num_start: int
) -> None:
    x, g, start = points(seed, 8), points(seed + 1, 9), points(seed + 2, num_start)
    copies = 1 + np.arange(9) % (4 if several else 1)
    running = estimates(x, g, copies, start)
    chosen: list[int] = []
    for candidate in (4, 0, 8, 2, 7):
        chosen.append(candidate)
        more = np.repeat(g[chosen], copies[chosen], axis=0)
        fresh = estimates(x, g, copies, np.concatenate([start, more]))
        left = np.ones(9, dtype=bool)
        left[chosen] = False
        for name, estimate in running.items():
            foreseen = estimate.value_with(candidate)
            estimate.add(candidate)
            assert foreseen == estimate.value == fresh[name].value
            assert estimate.best(left) == fresh[name].best(left)


def test_sums_of_logarithms_do_not_depend_on_the_order_of_targets() -> None:
    x, g = points(0, 50), points(1, 20)
    scrambled = np.random.default_rng(0).permutation(50)
    totals = [
        Targets(some, np.ones(50, np.int64), 3).total_distances(g) for some in (x, x[scrambled])
    ]
    assert (totals[0] == totals[1]).all()
    assert totals[0][0] / TICKS == pytest.approx(np.log(distances(x, g[:1])).sum(), abs=1e-6)


def test_copies_count_as_if_the_rows_were_there_one_by_one() -> None:
    x, g = points(0, 8), points(1, 4)
    copies = np.array([1, 3, 2, 6])
    running = estimates(x, g, copies, points(2, 4))
    separate = estimates(x, np.repeat(g, copies, axis=0), np.ones(12, np.int64), points(2, 4))
    for name, estimate in running.items():
        estimate.add(1)
        for row in (1, 2, 3):
            separate[name].add(row)
        assert estimate.value == pytest.approx(separate[name].value, abs=1e-9)


def two_groups() -> tuple[np.ndarray, np.ndarray]:
    """Targets 60 to 40 in two places, and as many candidates in each."""
    places = np.array([[0.0, 0, 0], [4, 0, 0]])
    x = np.repeat(places, [60, 40], axis=0) + 0.1 * points(0, 100, 3)
    return x, np.repeat(places, [50, 50], axis=0) + 0.1 * points(1, 100, 3)


@pytest.mark.parametrize(
    ("name", "both"),
    [("published", False), ("nearest-discarded", False), ("coverage", True)],
)
def test_only_estimates_that_look_at_near_neighbours_cover_a_second_group(
    name: Any, both: bool
) -> None:
    x, g = two_groups()
    gio = GIO(estimate=name, num_centroids=None, stop=EVERYTHING, seed=0)
    picks = [pick.candidate for pick in gio.fit(g, x, max_picks=20).picks]
    assert (max(picks) >= 50 and min(picks) < 50) == both


def test_the_kth_neighbour_alone_sees_a_second_group_once_clusters_count_their_rows() -> None:
    x, g = two_groups()
    gio = GIO(num_centroids=10, num_neighbours=5, stop=EVERYTHING, seed=0)
    path = gio.fit(g, x, max_picks=2)
    assert {row >= 50 for row in path.select().ids.tolist()} == {False, True}


def test_greedy_coverage_reaches_its_share_of_the_best_subset() -> None:
    x, g, size = points(0, 10), points(1, 9), 3
    far, start = log_distances(x, g), log_distances(x, UniformStart().points(4, 0))
    base = start.min(axis=1)

    def covered(chosen: Any) -> int:
        return int((base - np.minimum(base, far[:, list(chosen)].min(axis=1))).sum())

    best = max(covered(some) for some in combinations(range(9), size))
    gio = GIO(estimate="coverage", num_neighbours=3, num_centroids=None, stop=EVERYTHING, seed=0)
    picks = [pick.candidate for pick in gio.fit(g, x, max_picks=size).picks]
    assert covered(picks) >= (1 - 1 / np.e) * best


def test_the_same_rows_are_chosen_whatever_their_order() -> None:
    x, g = points(0, 60), points(1, 200)
    ids = np.array([f"row {number:03d}" for number in range(200)])
    scrambled = np.random.default_rng(0).permutation(200)
    for name in ESTIMATES:
        gio = GIO(estimate=name, num_centroids=20, stop=DataShare(0.4), seed=3)  # pyright: ignore[reportArgumentType]
        first = gio.fit(Embeddings(g, ids), x).select()
        again = gio.fit(Embeddings(g[scrambled], ids[scrambled]), x).select()
        assert first.ids.tolist() == again.ids.tolist()
        assert first.rejected == again.rejected


def test_rows_of_a_chosen_cluster_are_chosen_together_with_their_true_number() -> None:
    x, g = points(0, 100), points(1, 300)
    path = GIO(num_centroids=12, stop=DataShare(0.5), seed=0).fit(g, x)
    assert path.clusters is not None
    picked = [pick.candidate for pick in path.picks]
    chosen = path.select()
    assert len(chosen) == path.clusters.sizes[picked].sum() >= 150
    assert path.clusters.sizes.sum() == 300
    assert set(chosen.ids.tolist()).isdisjoint(chosen.rejected)
    assert len(chosen) + len(chosen.rejected) == 300
    left_out = next(iter(chosen.rejected.values()))
    assert "was not chosen (DataShare: reached" in left_out
    assert chosen.provenance["path"]["num_picks"] == len(picked)


def test_a_selection_survives_the_disk(tmp_path: Any) -> None:
    chosen = GIO(num_centroids=10, seed=0).fit(points(1, 50), points(0, 30)).select(num_selected=9)
    chosen.save(tmp_path / "s.parquet")
    again = Selection.load(tmp_path / "s.parquet")
    assert again.ids.tolist() == chosen.ids.tolist()
    assert again.provenance["gio"]["start"] == {
        "kind": "UniformStart",
        "num_points": 20,
        "low": -1.0,
        "high": 1.0,
        "normalize": True,
    }


def test_targets_far_from_every_candidate_stop_the_selection_at_once() -> None:
    random = np.random.default_rng(0)
    x = np.array([3.0, 4]) + np.sqrt(0.5) * random.standard_normal((100, 2))
    g = np.array([300.0, 400]) + np.sqrt(0.5) * random.standard_normal((100, 2))
    start = UniformStart(low=0, high=8, normalize=False)
    gio = GIO(estimate="published", num_centroids=None, start=start, seed=0)
    assert len(gio.fit(g, x).picks) == 0
    assert len(gio.fit(x + 0.01, x).picks) > 50


RULES = {
    "increase": (Increase(), lambda v: (np.diff(v) <= 0).all()),
    "difference": (MinDifference(0.5), lambda v: (np.diff(v) <= -0.5).all()),
    "goal": (MinDivergence(2.0), lambda v: v[-1] < 2.0 <= min(v[:-1])),
}


@pytest.mark.parametrize(("rule", "holds"), RULES.values(), ids=list(RULES))
def test_a_rule_stops_where_it_says(rule: Any, holds: Any) -> None:
    x, g = 2 + 0.3 * points(0, 60), 2 + points(1, 80)
    path = GIO(estimate="coverage", num_centroids=None, stop=rule, seed=0).fit(g, x)
    assert 0 < len(path.picks) < 80
    assert holds(path.divergences)
    assert type(rule).__name__ in path.ended


def test_rises_in_a_row_are_taken_up_to_a_number() -> None:
    x, g = 2 + 0.3 * points(0, 60), 2 + points(1, 80)

    def run(rule: Any) -> np.ndarray:
        gio = GIO(estimate="published", num_centroids=None, stop=rule, seed=0)
        return np.array(gio.fit(g, x).divergences)

    plain, patient = run(Increase()), run(SequentialIncreases(3))
    assert len(patient) == len(plain) + 3
    assert (np.diff(patient[-4:]) > 0).all()


def test_restarts_choose_rows_again_and_weights_count_how_often() -> None:
    x, g = 2 + 0.3 * points(0, 60), 2 + points(1, 80)
    gio = GIO(estimate="published", num_centroids=None, stop=Restarts(Increase(), most=2), seed=0)
    path = gio.fit(g, x)
    chosen = path.select()
    assert set(chosen.weights.tolist()) <= {1.0, 2.0, 3.0}
    assert chosen.weights.max() == 3
    assert chosen.weights.sum() == len(path.picks)
    assert len(set(chosen.ids.tolist())) == len(chosen)


def test_a_random_start_is_chosen_first_and_depends_on_the_seed_alone() -> None:
    x, g = points(0, 30), points(1, 100)

    def begun(seed: int) -> list[int]:
        gio = GIO(num_centroids=None, start=RandomStart(share=0.1), stop=EVERYTHING, seed=seed)
        return [pick.candidate for pick in gio.fit(g, x, max_picks=0).picks]

    assert len(begun(0)) == 10
    assert begun(0) == begun(0) != begun(1)


def test_a_budget_cuts_the_ranking() -> None:
    x, g = points(0, 30), points(1, 40)
    path = GIO(num_centroids=8, stop=EVERYTHING, seed=0).fit(g, x)
    everything = path.select()
    assert len(everything) == 40
    assert len(path.select(num_selected=0)) == 0
    assert len(path.select(num_selected=1000)) == 40
    some = path.select(num_selected=7)
    assert some.ids.tolist() == everything.ids[:7].tolist()
    assert set(some.rejected.values()) == {"beyond the budget of 7 rows"}
    tokens = np.arange(40) + 1
    cut = path.select(num_tokens=100, tokens=tokens)
    kept = tokens[cut.ids]
    assert kept.sum() <= 100 < kept.sum() + tokens[everything.ids[len(cut)]]


def test_nothing_eligible_leaves_an_empty_selection_with_reasons() -> None:
    marks = np.zeros(5, dtype=bool)
    chosen = GIO(seed=0).fit(points(1, 5), points(0, 30), eligible=marks).select(num_selected=3)
    assert len(chosen) == 0
    assert chosen.rejected == dict.fromkeys(range(5), "not eligible")
    marks[2] = True
    path = GIO(num_neighbours=2, stop=EVERYTHING, seed=0).fit(
        points(1, 5), points(0, 30), eligible=marks
    )
    assert path.select().ids.tolist() == [2]


@pytest.mark.parametrize("name", ESTIMATES)
def test_odd_points_are_no_trouble(name: Any) -> None:
    zero_and_equal = np.concatenate([np.zeros((3, 4)), np.ones((4, 4))])
    for number in (None, 1, 3, 100):
        gio = GIO(
            estimate=name,
            num_neighbours=1,
            num_centroids=number,
            stop=EVERYTHING,
            seed=0,
            start=UniformStart(num_points=0),
        )
        targets = points(0, 9) if number == 1 else zero_and_equal
        if number == 1:
            with pytest.raises(ValueError, match="A density needs at least 2 targets"):
                gio.fit(zero_and_equal, targets)
            continue
        assert sorted(gio.fit(zero_and_equal, targets).select().ids.tolist()) == list(range(7))


def test_equal_candidates_are_chosen_in_the_order_of_their_ids() -> None:
    gio = GIO(num_centroids=None, num_neighbours=2, stop=EVERYTHING, seed=0)
    equal = Embeddings(np.ones((4, 4)), np.array([7, 3, 9, 1]))
    assert gio.fit(equal, points(0, 9)).select().ids.tolist() == [1, 3, 7, 9]


def test_what_cannot_work_is_refused() -> None:
    x, g = points(0, 9), points(1, 5)
    bad = g.copy()
    bad[3, 0] = np.nan
    mistakes: list[tuple[type[Exception], str, Callable[[], object]]] = [
        (NonFiniteError, r"Those of the ids \[3\] \(1 in all\)", lambda: GIO(seed=0).fit(bad, x)),
        (DataError, "each id once", lambda: Embeddings(g, np.array([1, 1, 2, 3, 4]))),
        (DataError, "one entry a row. Got 2 ids and 5", lambda: Embeddings(g, np.arange(2))),
        (ValueError, "matrix of floating-point", lambda: GIO(seed=0).fit(np.arange(4), x)),
        (TypeError, "Use `embed`", lambda: GIO(seed=0).fit(["a"], x)),
        (ValueError, r"dimensions. Got \[5, 4\]", lambda: GIO(seed=0).fit(points(0, 5, 5), x)),
        (ValueError, "less than the number of targets", lambda: GIO(seed=0).fit(g, x[:5])),
        (ValueError, "`target` must hold at least one", lambda: GIO(seed=0).fit(g, x[:0])),
        (ValueError, "`num_neighbours` must be at least 1", lambda: GIO(num_neighbours=0, seed=0)),
        (
            DataError,
            "one mark a row, 5",
            lambda: GIO(seed=0).fit(g, x, eligible=np.ones(3, dtype=bool)),
        ),
        (
            ValueError,
            "must be given together",
            lambda: GIO(seed=0).fit(g, x).select(num_tokens=3),
        ),
        (
            DataError,
            "`tokens` must have one entry a row, 5",
            lambda: GIO(seed=0).fit(g, x).select(num_tokens=3, tokens=np.ones(2)),
        ),
        (ValueError, "`share` must be in", lambda: DataShare(1.5)),
        (
            ValueError,
            "`num_selected` must be",
            lambda: GIO(seed=0).fit(g, x).select(num_selected=-1),
        ),
    ]
    for kind, message, call in mistakes:
        with pytest.raises(kind, match=message):
            call()


def test_more_distances_than_memory_holds_are_refused_before_they_are_computed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("selection.gio.selector.MOST_BYTES", 1000)
    with pytest.raises(ValueError, match="Reduce both with `num_centroids`"):
        GIO(seed=0).fit(points(1, 50), points(0, 30))
    GIO(estimate="published", seed=0).fit(points(1, 50), points(0, 30))


def ten_groups() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Targets from five of ten groups, candidates from all, and the group of each candidate."""
    random = np.random.default_rng(0)
    centers = 0.7 * random.standard_normal((10, 32))

    def unit(groups: np.ndarray) -> np.ndarray:
        rows = centers[groups] + 0.5 * random.standard_normal((len(groups), 32))
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    groups = random.integers(0, 10, 600)
    return unit(random.integers(0, 5, 300)), unit(groups), groups


def test_discarding_the_nearest_point_gathers_picks_and_near_neighbours_spread_them() -> None:
    x, g, groups = ten_groups()
    found = {}
    for name in ESTIMATES:
        gio = GIO(estimate=name, num_centroids=None, stop=EVERYTHING, seed=0)  # pyright: ignore[reportArgumentType]
        picks = [pick.candidate for pick in gio.fit(g, x, max_picks=60).picks]
        nearest = np.log(distances(x, g[picks])).min(axis=1).mean()
        found[name] = (len(set(groups[picks])), round(float(nearest), 2))
    assert found["nearest-discarded"][0] < found["coverage"][0] == 5
    assert found["coverage"][1] < found["knn"][1] < found["published"][1]
    assert found["published"][1] < found["nearest-discarded"][1]
