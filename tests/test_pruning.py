"""Selectors on one score: what they keep, why the rest is left out, and what they refuse."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from gradsift.cli import main
from projections import DataError, NonFiniteError, Scores
from selection import (
    Selection,
    keep_between,
    keep_budget,
    keep_by_chance,
    keep_covering,
    keep_quotas,
    keep_stratified,
    keep_window,
    prune,
    select_within,
)

SELECTORS: dict[str, Callable[[Scores, float], Selection]] = {
    "prune": lambda s, keep: prune(s, keep=keep),
    "window": lambda s, keep: keep_window(s, keep=keep, offset=0),
    "stratified": lambda s, keep: keep_stratified(s, keep=keep, num_strata=4, seed=0),
    "covering": lambda s, keep: keep_covering(s, keep=keep, cut=0, num_strata=4, seed=0),
    "by chance": lambda s, keep: keep_by_chance(s, keep=keep, temperature=1, seed=0),
    "budget": lambda s, keep: keep_budget(s, num_selected=round(keep * len(s))),
    "quotas": lambda s, keep: keep_quotas(
        s, ["all"] * len(s), quotas={"all": round(keep * len(s))} if len(s) else {}
    ),
}
selectors = pytest.mark.parametrize("select", SELECTORS.values(), ids=list(SELECTORS))


def scores_of(values: Any, ids: Any = None) -> Scores:
    array = np.asarray(values, np.float64)
    return Scores(np.arange(len(array)) if ids is None else np.asarray(ids), {"s": array})


def random_scores(count: int = 40, seed: int = 0) -> Scores:
    return scores_of(np.random.default_rng(seed).normal(size=count))


@settings(max_examples=25, deadline=None)
@given(values=st.lists(st.floats(-1e3, 1e3), max_size=20), keep=st.floats(0, 1))
@selectors
def test_a_selector_keeps_the_asked_number_and_gives_a_reason_for_each_other_row(
    select: Any, values: list[float], keep: float
) -> None:
    chosen = select(scores_of(values), keep)
    assert len(chosen) == round(keep * len(values))
    kept = chosen.ids.tolist()
    assert kept == sorted(set(kept))
    assert sorted([*kept, *chosen.rejected]) == list(range(len(values)))
    assert all(chosen.rejected.values())
    assert_array_equal(chosen.columns["s"], np.asarray(values)[chosen.ids])


@selectors
def test_the_choice_does_not_depend_on_the_order_of_the_rows(select: Any) -> None:
    scores, order = random_scores(), np.random.default_rng(1).permutation(40)
    moved = Scores(scores.ids[order], {"s": scores.values[order]})
    assert set(select(moved, 0.3).ids.tolist()) == set(select(scores, 0.3).ids.tolist())


@selectors
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_scores_that_are_not_finite_are_refused(select: Any, bad: float) -> None:
    with pytest.raises(
        NonFiniteError, match=r"every score must be finite\. Those of the ids \[1\]"
    ):
        select(scores_of([0, bad, 1]), 0.5)


# Window and bounds.


@pytest.mark.parametrize("drop", ["lowest", "highest"])
def test_a_window_is_a_slice_of_the_sorted_rows(drop: Any) -> None:
    scores = random_scores(50)
    chosen = keep_window(scores, keep=0.4, offset=0.1, drop=drop)
    order = np.argsort(scores.values if drop == "highest" else -scores.values)
    assert_array_equal(chosen.ids, np.sort(order[5:25]))
    far = "highest" if drop == "lowest" else "lowest"
    assert "which are left out" in chosen.rejected[int(order[0])]
    assert f"among the {far} 5 of 50" in chosen.rejected[int(order[0])]
    assert f"among the {drop} 25 of 50" in chosen.rejected[int(order[-1])]


def test_bounds_are_included() -> None:
    scores = scores_of([0, 1, 2, 3])
    chosen = keep_between(scores, at_least=1, at_most=2)
    assert chosen.ids.tolist() == [1, 2]
    assert dict(chosen.rejected) == {0: "s 0 is below 1", 3: "s 3 is above 2"}
    assert keep_between(scores, at_most=1).ids.tolist() == [0, 1]


# Strata.


def test_small_strata_give_all_and_the_others_the_same() -> None:
    values = np.concatenate([np.full(30, 0.1), np.full(20, 0.6), np.full(2, 0.9), [0.0, 1.0]])
    chosen = keep_stratified(scores_of(values), keep=18 / 54, num_strata=10, seed=0)
    kept = values[chosen.ids]
    counts = {value: int((kept == value).sum()) for value in (0.0, 0.1, 0.6, 0.9, 1.0)}
    # Strata of the width 0.1: [0], [0.1], [0.6], and [0.9, 1.0] together.
    assert counts == {0.0: 1, 0.1: 7, 0.6: 7, 0.9: 2, 1.0: 1}
    assert "of 30 of stratum 1 are kept" in chosen.rejected[0]


def test_coverage_cuts_the_hardest_and_is_then_stratified_on_the_rest() -> None:
    scores = random_scores(100)
    chosen = keep_covering(scores, keep=0.3, cut=0.2, num_strata=5, seed=3)
    hardest = np.argsort(-scores.values)[:20]
    assert not set(hardest.tolist()) & set(chosen.ids.tolist())
    assert all("which are cut" in chosen.rejected[int(row)] for row in hardest)
    rest = np.sort(np.argsort(-scores.values)[20:])
    part = Scores(scores.ids[rest], {"s": scores.values[rest]})
    assert_array_equal(keep_stratified(part, keep=30 / 80, num_strata=5, seed=3).ids, chosen.ids)
    easy = keep_covering(scores, keep=0.3, cut=0.2, hard="lowest", num_strata=5, seed=3)
    assert not set(np.argsort(scores.values)[:20].tolist()) & set(easy.ids.tolist())


# Chance.


def test_rows_are_drawn_in_proportion_to_the_exponential_of_their_scores() -> None:
    values = np.log(np.array([1.0, 2.0, 3.0, 4.0]))
    draws = [
        keep_by_chance(scores_of(values), keep=0.25, temperature=1, seed=seed).ids[0]
        for seed in range(1500)
    ]
    shares = np.bincount(draws, minlength=4) / len(draws)
    spread = np.sqrt(0.25 / len(draws))
    np.testing.assert_allclose(shares, [0.1, 0.2, 0.3, 0.4], atol=4 * spread)


def test_a_low_temperature_prunes_and_the_end_can_be_turned() -> None:
    scores = random_scores()
    for drop in ("lowest", "highest"):
        cold = keep_by_chance(scores, keep=0.5, temperature=1e-6, drop=drop, seed=0)
        assert_array_equal(cold.ids, prune(scores, keep=0.5, drop=drop).ids)


def test_a_draw_belongs_to_ids_and_so_may_lose_rows_without_changing() -> None:
    names = [f"r{n}" for n in range(40)]
    values = random_scores().values
    chosen = keep_by_chance(scores_of(values, names), keep=0.5, temperature=1, seed=0)
    fewer = [n for n in range(40) if names[n] not in list(chosen.rejected)[:10]]
    part = scores_of(values[fewer], [names[n] for n in fewer])
    again = keep_by_chance(part, keep=20 / 30, temperature=1, seed=0)
    assert_array_equal(again.ids, chosen.ids)


# Budgets and groups.


def test_tokens_are_spent_on_the_best_up_to_the_first_that_does_not_fit() -> None:
    scores = scores_of([5, 4, 3, 2, 1])
    tokens = np.array([3, 3, 9, 1, 1])
    chosen = keep_budget(scores, num_tokens=8, tokens=tokens)
    assert chosen.ids.tolist() == [0, 1]
    assert chosen.rejected[3] == "s 2 has rank 4 of 5: beyond the budget of 8 tokens"
    assert keep_budget(scores, num_tokens=8, tokens=tokens, num_selected=1).ids.tolist() == [0]
    highest = keep_budget(scores, num_tokens=8, tokens=tokens, drop="highest")
    assert highest.ids.tolist() == [3, 4]


def test_each_group_gives_its_best_up_to_its_quota() -> None:
    scores, groups = random_scores(30), np.array(list("abc") * 10)
    chosen = keep_quotas(scores, groups, quotas={"a": 3, "b": 99})
    for name, count in (("a", 3), ("b", 10), ("c", 0)):
        members = np.flatnonzero(groups == name)
        best = members[np.argsort(-scores.values[members])][:count]
        assert set(best.tolist()) == set(chosen.ids[groups[chosen.ids] == name].tolist())
    assert chosen.rejected[2].endswith("in 'c', of which 0 are kept")


def test_a_selector_within_groups_is_that_selector_on_each() -> None:
    scores, groups = random_scores(30), np.arange(30) % 3
    chosen = select_within(scores, groups, lambda part: prune(part, keep=0.5))
    for group in range(3):
        members = np.flatnonzero(groups == group)
        part = Scores(members, {"s": scores.values[members]})
        assert_array_equal(chosen.ids[chosen.ids % 3 == group], prune(part, keep=0.5).ids)
    assert chosen.rejected[min(chosen.rejected)].endswith(f"(in {min(chosen.rejected) % 3})")
    assert chosen.ids.tolist() == sorted(chosen.ids.tolist())
    assert len(chosen) + len(chosen.rejected) == 30


S = random_scores(4)
TOKENS = np.ones(4)
WRONG: dict[str, tuple[Callable[[], Any], str]] = {
    "window": (lambda: keep_window(S, keep=0.8, offset=0.5), "`keep` and `offset` must be at most"),
    "offset": (lambda: keep_window(S, keep=0.1, offset=-0.1), r"`offset` must be in \[0, 1\]"),
    "no bound": (lambda: keep_between(S), "`at_least` or `at_most` must be given"),
    "crossed": (lambda: keep_between(S, at_least=2, at_most=1), r"Got 2 and 1\."),
    "nan bound": (lambda: keep_between(S, at_least=float("nan")), "Got nan and None"),
    "strata": (lambda: keep_stratified(S, keep=1, num_strata=0, seed=0), "`num_strata` must be at"),
    "cut": (
        lambda: keep_covering(S, keep=0.5, cut=0.9, seed=0),
        "`keep` and `cut` must be at most",
    ),
    "cold": (lambda: keep_by_chance(S, keep=1, temperature=0, seed=0), "`temperature` must be pos"),
    "nothing": (lambda: keep_budget(S), "`num_tokens` or `num_selected` must be given"),
    "half": (lambda: keep_budget(S, num_tokens=3), "must be given together"),
    "negative": (
        lambda: keep_quotas(S, list("aabb"), quotas={"a": -1}),
        r"`quotas\['a'\]` must be at least 0",
    ),
}


@pytest.mark.parametrize(("call", "message"), WRONG.values(), ids=list(WRONG))
def test_settings_that_do_not_fit_are_refused(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_groups_and_tokens_that_do_not_fit_the_rows_are_refused() -> None:
    with pytest.raises(DataError, match=r"`quotas` must name groups that are there, \['a', 'b'\]"):
        keep_quotas(S, list("aabb"), quotas={"c": 1})
    with pytest.raises(DataError, match=r"`groups` must have one entry a row, 4\. Got the shape"):
        select_within(S, list("aab"), lambda part: prune(part, keep=1))
    with pytest.raises(DataError, match=r"`tokens` must have one entry a row, 4\. Got 2"):
        keep_budget(S, num_tokens=3, tokens=np.ones(2))


# The command.


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    values = np.random.default_rng(0).normal(size=20)
    scores = Scores(np.arange(20), {"loss": values, "other": -values})
    scores.save(tmp_path / "s.parquet")
    rows = [{"id": n, "text": "a b " * (n % 3 + 1), "label": "xy"[n % 2]} for n in range(20)]
    (tmp_path / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def command(folder: Path, *words: object) -> int:
    given = ["prune", folder / "s.parquet", "--data", folder / "d.jsonl", "--column", "loss"]
    return main([str(word) for word in (*given, "--out", folder / "k.jsonl", *words)])


METHODS: dict[str, tuple[list[object], Callable[[Scores, Any], Selection]]] = {
    "top": (["--keep", 0.5], lambda s, g: prune(s, keep=0.5)),
    "window": (["--keep", 0.5, "--offset", 0.1], lambda s, g: keep_window(s, keep=0.5, offset=0.1)),
    "bounds": (["--at-most", 0.2], lambda s, g: keep_between(s, at_most=0.2)),
    "stratified": (
        ["--keep", 0.5, "--num-strata", 4, "--seed", 3],
        lambda s, g: keep_stratified(s, keep=0.5, num_strata=4, seed=3),
    ),
    "coverage": (
        ["--keep", 0.5, "--offset", 0.1, "--drop", "highest"],
        lambda s, g: keep_covering(s, keep=0.5, cut=0.1, seed=0),
    ),
    "gumbel": (
        ["--keep", 0.5, "--temperature", 2, "--seed", 1],
        lambda s, g: keep_by_chance(s, keep=0.5, temperature=2, seed=1),
    ),
    "quotas": (
        ["--group-column", "label", "--quota", "x=3", "y=2"],
        lambda s, g: keep_quotas(s, g, quotas={"x": 3, "y": 2}),
    ),
}


@pytest.mark.parametrize("name", METHODS)
def test_the_command_keeps_what_the_library_keeps(name: str, folder: Path) -> None:
    words, select = METHODS[name]
    assert command(folder, "--method", name, *words) == 0
    scores = Scores.load(folder / "s.parquet")["loss"]
    groups = np.array(["xy"[n % 2] for n in range(20)])
    wanted = select(scores, groups)
    found = Selection.load(folder / "k.jsonl.selection.parquet")
    assert_array_equal(found.ids, wanted.ids)
    assert found.rejected == wanted.rejected
    kept = [json.loads(line)["id"] for line in (folder / "k.jsonl").read_text().splitlines()]
    assert kept == wanted.ids.tolist()
    if name != "quotas":
        assert command(folder, "--method", name, *words, "--group-column", "label") == 0
        within = Selection.load(folder / "k.jsonl.selection.parquet")
        assert_array_equal(
            within.ids, select_within(scores, groups, lambda s: select(s, groups)).ids
        )


def test_the_command_keeps_a_budget_of_words(folder: Path) -> None:
    assert command(folder, "--num-tokens", 12) == 0
    tokens = np.array([2 * (n % 3 + 1) for n in range(20)])
    scores = Scores.load(folder / "s.parquet")["loss"]
    wanted = keep_budget(scores, num_tokens=12, tokens=tokens)
    assert_array_equal(Selection.load(folder / "k.jsonl.selection.parquet").ids, wanted.ids)


def test_one_of_several_scores_must_be_named(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["prune", folder / "s.parquet", "--data", folder / "d.jsonl", "--keep", 1]
    assert main([str(word) for word in (*given, "--out", folder / "k.jsonl")]) == 1
    assert "`--column` must name one of the scores, loss, other." in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "`--keep` must be given with `--method top`"),
        (["--keep", 1, "--offset", 0.1], "`--offset` must be used with another method than 'top'"),
        (["--keep", 1, "--num", 3], "`--keep` must be used with another"),
        (["--method", "bounds"], "`--at-least` or `--at-most` must be given"),
        (["--method", "gumbel", "--keep", 1], "`--temperature` must be given"),
        (["--keep", 1, "--group-column", "no"], "`--group-column` must be a column of the data"),
        (["--num", 3, "--group-column", "label"], "must be used without `--group-column`"),
        (
            ["--method", "quotas", "--group-column", "label", "--quota", "x"],
            "`--quota` must be NAME=COUNT, as in web=1000. Got 'x'",
        ),
    ],
)
def test_options_that_do_not_go_together_are_said(
    words: list[object], message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(folder, *words) == 1
    assert message in capsys.readouterr().err
