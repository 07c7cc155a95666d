"""Samplers: what they draw, with weights that move, workers, ranks, and after a kill."""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, cast

import datasets
import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, IterableDataset

from projections import DataError, NonFiniteError
from selection import (
    DrawBatchSampler,
    Draws,
    DrawSampler,
    FixedMixture,
    MixtureDraws,
    MixtureStream,
    RunningNorms,
    Selection,
    SelectionDraws,
    WeightedDraws,
    norm_probabilities,
)
from selection.keyed import keyed_order, keyed_uniforms
from selection.mixtures.recorded import RecordedMixture

# Machines may have fewer cores than these tests have workers.
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")

ROWS = list(range(12))
DOMAINS = ["a", "b", "a", "c"] * 3


class Moving(RecordedMixture):
    """A mixture that moves to one domain after the other."""

    def update(self, step: int, *, domains: Any = None, losses: Any = None) -> None:
        weights = np.full(len(self.names), 0.05)
        weights[step % len(self.names)] = 1 - 0.05 * (len(self.names) - 1)
        self._record(step, weights, weights)


def moving() -> Moving:
    return Moving(("a", "b", "c"))


def through_json(state: Any) -> Any:
    return json.loads(json.dumps(state))


# Keyed numbers


def test_keyed_numbers_are_uniform_and_do_not_depend_on_what_else_is_drawn() -> None:
    numbers = keyed_uniforms(0, "x", np.arange(20_000))
    assert abs(numbers.mean() - 0.5) < 4 / np.sqrt(12 * 20_000)
    counts = np.histogram(numbers, 20, (0, 1))[0]
    assert ((counts - 1000) ** 2 / 1000).sum() < 43.8  # chi-squared of 19, one in a thousand
    assert numbers[7] == keyed_uniforms(0, "x", np.array([7]))[0]
    far = np.array([2**33 + 1])
    assert keyed_uniforms(0, "x", far) != keyed_uniforms(0, "x", far % 2**32)
    assert not (keyed_uniforms(1, "x", np.arange(9)) == numbers[:9]).any()
    assert sorted(keyed_order(0, "x", 50)) == list(range(50))
    assert keyed_order(0, "x", 0).tolist() == []


# Weighted draws


def test_rows_come_in_proportion_to_their_weights_and_never_at_zero() -> None:
    weights = np.array([0.0, 1.0, 2.0, 0.0, 5.0, 0.0])
    draws = WeightedDraws(weights, batch_size=8000, seed=3)
    counts = np.bincount(draws.positions(0), minlength=6)
    expected = 8000 * weights / weights.sum()
    assert (counts[weights == 0] == 0).all()
    assert (abs(counts - expected) < 4 * np.sqrt(expected + 1)).all()


def test_the_importance_weight_makes_the_mean_unbiased() -> None:
    values = np.array([1.0, -2.0, 7.0, 0.5])
    probabilities = norm_probabilities(np.abs(values), floor=0.2)
    draws = WeightedDraws(probabilities, batch_size=50_000, seed=0)
    weighted = values[draws.positions(0)] * draws.importance(0)
    error = weighted.std() / np.sqrt(len(weighted))
    assert abs(weighted.mean() - values.mean()) < 4 * error
    assert weighted.std() < values.std()  # proportions of norms have less variance
    assert draws.importance(0).max() <= 1 / 0.2 + 1e-9


def test_a_change_of_weights_begins_after_the_lag_and_importance_follows_it() -> None:
    draws = WeightedDraws(np.array([1.0, 0.0]), batch_size=2, seed=0, lag=3)
    draws.advance()
    draws.set_weights(np.array([0.0, 1.0]))
    assert [draws.positions(batch).tolist() for batch in (2, 3, 4, 5)] == [[0, 0]] * 2 + [
        [1, 1]
    ] * 2
    assert draws.importance(3).tolist() == [0.5, 0.5]


