"""Scores and selections travel by row id and come back as they were."""

from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import Dataset

from projections import DataError, NonFiniteError, Scores, Table
from selection import Selection, prune

IDS = {"numbers": np.array([7, 3, 9, 1]), "text": np.array(["a", "bb", "c", "d"])}
by_ids = pytest.mark.parametrize("ids", IDS.values(), ids=list(IDS))


def equal(one: Scores, other: Scores) -> None:
    np.testing.assert_array_equal(one.ids, other.ids)
    assert one.names == other.names
    assert dict(one.provenance) == dict(other.provenance)
    for name in one.names:
        np.testing.assert_array_equal(one.columns[name], other.columns[name])
        assert one.columns[name].dtype == other.columns[name].dtype
    if one.query_ids is None:
        assert other.query_ids is None
    else:
        np.testing.assert_array_equal(one.query_ids, other.query_ids)


@by_ids
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64], ids=lambda t: t.__name__)
def test_scores_come_back_from_parquet(tmp_path: Path, ids: np.ndarray, dtype: Any) -> None:
    columns = {"loss": np.arange(4).astype(dtype), "norm": np.ones(4, dtype)}
    scores = Scores(ids, columns, provenance={"model": "m", "settings": {"seed": 0}})
    scores.save(tmp_path / "scores.parquet")
    equal(Scores.load(tmp_path / "scores.parquet"), scores)


@by_ids
@pytest.mark.parametrize("num_queries", [1, 3])
@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=lambda t: t.__name__)
def test_scores_of_pairs_come_back_from_parquet(
    tmp_path: Path, ids: np.ndarray, num_queries: int, dtype: Any
) -> None:
    values = np.random.default_rng(0).normal(size=(num_queries, 4)).astype(dtype)
    queries = np.array([f"q{query}" for query in range(num_queries)])
    scores = Scores(ids, {"dot": values}, queries, {"method": "dot"})
    scores.save(tmp_path / "scores.parquet")
    loaded = Scores.load(tmp_path / "scores.parquet")
    equal(loaded, scores)
    assert loaded["dot"].values.shape == (num_queries, 4)


def test_no_scores_come_back_as_none(tmp_path: Path) -> None:
    for queries in (None, np.array(["q"])):
        shape = (0,) if queries is None else (1, 0)
        scores = Scores(np.empty(0, np.int64), {"loss": np.empty(shape, np.float32)}, queries)
        scores.save(tmp_path / "scores.parquet")
        equal(Scores.load(tmp_path / "scores.parquet"), scores)


def test_scores_become_a_dataset() -> None:
    scores = Scores(IDS["text"], {"loss": np.arange(4.0)})
    assert scores.to_dataset()[2] == {"id": "c", "loss": 2.0}


def test_columns_of_one_number_a_row_become_scores() -> None:
    table = Table(np.arange(3), {"loss": np.ones(3), "sketch": np.ones((3, 2))})
    scores = Scores.from_table(table, {"from": "pass"})
    assert (scores.names, scores.provenance, len(scores)) == (["loss"], {"from": "pass"}, 3)


def test_scores_about_the_same_rows_are_joined() -> None:
    one = Scores(np.arange(2), {"loss": np.ones(2)}, provenance={"a": 1})
    both = one.join(Scores(np.arange(2), {"norm": np.zeros(2)}, provenance={"b": 2}))
    assert (both.names, both.provenance) == (["loss", "norm"], {"a": 1, "b": 2})
    with pytest.raises(DataError, match="about the same ids in the same order"):
        one.join(Scores(np.array([1, 0]), {"norm": np.zeros(2)}))
    with pytest.raises(DataError, match=r"must have different names\. Both have \['loss'\]"):
        one.join(Scores(np.arange(2), {"loss": np.zeros(2)}))


