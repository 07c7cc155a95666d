"""One step of a mixture towards the domains that point where the target points."""

import numpy as np
import pytest

from projections import NonFiniteError
from selection import AlignmentStep, cosine_alignments, mean_norm_alignments

UNIFORM = np.full(4, 0.25)
ALIGNMENTS = np.array([0.3, -0.2, 0.0, 0.9])
ROUNDING = 1e-12  # a few operations in float64


def test_adding_a_constant_to_all_alignments_changes_nothing() -> None:
    step = AlignmentStep(step_size=2.0, average=0.5, floor=0.1)
    moved = step(UNIFORM, ALIGNMENTS)
    np.testing.assert_allclose(step(UNIFORM, ALIGNMENTS + 7), moved, rtol=ROUNDING)


def test_weights_grow_with_their_alignment_and_sum_to_one() -> None:
    moved = AlignmentStep()(UNIFORM, ALIGNMENTS)
    assert np.argsort(moved).tolist() == np.argsort(ALIGNMENTS).tolist()
    np.testing.assert_allclose(moved, np.exp(ALIGNMENTS) / np.exp(ALIGNMENTS).sum(), rtol=ROUNDING)


def test_averaging_moves_by_its_share_of_the_way() -> None:
    full = AlignmentStep()(UNIFORM, ALIGNMENTS)
    part = AlignmentStep(average=0.25)(UNIFORM, ALIGNMENTS)
    np.testing.assert_allclose(part - UNIFORM, 0.25 * (full - UNIFORM), rtol=1e-9)


def test_equal_or_zero_gradients_leave_the_mixture_where_it_is() -> None:
    weights = np.array([0.7, 0.3])
    for rows in (np.ones((2, 3)), np.zeros((2, 3))):
        for align in (cosine_alignments, mean_norm_alignments):
            moved = AlignmentStep()(weights, align(rows, np.ones(3)))
            np.testing.assert_allclose(moved, weights, rtol=ROUNDING)


def test_one_domain_keeps_everything() -> None:
    assert AlignmentStep(floor=0.2)(np.ones(1), np.array([5.0])) == pytest.approx(1)


def test_many_steps_stay_finite_and_above_the_floor() -> None:
    step, weights = AlignmentStep(step_size=1.0, floor=0.04), UNIFORM
    for _ in range(10_000):
        weights = step(weights, np.array([1.0, 0.0, -1.0, 0.0]))
    assert weights.sum() == pytest.approx(1)
    assert weights.min() >= 0.01 * (1 - ROUNDING) and weights.argmax() == 0


def test_mixture_of_quadratics_moves_to_the_domain_of_the_target() -> None:
    centers, target = np.array([[0.0, 0.0], [4.0, 0.0]]), np.array([4.0, 0.0])
    position, weights = np.array([1.0, 0.5]), np.full(2, 0.5)
    for _ in range(200):
        gradients = position - centers
        weights = AlignmentStep(step_size=0.2)(
            weights, mean_norm_alignments(gradients, position - target)
        )
        position = position - 0.1 * weights @ gradients
    assert weights[1] > 0.95
    np.testing.assert_allclose(position, target, atol=0.1)


def test_cosine_ignores_lengths_and_the_mean_norm_keeps_them() -> None:
    rows, target = np.array([[1.0, 0.0], [10.0, 0.0]]), np.array([3.0, 0.0])
    np.testing.assert_allclose(cosine_alignments(rows, target), [1, 1], rtol=ROUNDING)
    np.testing.assert_allclose(mean_norm_alignments(rows, target), [2 / 11, 20 / 11], rtol=ROUNDING)


def test_weights_that_are_no_mixture_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"`weights` must be positive and sum to 1\. Got \[1\.0, 0"
    ):
        AlignmentStep()(np.array([1.0, 0.0]), np.zeros(2))


def test_alignment_that_is_not_finite_is_refused() -> None:
    with pytest.raises(NonFiniteError, match=r"every alignment must be finite"):
        AlignmentStep()(np.array([0.5, 0.5]), np.array([np.nan, 0.0]))


def test_share_out_of_range_is_refused() -> None:
    with pytest.raises(ValueError, match=r"`floor` must be in \[0, 1\]\. Got 2"):
        AlignmentStep(floor=2)