def test_a_loader_that_reads_beyond_the_lag_is_refused() -> None:
    draws = WeightedDraws(np.ones(2), batch_size=2, seed=0, lag=3)
    for batch in range(5):
        draws.positions(batch)
    with pytest.raises(
        ValueError, match=r"`lag` must be at least 5: batch 4 was drawn when 0 were"
    ):
        draws.set_weights(np.ones(2))
    with pytest.raises(ValueError, match=r"Call `advance` after each batch"):
        draws.state_dict()


@pytest.mark.parametrize(
    ("weights", "error", "message"),
    [
        ([], ValueError, r"`weights` must hold at least one example\. Got none\."),
        (
            [1.0, np.nan],
            NonFiniteError,
            r"every weight must be finite\. Those at the positions \[1\]",
        ),
        (
            [1.0, -1.0],
            ValueError,
            r"`weights` must be at least 0, and some above it\. Got -1 to 1\.",
        ),
        ([0.0, 0.0], ValueError, r"`weights` must be at least 0, and some above it\. Got 0 to 0\."),
    ],
)
def test_weights_that_are_none_are_refused(weights, error, message: str) -> None:
    with pytest.raises(error, match=message):
        WeightedDraws(np.array(weights, dtype=float), batch_size=1, seed=0)


def test_other_numbers_of_weights_are_refused() -> None:
    draws = WeightedDraws(np.ones(2), batch_size=1, seed=0)
    with pytest.raises(ValueError, match=r"`weights` must have 2 entries, one a row\. Got 3\."):
        draws.set_weights(np.ones(3))
    with pytest.raises(ValueError, match=r"the state must have 2 weights\. Got 3\."):
        draws.load_state_dict(WeightedDraws(np.ones(3), batch_size=1, seed=0).state_dict())


# Gradient norms


@given(
    norms=st.lists(st.floats(0, 100), min_size=1, max_size=20).map(np.array),
    floor=st.floats(0, 1),
)
@example(norms=np.array([5e-324]), floor=0.5)
@example(norms=np.array([1e308, 1e308, 0.0]), floor=0.1)
@settings(deadline=None, max_examples=50)
def test_probabilities_of_norms_sum_to_one_above_the_floor(norms, floor: float) -> None:
    found = norm_probabilities(norms, floor=floor)
    assert abs(found.sum() - 1) < 1e-9
    assert (found >= floor / len(norms) - 1e-12).all()


def test_norms_that_are_none_are_refused_and_unseen_rows_are_average() -> None:
    with pytest.raises(NonFiniteError, match=r"every norm must be finite\. Those at the positions"):
        norm_probabilities(np.array([np.inf]))
    with pytest.raises(ValueError, match=r"`norms` must be at least 0\. Got -1\."):
        norm_probabilities(np.array([-1.0]))
    norms = RunningNorms(4, keep=0.5)
    assert norms.values.tolist() == [1, 1, 1, 1]
    norms.update(np.array([0, 2]), np.array([2.0, 4.0]))
    norms.update(np.array([0]), np.array([4.0]))
    assert norms.values.tolist() == [3, 3.5, 4, 3.5]
    with pytest.raises(NonFiniteError, match=r"Those of the rows \[3\] are not"):
        norms.update(np.array([1, 3]), np.array([1.0, np.nan]))
    again = RunningNorms(4)
    again.load_state_dict(through_json(norms.state_dict()))
    assert again.values.tolist() == norms.values.tolist()
    with pytest.raises(ValueError, match=r"the state must have 3 rows\. Got 4\."):
        RunningNorms(3).load_state_dict(norms.state_dict())


# Selections


def test_with_equal_weights_an_epoch_of_a_selection_has_each_row_once() -> None:
    chosen = Selection(np.array(["r3", "r0", "r4"]), np.full(3, 0.7))
    data = datasets.Dataset.from_dict({"id": [f"r{row}" for row in range(6)]})
    draws = SelectionDraws(chosen, data, batch_size=2, seed=0)
    rows = np.concatenate([draws.positions(batch) for batch in range(6)])
    for epoch in rows.reshape(4, 3):
        assert sorted(epoch) == [0, 3, 4]
    assert len({tuple(epoch) for epoch in rows.reshape(4, 3)}) > 1  # shuffled anew
    sampler = DrawSampler(draws, num_batches=3)
    loader: Any = DataLoader(cast(Any, data), sampler=sampler, batch_size=2)
    assert sorted(row for batch in loader for row in batch["id"]) == sorted(["r0", "r3", "r4"] * 2)


