"""Weights of examples by their losses: worked values, invariances, ranks, micro-batches."""

import json
import logging
import subprocess
import sys
from math import e, exp
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from two_ranks import GROUPS, gradient, losses_of, make_model, step

from selection import (
    ConstantTemperature,
    CosineTemperature,
    EffectiveSampleSize,
    FencedRange,
    GroupDRO,
    History,
    LossReweighter,
    QuantileRange,
    Reweighting,
    RunningReweighting,
    StepTemperature,
    causal_losses,
    causal_token_losses,
    classification_losses,
    extremes,
    full_range,
    kl_dro,
    linupper,
    quadratic,
    regression_losses,
    token_losses,
    uniform,
    upper,
)

CURVES = [linupper, quadratic, extremes, upper, kl_dro, uniform]
ON_A_RANGE = [linupper, quadratic, extremes, upper]
ROUNDING = 1e-12  # float64, a few dozen operations
FLOAT32 = 1e-6
names = lambda curve: curve.__name__  # noqa: E731
batches = st.lists(st.integers(-50, 50), min_size=1, max_size=12).map(
    lambda values: torch.tensor(values, dtype=torch.float64)
)


def weights(losses: Tensor, curve=linupper, temperature=1.0, loss_range=full_range) -> Tensor:
    chosen = LossReweighter(curve=curve, temperature=temperature, loss_range=loss_range)
    return chosen.weights(losses).values


@pytest.mark.parametrize(
    ("curve", "scores"),
    [
        (linupper, [0, 0.5, 1, 1, 1]),
        (quadratic, [0, 0.75, 1, 0.75, 0]),
        (extremes, [1, 0.5, 0, 0.5, 1]),
        (upper, [0, 0.25, 0.5, 0.75, 1]),
        (kl_dro, [0, 1, 2, 3, 4]),
        (uniform, [0, 0, 0, 0, 0]),
    ],
    ids=["linupper", "quadratic", "extremes", "upper", "kl_dro", "uniform"],
)
@pytest.mark.parametrize("temperature", [1.0, 0.4])
def test_worked_values(curve, scores: list[float], temperature: float) -> None:
    expected = torch.tensor([exp(score / temperature) for score in scores])
    found = weights(torch.arange(5.0), curve, temperature)
    torch.testing.assert_close(found, expected / expected.sum())


@pytest.mark.parametrize("curve", CURVES, ids=names)
@given(losses=batches, seed=st.integers(0, 100))
@settings(deadline=None, max_examples=15)
def test_weights_sum_to_one_and_follow_a_permutation(curve, losses: Tensor, seed: int) -> None:
    order = torch.randperm(len(losses), generator=torch.Generator().manual_seed(seed))
    found = weights(losses, curve, loss_range=FencedRange())
    assert abs(float(found.sum()) - 1) < ROUNDING
    moved = weights(losses[order], curve, loss_range=FencedRange())
    torch.testing.assert_close(moved, found[order], atol=ROUNDING, rtol=0)


@pytest.mark.parametrize(
    "loss_range", [full_range, FencedRange(), QuantileRange()], ids=["full", "fenced", "quantile"]
)
@pytest.mark.parametrize("curve", ON_A_RANGE, ids=names)
@given(losses=batches, scale=st.sampled_from([0.25, 2.0, 1024.0]), shift=st.integers(-8, 8))
@settings(deadline=None, max_examples=15)
def test_shifting_and_scaling_all_losses_changes_nothing(
    curve, loss_range, losses: Tensor, scale: float, shift: int
) -> None:
    moved = weights(losses * scale + shift, curve, loss_range=loss_range)
    expected = weights(losses, curve, loss_range=loss_range)
    torch.testing.assert_close(moved, expected, atol=1e-9, rtol=0)


def test_kl_dro_is_unchanged_by_a_shift_and_follows_a_scale_with_its_temperature() -> None:
    losses = torch.tensor([0.0, 1.0, 5.0], dtype=torch.float64)
    expected = weights(losses, kl_dro)
    torch.testing.assert_close(weights(losses + 7, kl_dro), expected)
    torch.testing.assert_close(weights(losses * 3, kl_dro, 3.0), expected)


@pytest.mark.parametrize("curve", CURVES, ids=names)
def test_equal_losses_and_a_large_temperature_are_uniform(curve) -> None:
    fifth = torch.full((5,), 0.2)
    torch.testing.assert_close(weights(torch.full((5,), 3.0), curve), fifth)
    spread = weights(torch.arange(5.0), curve, 1e8)
    torch.testing.assert_close(spread, fifth)


