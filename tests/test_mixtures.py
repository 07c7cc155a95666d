"""Mixtures over domains: one rule that moves weights, and what all mixtures keep."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from projections import NonFiniteError, StoreMismatchError
from selection import FixedMixture, MirrorDescent, Mixture, OnlineMixture

ROUNDING = 1e-12  # a few operations in float64
UNIFORM = np.full(4, 0.25)
SIGNAL = np.array([0.3, -0.2, 0.0, 0.9])
RULES = {
    "plain": MirrorDescent(step_size=2.0),
    "averaged": MirrorDescent(step_size=2.0, average=0.3),
    "floor": MirrorDescent(average=0.5, floor=0.1),
    "deviation": MirrorDescent(scale="deviation", floor=0.01),
    "rank": MirrorDescent(scale="rank"),
    "raw": MirrorDescent(average=0.2, start="raw", floor=0.05),
}
rules = pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
signals = st.lists(st.floats(-50, 50), min_size=4, max_size=4).map(np.array)


def walk(rule: MirrorDescent, start: np.ndarray, path: list[np.ndarray]) -> np.ndarray:
    state = rule.begin(start)
    for signal in path:
        state = rule.step(state, signal)
    return state.weights


@rules
def test_adding_a_constant_to_all_signals_changes_nothing(rule: MirrorDescent) -> None:
    moved = walk(rule, UNIFORM, [SIGNAL, SIGNAL])
    np.testing.assert_allclose(walk(rule, UNIFORM, [SIGNAL + 7, SIGNAL - 3]), moved, rtol=1e-11)


@rules
@given(path=st.lists(signals, min_size=1, max_size=4), order=st.permutations(range(4)))
@settings(max_examples=25, deadline=None)
def test_weights_sum_to_one_and_follow_a_permutation(
    rule: MirrorDescent, path: list[np.ndarray], order: list[int]
) -> None:
    start = np.array([0.1, 0.2, 0.3, 0.4])
    weights = walk(rule, start, path)
    assert weights.sum() == pytest.approx(1, abs=ROUNDING) and (weights >= 0).all()
    permuted = walk(rule, start[order], [signal[order] for signal in path])
    np.testing.assert_allclose(permuted, weights[order], rtol=1e-9, atol=ROUNDING)


@rules
def test_weights_grow_with_their_signal(rule: MirrorDescent) -> None:
    assert np.argsort(walk(rule, UNIFORM, [SIGNAL])).tolist() == np.argsort(SIGNAL).tolist()


def test_one_step_is_the_softmax_of_the_signal() -> None:
    expected = np.exp(SIGNAL) / np.exp(SIGNAL).sum()
    np.testing.assert_allclose(walk(MirrorDescent(), UNIFORM, [SIGNAL]), expected, rtol=ROUNDING)


def test_averaging_and_floor_are_the_formula_of_the_docstring() -> None:
    start = np.array([0.1, 0.2, 0.3, 0.4])
    stepped = start * np.exp(2 * SIGNAL)
    stepped /= stepped.sum()
    expected = 0.9 * (0.7 * start + 0.3 * stepped) + 0.1 / 4
    rule = MirrorDescent(step_size=2, average=0.3, floor=0.1)
    np.testing.assert_allclose(walk(rule, start, [SIGNAL]), expected, rtol=ROUNDING)


def test_raw_steps_accumulate_where_averaged_ones_restart() -> None:
    raw = MirrorDescent(average=0.1, start="raw")
    state = raw.begin(UNIFORM)
    for _ in range(3):
        state = raw.step(state, SIGNAL)
    expected = np.exp(3 * SIGNAL) / np.exp(3 * SIGNAL).sum()
    np.testing.assert_allclose(np.exp(state.raw_logs), expected, rtol=ROUNDING)


@rules
def test_ten_thousand_steps_of_plus_one_stay_finite(rule: MirrorDescent) -> None:
    state = rule.begin(UNIFORM)
    for _ in range(10_000):
        state = rule.step(state, np.array([1.0, 0.0, 0.0, 0.0]))
    assert np.isfinite(state.logs).all()
    assert state.weights.sum() == pytest.approx(1, abs=ROUNDING)
    assert state.weights.min() >= rule.floor / 4 * (1 - ROUNDING)


def test_a_weight_that_became_tiny_comes_back() -> None:
    up, down = np.array([800.0, 0.0]), np.array([-800.0, 0.0])
    np.testing.assert_allclose(walk(MirrorDescent(), np.full(2, 0.5), [up, up, down, down]), 0.5)


@rules
def test_one_domain_keeps_everything(rule: MirrorDescent) -> None:
    assert walk(rule, np.ones(1), [np.array([5.0])]) == pytest.approx(1)


def test_a_domain_without_a_signal_keeps_its_weight() -> None:
    rule, known = MirrorDescent(), np.array([True, True, False, True])
    signal = np.where(known, SIGNAL, np.nan)
    weights = rule.step(rule.begin(UNIFORM), signal, known=known).weights
    assert weights[2] == pytest.approx(0.25)
    assert np.argsort(weights[known]).tolist() == np.argsort(SIGNAL[known]).tolist()
    nobody = rule.step(rule.begin(UNIFORM), signal, known=np.zeros(4, dtype=bool))
    np.testing.assert_allclose(nobody.weights, UNIFORM, rtol=ROUNDING)


def test_clipping_bounds_a_signal_and_a_warmup_only_counts() -> None:
    rule = MirrorDescent(clip=(0, 5), warmup=1)
    state = rule.step(rule.begin(np.full(2, 0.5)), np.array([100.0, 0.0]))
    np.testing.assert_array_equal(state.weights, 0.5)
    state = rule.step(state, np.array([100.0, -100.0]))
    np.testing.assert_allclose(np.diff(state.logs), -5, rtol=ROUNDING)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_signal_that_is_not_finite_is_refused_by_the_name_of_its_domain(value: float) -> None:
    rule = MirrorDescent()
    with pytest.raises(NonFiniteError, match=rf"must be finite. Got \{{'news': {value}\}}"):
        rule.step(rule.begin(UNIFORM[:2] * 2), np.array([0.0, value]), names=("code", "news"))


def test_arguments_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match=r"`floor` must be in \[0, 1\]. Got 2"):
        MirrorDescent(floor=2)
    with pytest.raises(ValueError, match=r"`clip` must be two rising numbers. Got \(5, 0\)"):
        MirrorDescent(clip=(5, 0))
    with pytest.raises(ValueError, match=r"weights to start from must be positive"):
        MirrorDescent().begin([1.0, 0.0])
    with pytest.raises(ValueError, match=r"must sum to 1. Got \[0.5, 0.2\], of sum 0.7"):
        MirrorDescent().begin([0.5, 0.2])


def test_a_fixed_mixture_hands_out_copies_and_has_one_row_of_history() -> None:
    mixture = FixedMixture(("a", "b"), [0.75, 0.25])
    assert isinstance(mixture, Mixture) and mixture.weights.dtype == np.float64
    mixture.weights[0] = 9
    np.testing.assert_array_equal(mixture.weights, [0.75, 0.25])
    assert mixture.history.ids.tolist() == [-1]
    assert not isinstance(mixture, OnlineMixture)


def test_the_weights_over_time_are_a_table_and_a_plot() -> None:
    history = FixedMixture(("a", "b"), [0.75, 0.25]).weight_history
    assert history.table().to_pydict() == {"step": [-1], "a": [0.75], "b": [0.25]}
    assert len(history.plot().axes[0].lines) == 2


def test_a_state_survives_json_and_refuses_other_domains() -> None:
    mixture, other = FixedMixture(("a", "b"), [0.75, 0.25]), FixedMixture(("a", "b"))
    other.load_state_dict(json.loads(json.dumps(mixture.state_dict(), allow_nan=False)))
    np.testing.assert_array_equal(other.weights, mixture.weights)
    with pytest.raises(StoreMismatchError, match=r"same domains in the same order. It has \['b'\]"):
        FixedMixture(["b"]).load_state_dict(mixture.state_dict())


def test_names_and_weights_of_a_mixture_must_fit() -> None:
    with pytest.raises(ValueError, match=r"one or more different names. Got \['a', 'a'\]"):
        FixedMixture(("a", "a"))
    with pytest.raises(ValueError, match=r"one entry for each of the 2 domains. Got the shape"):
        FixedMixture(("a", "b"), [1.0])