def test_scores_of_different_queries_are_not_joined() -> None:
    def pairs(name: str, query: str) -> Scores:
        return Scores(np.arange(2), {name: np.ones((1, 2))}, np.array([query]))

    assert pairs("a", "q").join(pairs("b", "q")).names == ["a", "b"]
    with pytest.raises(DataError, match="about the same queries"):
        pairs("a", "q").join(pairs("b", "r"))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Scores(np.arange(2), {}), "`columns` must hold at least one"),
        (lambda: Scores(np.arange(2), {"a": np.ones(3)}), r"'a' must have the shape \(2,\)\. Got"),
        (
            lambda: Scores(np.arange(2), {"a": np.ones(2)}, np.arange(3)),
            r"'a' must have the shape \(3, 2\)\. Got \(2,\)",
        ),
        (
            lambda: Scores(np.arange(2), {"a": np.ones(2), "b": np.ones(2)}).values,
            r"one column must be chosen.*\['a', 'b'\]",
        ),
    ],
    ids=["none", "length", "pairs", "several"],
)
def test_scores_that_do_not_fit_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_a_column_that_is_not_there_is_named() -> None:
    with pytest.raises(KeyError, match=r"must have the column 'b'\. They have \['a'\]"):
        Scores(np.arange(2), {"a": np.ones(2)})["b"]


def test_files_that_hold_no_scores_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.parquet must be a parquet file\. There is no such"):
        Scores.load(tmp_path / "none.parquet")
    (tmp_path / "text.parquet").write_text("no parquet")
    with pytest.raises(DataError, match="must be a parquet file, and cannot be read"):
        Scores.load(tmp_path / "text.parquet")
    datasets.Dataset.from_dict({"x": [1]}).to_parquet(str(tmp_path / "x.parquet"))
    with pytest.raises(DataError, match=r"must have the column 'id'\. It has \['x'\]"):
        Scores.load(tmp_path / "x.parquet")


# Pruning.

SCORES = Scores(IDS["text"], {"loss": np.array([3.0, 1.0, 2.0, 0.0])}, provenance={"model": "m"})


def test_the_lowest_or_the_highest_are_dropped() -> None:
    assert prune(SCORES, keep=0.5).ids.tolist() == ["a", "c"]
    kept = prune(SCORES, keep=0.75, drop="highest")
    assert kept.ids.tolist() == ["bb", "c", "d"]
    assert kept.weights.tolist() == [1, 1, 1]
    assert dict(kept.rejected) == {"a": "loss 3 is among the highest 1 of 4"}
    assert kept.provenance["model"] == "m"
    assert kept.provenance["prune"] == {"score": "loss", "keep": 0.75, "drop": "highest"}


@pytest.mark.parametrize("drop", ["lowest", "highest"])
def test_ties_are_kept_in_the_order_of_the_rows(drop: Any) -> None:
    scores = Scores(np.arange(5), {"loss": np.ones(5)})
    assert prune(scores, keep=0.6, drop=drop).ids.tolist() == [0, 1, 2]


@pytest.mark.parametrize("dtype", [np.uint8, np.bool_, np.int64], ids=lambda t: t.__name__)
def test_whole_numbers_are_scores_too(dtype: Any) -> None:
    scores = Scores(np.arange(3), {"count": np.array([1, 0, 1]).astype(dtype)})
    assert prune(scores, keep=1 / 3, drop="highest").ids.tolist() == [1]


