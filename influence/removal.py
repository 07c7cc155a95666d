"""What removing examples did, beside what scores said it would do.

Letters: ``n`` training examples, ``q`` queries, ``r`` removed examples.

All models must be retrained with the starts and the orders of the model they are compared
with; else the noise of training hides what one example does. `retrained_losses` does so for
subsets that are given together: let a row of ones be among them.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int8

from influence.estimates import Estimate, rank_correlations, refuse_constant
from projections import check_between


def without_top(
    scores: Float[np.ndarray, "q n"], *, share: float = 0.01
) -> Int8[np.ndarray, "q n"]:
    """Return for each query the examples without the most helpful ones, as 0 and 1.

    Args:
        scores: Influence of each example on each query; larger is more helpful.
        share: Which part is removed, at least one example.

    Example:
        >>> without_top(np.array([[0.1, 3.0, 2.0, 0.0]]), share=0.5)
        array([[1, 0, 0, 1]], dtype=int8)
    """
    check_between("share", share, 0, 1)
    count = max(1, round(share * scores.shape[1]))
    masks = np.ones(scores.shape, dtype=np.int8)
    top = np.argsort(-scores, axis=1, kind="stable")[:, :count]
    np.put_along_axis(masks, top, 0, axis=1)
    return masks


def quantile_drop(without: Float[np.ndarray, "..."], whole: Float[np.ndarray, " q"]) -> Estimate:
    """Return how much the loss of a query rises without the examples that helped it most.

    Args:
        without: Losses of all queries under the model retrained for each, ``q q``,
            of which the diagonal is looked at.
        whole: Losses of the queries under the model of all examples.

    Raises:
        ValueError: Shapes do not fit.

    Example:
        >>> quantile_drop(np.array([[3.0, 1.0], [1.0, 2.0]]), np.array([1.0, 1.0])).mean
        1.5

    References:
        Bae et al., Training data attribution via approximate unrolling (2024),
        arXiv:2405.12186, for counterfactual removal of the top examples.
    """
    count = len(whole)
    if without.shape != (count, count):
        raise ValueError(
            f"`without` must hold one model for each of {count} queries. Got {without.shape}."
        )
    return Estimate.over(np.diagonal(without) - whole)


def leave_one_out(num_examples: int, removed: Sequence[int]) -> Int8[np.ndarray, "r n"]:
    """Return the examples without each of some, as 0 and 1.

    Args:
        num_examples: Number ``n`` of training examples.
        removed: Positions of those that are left out, one at a time.

    Example:
        >>> leave_one_out(3, [2]).tolist()
        [[1, 1, 0]]
    """
    masks = np.ones((len(removed), num_examples), dtype=np.int8)
    masks[np.arange(len(removed)), list(removed)] = 0
    return masks


def leave_one_out_correlation(
    scores: Float[np.ndarray, "q n"],
    removed: Sequence[int],
    without: Float[np.ndarray, "..."],
) -> Estimate:
    """Return the rank correlation of scores with the losses that retraining without each gave.

    Args:
        scores: Influence of each example on each query; larger is more helpful.
        removed: Positions of the examples that were left out.
        without: Losses of the queries without each of them, ``r q``.

    Raises:
        ValueError: Shapes do not fit, or a query's losses or scores are all equal.

    Example:
        >>> scores = np.array([[0.5, 2.0, 1.0]])
        >>> found = leave_one_out_correlation(scores, [0, 1], np.array([[0.1], [0.3]]))
        >>> round(found.mean, 6)
        1.0
    """
    if without.shape != (len(removed), len(scores)):
        raise ValueError(
            f"`without` must be ({len(removed)}, {len(scores)}), removed examples by queries. Got "
            f"{without.shape}."
        )
    chosen = scores[:, list(removed)].T
    refuse_constant("the scores", chosen)
    refuse_constant("the losses", without)
    return Estimate.over(rank_correlations(chosen, without))