@pytest.mark.parametrize("curve", CURVES, ids=names)
def test_one_example_has_all_the_weight_and_no_example_none(curve) -> None:
    assert weights(torch.tensor([2.5]), curve).tolist() == [1.0]
    assert weights(torch.zeros(0), curve).tolist() == []


def test_a_small_temperature_keeps_the_best_scores_and_nothing_overflows() -> None:
    found = weights(torch.arange(5.0), linupper, 1e-6)
    torch.testing.assert_close(found, torch.tensor([0, 0, 1, 1, 1]) / 3)
    assert weights(torch.tensor([0.0, 3e38]), kl_dro, 1e-30).tolist() == [0, 1]


def test_linupper_gives_losses_above_the_middle_equal_weights_of_bounded_ratio() -> None:
    found = weights(torch.tensor([0.0, 5.1, 7.0, 10.0]), linupper, 0.4)
    assert found[1] == found[2] == found[3]
    assert abs(float(found.max() / found.min()) - e ** (1 / 0.4)) < 1e-4


def test_uniform_is_uniform_whatever_the_losses() -> None:
    assert weights(torch.tensor([0.0, 1.0, 100.0, 7.0]), uniform).tolist() == [0.25] * 4


def test_a_callable_is_a_curve() -> None:
    found = weights(torch.tensor([1.0, 2.0, 3.0]), lambda losses, low, high: -losses)
    torch.testing.assert_close(found, torch.tensor([-1.0, -2.0, -3.0]).softmax(0))


def test_a_curve_that_returns_one_number_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"`curve` must return one score a loss, \(3,\)\. Got \(\)"
    ):
        weights(torch.arange(3.0), lambda losses, low, high: losses.mean())


def test_one_outlier_does_not_silence_the_rest() -> None:
    usual = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0])
    spoilt = torch.cat([usual, torch.tensor([1e6])])
    published = weights(spoilt, linupper, 0.4)[:-1]
    assert published.max() / published.min() < 1.01  # all look alike: the defect
    robust = weights(spoilt, linupper, 0.4, FencedRange())[:-1]
    assert robust.max() / robust.min() > 2
    assert weights(spoilt, kl_dro, 1.0)[-1] == 1
    assert weights(spoilt, kl_dro, 1.0, FencedRange())[-1] < 0.99


def test_without_outliers_the_fences_change_nothing() -> None:
    losses = torch.linspace(0, 1, 20, dtype=torch.float64) ** 2
    for curve in CURVES:
        assert torch.equal(weights(losses, curve), weights(losses, curve, 1.0, FencedRange()))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("curve", CURVES, ids=names)
def test_a_loss_that_is_not_finite_has_no_weight_is_named_and_changes_no_other(curve, bad) -> None:
    losses = torch.tensor([0.0, bad, 1.0, 2.0])
    found = LossReweighter(curve=curve).weights(losses)
    assert found.values[1] == 0
    assert found.excluded.tolist() == [False, True, False, False]
    assert found.values[[0, 2, 3]].equal(weights(losses[[0, 2, 3]], curve))


def test_without_a_finite_loss_there_is_no_weight() -> None:
    found = LossReweighter().weights(torch.tensor([torch.nan, torch.inf]))
    assert found.values.tolist() == [0, 0]
    assert found.effective_size == 0


def test_half_precision_is_weighed_in_float32() -> None:
    found = weights(torch.arange(5.0).bfloat16())
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, weights(torch.arange(5.0)))


# Temperatures


def test_warm_up_is_uniform_and_schedules_count_from_its_end() -> None:
    chosen = LossReweighter(temperature=StepTemperature({0: 1.0, 2: 0.4}), warmup=3)
    losses = torch.arange(5.0)
    assert chosen.weights(losses, step=2).values.tolist() == pytest.approx([0.2] * 5)
    assert [float(chosen.weights(losses, step=s).temperature) for s in (2, 3, 4, 5)] == (
        pytest.approx([torch.inf, 1.0, 1.0, 0.4])
    )