def test_everything_or_nothing_may_be_kept() -> None:
    everything, nothing = prune(SCORES, keep=1), prune(SCORES, keep=0)
    assert everything.ids.tolist() == IDS["text"].tolist()
    assert not everything.rejected
    assert len(nothing) == 0
    assert list(nothing.rejected) == IDS["text"].tolist()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_scores_that_are_not_finite_are_named(bad: float) -> None:
    scores = Scores(IDS["text"], {"loss": np.array([1.0, bad, 2.0, 3.0])})
    with pytest.raises(NonFiniteError, match=r"ids \['bb'\] are not"):
        prune(scores, keep=0.5)


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ({"keep": 1.5}, r"`keep` must be in \[0, 1\] \(a share of the rows\)\. Got 1\.5"),
        ({"keep": float("nan")}, r"`keep` must be in \[0, 1\].*Got nan"),
    ],
    ids=["share", "nan"],
)
def test_a_bad_argument_is_named(settings_: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        prune(SCORES, **settings_)


def test_scores_of_pairs_cannot_be_pruned() -> None:
    pairs = Scores(np.arange(3), {"dot": np.ones((2, 3))}, np.arange(2))
    with pytest.raises(ValueError, match=r"one number an example\. Got the shape \(2, 3\)"):
        prune(pairs, keep=0.5)


@settings(max_examples=80, deadline=None)
@given(
    values=st.lists(st.integers(-3, 3) | st.floats(-1e3, 1e3), max_size=30),
    keep=st.floats(0, 1),
    drop=st.sampled_from(["lowest", "highest"]),
    random=st.randoms(use_true_random=False),
)
def test_pruning_keeps_the_asked_number_of_the_best(
    values: list[float], keep: float, drop: Any, random: Any
) -> None:
    array = np.array(values, dtype=np.float64)
    chosen = prune(Scores(np.arange(len(array)), {"s": array}), keep=keep, drop=drop)
    assert len(chosen) == round(keep * len(array))
    assert len(set(chosen.ids.tolist())) == len(chosen)
    assert set(chosen.ids.tolist()) | set(chosen.rejected) == set(range(len(array)))
    assert not set(chosen.ids.tolist()) & set(chosen.rejected)
    sign = 1 if drop == "lowest" else -1
    left = [sign * array[row] for row in chosen.rejected]
    assert not left or not len(chosen) or max(left) <= (sign * array[chosen.ids]).min()
    order = list(range(len(array)))
    random.shuffle(order)
    moved = prune(
        Scores(np.array(order, dtype=np.int64), {"s": array[order]}), keep=keep, drop=drop
    )
    assert sorted(array[chosen.ids]) == sorted(array[moved.ids])


# Selections.


class Squares(Dataset[int]):
    def __len__(self) -> int:
        return 5

    def __getitem__(self, index: int) -> int:
        return index**2


def test_a_selection_picks_its_rows_in_its_order() -> None:
    chosen = Selection(np.array([3, 0]), np.ones(2))
    assert chosen.apply(Squares()) == [9, 0]
    assert chosen.apply(list("abcde")) == ["d", "a"]
    picked = chosen.apply(datasets.Dataset.from_dict({"text": list("abcde")}))
    assert isinstance(picked, datasets.Dataset)
    assert list(picked["text"]) == ["d", "a"]


def test_a_selection_finds_rows_by_their_ids() -> None:
    rows = [{"id": "x", "v": 1}, {"id": "y", "v": 2}]
    chosen = Selection(np.array(["y"]), np.ones(1))
    assert chosen.apply(rows) == [rows[1]]
    assert list(chosen.apply(datasets.Dataset.from_list(rows))) == [rows[1]]


def test_a_selection_of_nothing_picks_nothing() -> None:
    nothing = prune(Scores(np.arange(5), {"loss": np.ones(5)}), keep=0)
    assert nothing.apply(list("abcde")) == []
    assert len(nothing.apply(datasets.Dataset.from_dict({"text": list("abcde")}))) == 0


def test_ids_that_the_data_lacks_are_named() -> None:
    with pytest.raises(DataError, match=r"1 of 2 are missing, such as \[9\]\. Apply the selection"):
        Selection(np.array([1, 9]), np.ones(2)).apply(list("abc"))


def test_each_id_has_one_weight() -> None:
    with pytest.raises(ValueError, match=r"`weights` must have one entry an id\. Got 1 and 2"):
        Selection(np.arange(2), np.ones(1))


@pytest.mark.parametrize("keep", [0, 0.5, 1])
@by_ids
def test_a_selection_comes_back_from_parquet(tmp_path: Path, ids: np.ndarray, keep: float) -> None:
    chosen = prune(Scores(ids, {"loss": np.arange(4.0)}, provenance={"a": 1}), keep=keep)
    chosen.save(tmp_path / "kept.parquet")
    loaded = Selection.load(tmp_path / "kept.parquet")
    np.testing.assert_array_equal(loaded.ids, chosen.ids)
    np.testing.assert_array_equal(loaded.weights, chosen.weights)
    assert loaded.rejected == chosen.rejected
    assert loaded.provenance == chosen.provenance
    assert loaded.ids.dtype.kind == ids.dtype.kind


def test_scores_are_not_a_selection(tmp_path: Path) -> None:
    SCORES.save(tmp_path / "scores.parquet")
    with pytest.raises(DataError, match=r"It lacks the columns \['kept', 'reason', 'weight'\]"):
        Selection.load(tmp_path / "scores.parquet")