@given(
    weights=st.lists(st.integers(0, 9), min_size=1, max_size=9).filter(any), seed=st.integers(0, 9)
)
@settings(deadline=None, max_examples=40)
def test_a_row_of_a_selection_comes_as_often_as_its_weight_says(weights, seed: int) -> None:
    values = np.array(weights, dtype=float)
    chosen = Selection(np.arange(len(values)), values)
    draws = SelectionDraws(chosen, range(len(values)), batch_size=len(values), seed=seed)
    expected = values * len(values) / values.sum()
    for epoch in range(3):
        counts = np.bincount(draws.positions(epoch), minlength=len(values))
        assert (counts >= np.floor(expected - 1e-9)).all()
        assert (counts <= np.ceil(expected + 1e-9)).all()


def test_selections_that_cannot_be_drawn_from_are_refused() -> None:
    with pytest.raises(ValueError, match=r"`selection` must hold at least one example"):
        SelectionDraws(Selection(np.array([]), np.array([])), ROWS, batch_size=1, seed=0)
    with pytest.raises(ValueError, match=r"`selection` must have finite weights of at least 0"):
        SelectionDraws(Selection(np.array([1]), np.array([0.0])), ROWS, batch_size=1, seed=0)


# Mixtures


def test_domains_come_as_the_mixture_says_and_rows_once_an_epoch() -> None:
    mixture = FixedMixture(("a", "b", "c"), [0.5, 0.3, 0.2])
    draws = MixtureDraws(mixture, DOMAINS, batch_size=10, seed=0)
    rows = np.concatenate([draws.positions(batch) for batch in range(200)])
    domains = np.concatenate([draws.domains(batch) for batch in range(200)])
    assert ["abc"[domain] for domain in domains] == [DOMAINS[row] for row in rows]
    counts = np.bincount(domains)
    assert (abs(counts - 2000 * mixture.weights) < 4 * np.sqrt(2000 * 0.25)).all()
    for domain, size in enumerate((6, 3, 3)):
        own = rows[domains == domain]
        for epoch in own[: len(own) // size * size].reshape(-1, size):
            assert len(set(epoch)) == size


def test_a_domain_with_the_weight_zero_is_never_drawn_and_one_domain_is_enough() -> None:
    mixture = FixedMixture(("a", "b", "c"), [0.0, 1.0, 0.0])
    draws = MixtureDraws(mixture, DOMAINS, batch_size=50, seed=0)
    assert set(draws.positions(0).tolist()) == {1, 5, 9}
    alone = MixtureDraws(FixedMixture(("x",)), ["x", "x"], batch_size=4, seed=0)
    assert sorted(alone.positions(0).tolist()) == [0, 0, 1, 1]


def test_rows_and_sources_must_be_those_of_the_mixture() -> None:
    mixture = FixedMixture(("a", "b"))
    with pytest.raises(DataError, match=r"Without a row: \['b'\]; not in the mixture: \['x'\]"):
        MixtureDraws(mixture, ["a", "x"], batch_size=1, seed=0)
    with pytest.raises(
        DataError, match=r"It has the domains \['a', 'b'\], the sources are \['a'\]"
    ):
        MixtureStream({"a": [1]}, mixture, batch_size=1, seed=0)
    with pytest.raises(ValueError, match=r"multiple of 2 ranks times 1 parts\. Got 3\."):
        MixtureStream({"a": [1], "b": [2]}, mixture, batch_size=3, seed=0, rank=0, num_ranks=2)
    with pytest.raises(
        ValueError, match=r"`rank` must be in \[0, 1\] \(ranks count from 0\)\. Got 2"
    ):
        MixtureStream({"a": [1], "b": [2]}, mixture, batch_size=2, seed=0, rank=2, num_ranks=2)
    once = iter([1, 2])
    with pytest.raises(TypeError, match=r"source 'b' must give its rows again when it is iterated"):
        MixtureStream({"a": [1], "b": once}, mixture, batch_size=3, seed=0)
    with pytest.raises(
        ValueError, match=r"`training/a` must hold at least one example\. Got none\."
    ):
        MixtureStream({"a": [], "b": [1]}, mixture, batch_size=3, seed=0)


# Every kind of draws, in a loader that reads ahead, killed and resumed


def weighted() -> WeightedDraws:
    return WeightedDraws(np.ones(12), batch_size=4, seed=1, lag=8)


def selected() -> SelectionDraws:
    return SelectionDraws(Selection(np.arange(0, 12, 2), np.ones(6)), ROWS, batch_size=4, seed=1)


class Mixed(MixtureDraws):
    """Draws that move their mixture when a batch is consumed."""

    def __init__(self) -> None:
        self.mixture = moving()
        super().__init__(self.mixture, DOMAINS, batch_size=4, seed=1, lag=8)


def step(draws: Draws, number: int) -> None:
    """What a training loop does after a step: move the weights."""
    if isinstance(draws, WeightedDraws):
        weights = np.ones(12)
        weights[number % 12] = 30.0
        draws.set_weights(weights)
    if isinstance(draws, Mixed):
        draws.mixture.update(number)


def train(draws: Draws, start: int, end: int, workers: int) -> list[list[int]]:
    sampler = DrawBatchSampler(draws, num_batches=7)
    loader: Any = DataLoader(
        cast(Any, torch.arange(12)), batch_sampler=sampler, num_workers=workers
    )
    seen = []
    while start + len(seen) < end:
        for batch in sampler.follow(loader):
            seen.append(batch.tolist())
            step(draws, start + len(seen) - 1)
            if start + len(seen) == end:
                break
    return seen


@pytest.mark.parametrize("make", [weighted, selected, Mixed])
@pytest.mark.parametrize("workers", [(0, 0), (2, 3)], ids=["alone", "workers"])
def test_a_resumed_loader_draws_what_the_uninterrupted_one_draws(
    make: Callable[[], Any], workers: tuple[int, int]
) -> None:
    expected = train(make(), 0, 20, workers=0)
    first = make()
    seen = train(first, 0, 10, workers[0])
    state = through_json(first.state_dict())
    mixture = through_json(first.mixture.state_dict()) if isinstance(first, Mixed) else None
    second = make()
    if mixture is not None:
        second.mixture.load_state_dict(mixture)
    second.load_state_dict(state)
    assert seen + train(second, 10, 20, workers[1]) == expected


def test_two_ranks_and_micro_batches_share_each_batch_out() -> None:
    whole = [weighted().positions(batch) for batch in range(3)]
    for parts in (1, 2):
        shares = [
            list(DrawBatchSampler(weighted(), num_batches=3, rank=r, num_ranks=2, num_parts=parts))
            for r in range(2)
        ]
        for batch, rows in enumerate(whole):
            mine = [
                row for s in shares for p in s[batch * parts : (batch + 1) * parts] for row in p
            ]
            assert Counter(mine) == Counter(rows.tolist())


@pytest.mark.parametrize("make", [weighted, selected, Mixed])
def test_a_state_of_another_seed_is_refused(make: Callable[[], Any]) -> None:
    state = {**make().state_dict(), "seed": 7}
    with pytest.raises(ValueError, match=r"with the seed 1\. Got one of 7\. Make the draws"):
        make().load_state_dict(state)


def test_shares_must_be_even() -> None:
    with pytest.raises(ValueError, match=r"multiple of 3 ranks times 1 parts\. Got 4\."):
        DrawBatchSampler(weighted(), num_batches=1, num_ranks=3)
    with pytest.raises(ValueError, match=r"`rank` must be in \[0, 1\]\. Got 2\."):
        DrawBatchSampler(weighted(), num_batches=1, rank=2, num_ranks=2)


def test_epochs_follow_each_other_and_can_be_set() -> None:
    sampler = DrawSampler(weighted(), num_batches=2)
    first, second = list(sampler), list(sampler)
    assert first != second
    sampler.set_epoch(0)
    assert list(sampler) == first
    assert len(sampler) == len(first) == 8


# Streams


class Lines(IterableDataset):
    """A source that can only be read through."""

    def __init__(self, name: str, count: int) -> None:
        self.name, self.count = name, count

    def __iter__(self) -> Iterator[str]:
        return (f"{self.name}{number}" for number in range(self.count))


SOURCES = {"a": [f"a{n}" for n in range(6)], "b": Lines("b", 4), "c": Lines("c", 5)}


def stream(mixture: Moving, **settings: Any) -> MixtureStream:
    return MixtureStream(SOURCES, mixture, batch_size=4, seed=2, lag=12, **settings)


def follow(made: MixtureStream, mixture: Moving, start: int, end: int, workers: int) -> list[Any]:
    loader = DataLoader(made, batch_size=made.loader_batch_size, num_workers=workers)
    seen = []
    for number, batch in enumerate(loader, start=start):
        seen.append(batch)
        mixture.update(number)
        made.advance()
        if number == end - 1:
            break
    return seen


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_the_stream_is_the_same_with_any_number_of_workers(workers: int) -> None:
    alone, several = moving(), moving()
    expected = follow(stream(alone), alone, 0, 40, workers=0)
    assert follow(stream(several), several, 0, 40, workers) == expected


def test_the_stream_follows_the_mixture_and_takes_each_example_once_an_epoch() -> None:
    mixture = moving()
    made = stream(mixture)
    batches = follow(made, mixture, 0, 60, workers=2)
    rows = [row for batch in batches for row in batch]
    for name, size in (("a", 6), ("b", 4), ("c", 5)):
        own = [row for row in rows if row[0] == name]
        for epoch in range(len(own) // size):
            assert len(set(own[epoch * size : (epoch + 1) * size])) == size
    assert [row for row in rows if row[0] == "b"][:5] == ["b0", "b1", "b2", "b3", "b0"]
    # Thirteen batches are consumed at the move after step 12, to "a"; the lag is 12.
    share = Counter(row[0] for row in batches[13 + 12])
    assert share.most_common(1)[0][0] == "a"


def test_ranks_take_shares_of_one_stream_without_an_example_in_common() -> None:
    mixture = moving()
    expected = follow(stream(mixture), mixture, 0, 10, workers=0)
    shares = []
    for rank in range(2):
        own = moving()
        shares.append(follow(stream(own, rank=rank, num_ranks=2), own, 0, 10, workers=2))
    for whole, left, right in zip(expected, *shares, strict=True):
        assert list(left) + list(right) == list(whole)


@pytest.mark.parametrize("workers", [(0, 0), (2, 3), (3, 0)])
def test_a_resumed_stream_goes_on_where_it_was_stopped(workers: tuple[int, int]) -> None:
    whole = moving()
    expected = follow(stream(whole), whole, 0, 30, workers=0)
    mixture = moving()
    made = stream(mixture)
    seen = follow(made, mixture, 0, 14, workers[0])
    saved = through_json({"stream": made.state_dict(), "mixture": mixture.state_dict()})
    mixture = moving()
    mixture.load_state_dict(saved["mixture"])
    made = stream(mixture)
    made.load_state_dict(saved["stream"])
    assert seen + follow(made, mixture, 14, 30, workers[1]) == expected


def test_a_stream_ends_where_it_is_told_to_and_goes_on_in_the_next_epoch() -> None:
    made = MixtureStream(
        {"a": ROWS}, FixedMixture(("a",)), batch_size=4, seed=0, num_batches=3, num_parts=2
    )
    assert made.loader_batch_size == 2
    assert sorted(made) == ROWS
    assert sorted(made) == ROWS
    made.set_epoch(0)
    again = [
        row for batch in DataLoader(made, batch_size=2, num_workers=2) for row in batch.tolist()
    ]
    made.set_epoch(0)
    assert again == list(made)


def test_a_mixture_that_moves_needs_to_know_what_was_consumed() -> None:
    with pytest.raises(ValueError, match=r"Call `advance` after each batch"):
        for _ in DataLoader(stream(moving()), batch_size=4):
            pass