@given(share=st.floats(0.05, 0.95), seed=st.integers(0, 20))
@settings(deadline=None, max_examples=25)
def test_the_temperature_meets_an_effective_sample_size(share: float, seed: int) -> None:
    losses = torch.randn(200, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    chosen = LossReweighter(curve=upper, temperature=EffectiveSampleSize(share))
    found = chosen.weights(losses)
    assert float(found.effective_size) == pytest.approx(share * 200, rel=2e-3)


def test_an_effective_sample_size_below_the_ties_takes_the_ties() -> None:
    chosen = LossReweighter(curve=linupper, temperature=EffectiveSampleSize(0.2))
    found = chosen.weights(torch.arange(10.0))
    torch.testing.assert_close(found.values, torch.tensor([0.0] * 5 + [0.2] * 5))
    equal = chosen.weights(torch.ones(4))
    torch.testing.assert_close(equal.values, torch.full((4,), 0.25))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ConstantTemperature(0.0), r"`value` must be above 0\. Got 0\.0\."),
        (lambda: LossReweighter(temperature=-1), r"`value` must be above 0\. Got -1\.0\."),
        (lambda: StepTemperature({5: 1.0}), r"`values` must begin at step 0\. Got the steps \[5\]"),
        (lambda: StepTemperature({0: 0.0}), r"`values\[0\]` must be above 0"),
        (
            lambda: CosineTemperature(start=1, end=0, num_steps=3),
            r"`end` must be above 0\. Got 0\.",
        ),
        (lambda: EffectiveSampleSize(1.0), r"`share` must be in \(0, 1\)\. Got 1\.0\."),
        (lambda: LossReweighter(warmup=-1), r"`warmup` must be at least 0\. Got -1\."),
        (lambda: FencedRange(reach=-1), r"`reach` must be at least 0\. Got -1\."),
        (lambda: QuantileRange(low=2.0), r"`low` must be in \[0, 1\] \(a quantile\)\. Got 2\.0\."),
        (lambda: QuantileRange(low=0.5, high=0.1), r"`high` must be in \[0\.5, 1\]"),
        (lambda: Reweighting(LossReweighter(), record_every=0), r"`record_every` must be at least"),
        (lambda: GroupDRO(num_groups=0), r"`num_groups` must be at least 1\. Got 0\."),
        (
            lambda: GroupDRO(num_groups=2, adjustment=1.0),
            r"`group_sizes` must hold 2 sizes, since `adjustment` is set\. Got None\.",
        ),
    ],
)
def test_arguments_out_of_range_are_refused(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


# In training


def test_the_gradient_is_the_weighted_mean_of_the_gradients_of_the_examples() -> None:
    model = make_model()
    reweighting = Reweighting(LossReweighter(curve=linupper, temperature=0.4))
    reweighting(losses_of(model, slice(0, 8))).backward()
    found = gradient(model)
    expected = torch.zeros_like(found)
    for row, weight in enumerate(reweighting.last.values):
        model.zero_grad()
        losses_of(model, slice(row, row + 1)).sum().backward()
        expected += weight * gradient(model)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("num_parts", [1, 4])
def test_a_window_of_micro_batches_has_the_gradient_of_one_batch(num_parts: int) -> None:
    model = make_model()
    Reweighting(LossReweighter(temperature=0.4))(losses_of(model, slice(0, 8))).backward()
    expected = gradient(model)
    model.zero_grad()
    reweighting = Reweighting(LossReweighter(temperature=0.4))
    parts = [slice(start, start + 8 // num_parts) for start in range(0, 8, 8 // num_parts)]
    with torch.no_grad():
        shares = reweighting.window([losses_of(model, part) for part in parts])
    for part, share in zip(parts, shares, strict=True):
        reweighting.weighted(losses_of(model, part), share).backward()
    torch.testing.assert_close(gradient(model), expected)
    assert float(sum(share.sum() for share in shares)) == pytest.approx(1)
    assert reweighting.step == 1


def test_tokens_compete_over_the_whole_batch_and_uniform_is_their_mean() -> None:
    logits = torch.randn(3, 5, 7, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([[0, 1, 2, 3, 4], [5, 6, 0, -100, -100], [-100] * 5])
    losses, counted = causal_token_losses(logits, labels)
    assert counted.sum() == 6
    reweighting = Reweighting(LossReweighter(curve=uniform))
    expected = torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
    )
    torch.testing.assert_close(reweighting(losses, counted), expected)
    (weights_of_tokens,) = Reweighting(LossReweighter()).window([losses], [counted])
    assert weights_of_tokens.shape == losses.shape
    assert (weights_of_tokens[~counted] == 0).all()
    assert float(weights_of_tokens.sum()) == pytest.approx(1)


def test_a_text_without_labels_does_not_count() -> None:
    logits = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([[0, 1, 2, 3], [4, -100, -100, -100], [0, 4, 1, -100]])
    losses, counted = causal_losses(logits, labels)
    assert losses[1] == 0
    reweighting = Reweighting(LossReweighter(curve=uniform))
    torch.testing.assert_close(reweighting(losses, counted), losses[[0, 2]].mean())
    assert not reweighting.last.excluded.any()


def test_losses_of_other_tasks() -> None:
    labels = torch.tensor([[0, 1], [1, -100]])
    losses, counted = token_losses(torch.zeros(2, 2, 4), labels)
    torch.testing.assert_close(losses.exp(), torch.tensor([[4.0, 4.0], [4.0, 1.0]]))
    assert counted.tolist() == [[True, True], [True, False]]
    losses, counted = classification_losses(torch.zeros(2, 2), torch.tensor([1, -100]))
    assert counted.tolist() == [True, False]
    losses, counted = regression_losses(torch.zeros(2, 3), torch.ones(2, 3) * 2)
    assert losses.tolist() == [4, 4]


def test_a_nan_is_named_in_the_log_and_the_others_are_trained_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    losses = torch.tensor([1.0, torch.nan, 2.0], requires_grad=True)
    reweighting = Reweighting(LossReweighter())
    with caplog.at_level(logging.WARNING):
        loss = reweighting(losses)
    assert "step 0: 1 of 3 losses are not finite and have the weight 0, at the places [1]" in (
        caplog.text
    )
    loss.backward()
    assert losses.grad is not None
    assert losses.grad[1] == 0
    assert float(losses.grad.sum()) == pytest.approx(1)
    assert reweighting.history.table().column("excluded").to_pylist() == [1.0]


def test_a_state_goes_through_json_and_the_run_goes_on_with_the_same_weights() -> None:
    with pytest.raises(ValueError, match=r"weights are known after the first step"):
        _ = Reweighting(LossReweighter()).last

    def fresh() -> Reweighting:
        schedule = CosineTemperature(start=2.0, end=0.1, num_steps=6)
        return Reweighting(LossReweighter(temperature=schedule, warmup=1), record_every=2)

    random = torch.Generator().manual_seed(0)
    stream = [torch.rand(6, generator=random) for _ in range(8)]
    whole = fresh()
    expected = [float(whole(losses)) for losses in stream]
    first = fresh()
    found = [float(first(losses)) for losses in stream[:3]]
    second = fresh()
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    found += [float(second(losses)) for losses in stream[3:]]
    assert found == expected
    assert second.history.table().equals(whole.history.table())
    assert whole.history.table().column("step").to_pylist() == [0, 2, 4, 6]


@pytest.fixture(scope="module")
def of_two_ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Tensor]]:
    folder = tmp_path_factory.mktemp("ranks")
    program = [sys.executable, str(Path(__file__).parent / "two_ranks.py")]
    running = [
        subprocess.Popen([*program, str(rank), str(folder)], stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    for process in running:
        _, errors = process.communicate(timeout=100)
        assert process.returncode == 0, errors
    return [torch.load(folder / f"rank{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("name", ["gradient", "weights", "group gradient", "group weights"])
def test_two_ranks_equal_one(of_two_ranks: list[dict[str, Tensor]], name: str) -> None:
    expected = step(make_model(), slice(0, 8))[name]
    for found in of_two_ranks:
        torch.testing.assert_close(found[name], expected, atol=FLOAT32, rtol=1e-5)


# The losses of late


def test_where_the_window_is_what_is_remembered_its_last_part_has_the_exact_weights() -> None:
    losses = torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0, 9.0])
    exact = weights(losses, linupper, 0.4, FencedRange())
    running = RunningReweighting(LossReweighter(temperature=0.4), num_parts=3, num_remembered=6)
    for part in losses.split(2):
        (found,) = running.window([part])
    torch.testing.assert_close(found, exact[4:])
    assert running.step == 1


def test_running_weights_sum_to_one_on_average_even_one_example_at_a_time() -> None:
    random = torch.Generator().manual_seed(0)
    running = RunningReweighting(LossReweighter(curve=upper, temperature=0.4), num_parts=4)
    sums, single = [], []
    for _ in range(400):
        parts = [running.window([loss])[0] for loss in torch.rand(4, 1, generator=random)]
        sums.append(float(torch.cat(parts).sum()))
        single += [float(part) for part in parts]
    assert sum(sums) / len(sums) == pytest.approx(1, abs=0.03)
    assert max(single) > 4 * min(single)  # normalised one by one, all would be alike
    assert running.step == 400


def test_running_weights_go_on_after_a_state_and_leave_out_nan() -> None:
    def fresh() -> RunningReweighting:
        return RunningReweighting(LossReweighter(), num_parts=2, num_remembered=5)

    random = torch.Generator().manual_seed(1)
    stream = [torch.rand(3, generator=random) for _ in range(7)]
    stream[1][0] = torch.nan
    whole = fresh()
    expected = [whole.window([losses])[0] for losses in stream]
    first, second = fresh(), fresh()
    found = [first.window([losses])[0] for losses in stream[:3]]
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    found += [second.window([losses])[0] for losses in stream[3:]]
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert expected[1][0] == 0
    assert whole.step == 3
    nothing = fresh().window([torch.tensor([torch.nan])])[0]
    assert nothing.tolist() == [0]


# Groups


def test_the_worst_group_gains_weight_and_its_examples_share_it() -> None:
    dro = GroupDRO(num_groups=3, step_size=0.1)
    model = make_model()
    losses = losses_of(model, slice(0, 8))
    dro(losses, GROUPS)
    means = torch.stack([losses[group == GROUPS].mean() for group in range(3)]).detach()
    torch.testing.assert_close(dro.weights, (0.1 * means).softmax(0))
    loss = dro(losses, GROUPS)
    torch.testing.assert_close(loss, (dro.weights * means).sum())


def test_absent_groups_keep_their_proportion_and_present_weights_sum_to_one() -> None:
    dro = GroupDRO(num_groups=3, step_size=1.0)
    losses = torch.tensor([2.0, 1.0], requires_grad=True)
    dro(losses, torch.tensor([0, 0])).backward()
    assert losses.grad is not None
    assert float(losses.grad.sum()) == pytest.approx(1)
    assert dro.weights[1] == dro.weights[2] > 0


def test_the_adjustment_favours_small_groups() -> None:
    sizes = torch.tensor([100, 4])
    dro = GroupDRO(num_groups=2, step_size=1.0, adjustment=1.0, group_sizes=sizes)
    dro(torch.zeros(2), torch.tensor([0, 1]))
    torch.testing.assert_close(dro.weights, torch.tensor([0.1, 0.5]).softmax(0))


def test_ten_thousand_steps_stay_finite_and_a_nan_is_left_out() -> None:
    dro = GroupDRO(num_groups=2, step_size=1.0)
    for _ in range(10_000):
        dro(torch.tensor([1.0, torch.nan, 0.0]), torch.tensor([0, 0, 1]))
    assert dro.weights.isfinite().all()
    again = GroupDRO(num_groups=2)
    again.load_state_dict(json.loads(json.dumps(dro.state_dict())))
    assert torch.equal(again.weights, dro.weights)
    assert again.step == 10_000
    for _ in range(20_000):
        dro(torch.tensor([0.0, 1.0]), torch.tensor([0, 1]))
    assert dro.weights[1] > 0.99  # not lost for good


def test_a_loss_that_is_reduced_is_refused() -> None:
    with pytest.raises(ValueError, match=r"`losses` must hold one loss an example"):
        Reweighting(LossReweighter())(torch.tensor(2.0))


def test_groups_out_of_range_are_refused() -> None:
    dro = GroupDRO(num_groups=2)
    with pytest.raises(ValueError, match=r"`groups` must have one entry a loss, 3\. Got 2\."):
        dro(torch.zeros(3), torch.tensor([0, 1]))
    with pytest.raises(ValueError, match=r"`groups` must be in \[0, 1\]\. Got 0 to 2\."):
        dro(torch.zeros(2), torch.tensor([0, 2]))
    with pytest.raises(ValueError, match=r"the state must have 2 groups\. Got 1\."):
        dro.load_state_dict({"step": 0, "logs": [0.0], "history": {}})


# History


def test_a_history_is_a_table_and_a_plot() -> None:
    history = History()
    history.add(0, {"a": 0.5})
    history.add(5, {"a": torch.tensor(0.25), "b": 1.0})
    assert history.table().to_pydict() == {"step": [0, 5], "a": [0.5, 0.25], "b": [None, 1.0]}
    figure = history.plot(["a"], label="share")
    assert figure.axes[0].get_ylabel() == "share"
    with pytest.raises(ValueError, match=r"`names` must be of \['a', 'b'\]\. Got \['c'\] besides"):
        history.plot(["c"])
