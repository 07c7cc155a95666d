"""The linear datamodeling score: does the sum of scores predict what retraining does?

Letters: ``m`` subsets, ``n`` training examples, ``q`` queries, ``s`` seeds.

References:
    Park et al., TRAK (ICML 2023), arXiv:2303.14186, Sec. 2 (definition 2.3).
"""

from itertools import combinations

import numpy as np
from jaxtyping import Float, Int8, Shaped

from influence.estimates import Estimate, rank_correlations, refuse_constant
from projections import check_at_least, check_between


def random_subsets(
    num_examples: int, num_subsets: int, *, share: float = 0.5, seed: int
) -> Int8[np.ndarray, "m n"]:
    """Return random subsets of equal size as rows of 0 and 1.

    Args:
        num_examples: Number ``n`` of training examples.
        num_subsets: Number ``m`` of subsets.
        share: Which part of the examples each holds.
        seed: Seed of the draw.

    Example:
        >>> random_subsets(6, 4, seed=0).sum(1)
        array([3, 3, 3, 3])
    """
    check_at_least("num_subsets", num_subsets, 1)
    check_between("share", share, 0, 1)
    random, size = np.random.default_rng(seed), round(share * num_examples)
    masks = np.zeros((num_subsets, num_examples), dtype=np.int8)
    for mask in masks:
        mask[random.permutation(num_examples)[:size]] = 1
    return masks


def linear_datamodeling_score(
    masks: Shaped[np.ndarray, "m n"],
    scores: Float[np.ndarray, "q _"],
    losses: Float[np.ndarray, "..."],
) -> Estimate:
    """Return the rank correlation of summed scores with retrained models' negative losses.

    The standard error is over queries, for these subsets; `error_over_subsets` is the other.

    Args:
        masks: Which examples each subset holds, as 0 and 1.
        scores: Influence of each example on each query, ``q n``; larger is more helpful.
        losses: Loss of each query under the model retrained on each subset, ``m q``.

    Raises:
        ValueError: Shapes do not fit, or a query's losses or predictions are all equal.

    Example:
        >>> masks = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1]])
        >>> losses = np.array([[0.1], [0.2], [0.3]])
        >>> found = linear_datamodeling_score(masks, np.array([[3.0, 2.0, 1.0]]), losses)
        >>> round(found.mean, 6)
        1.0
    """
    summed = _summed(masks, scores, losses)
    refuse_constant("the summed scores", summed)
    refuse_constant("the losses", losses)
    return Estimate.over(rank_correlations(summed, -losses))


def error_over_subsets(
    masks: Shaped[np.ndarray, "m n"],
    scores: Float[np.ndarray, "q _"],
    losses: Float[np.ndarray, "..."],
) -> float:
    """Return the standard error of the score over the draw of subsets, by the jackknife.

    All queries share the subsets, so that this part of the error does not fall with more of
    them. Add it in quadrature to compare with a score that was measured on other subsets.

    Args:
        masks: As in `linear_datamodeling_score`.
        scores: As there.
        losses: As there.

    Raises:
        ValueError: Shapes do not fit, or there are fewer than three subsets.
    """
    summed = _summed(masks, scores, losses)
    count = len(masks)
    check_at_least("the number of subsets", count, 3)
    without = np.array(
        [
            np.nanmean(rank_correlations(np.delete(summed, m, 0), -np.delete(losses, m, 0)))
            for m in range(count)
        ]
    )
    return float(np.sqrt((count - 1) / count * np.square(without - without.mean()).sum()))


def lds_ceiling(losses: Float[np.ndarray, "s m q"]) -> Estimate:
    r"""Return what a perfect prediction could reach, from retraining with several seeds.

    One seed predicts another with a rank correlation :math:`r`, the mean over pairs of seeds
    and over queries. By the formula of Spearman and Brown the mean of all :math:`s` seeds has
    the reliability :math:`s r / (1 + (s - 1) r)`, and no score correlates with it beyond the
    root of that. An :math:`r` below zero counts as zero.

    Args:
        losses: Losses of queries by seed and subset.

    Returns:
        The ceiling, with the standard error of the jackknife over queries, whose
        pseudo-values are its values.

    Raises:
        ValueError: There is only one seed, or a query's losses are all equal.

    Example:
        >>> losses = np.array([[0.1, 0.2, 0.3], [0.2, 0.3, 0.4]])[:, :, None]
        >>> round(lds_ceiling(losses).mean, 6)
        1.0

    References:
        Spearman (1910), Brown (1910), on the reliability of a mean of several measurements.
    """
    seeds, _, count = losses.shape
    check_at_least("the number of seeds", seeds, 2)
    for one in losses:
        refuse_constant("the losses", one)
    pairs = [rank_correlations(losses[a], losses[b]) for a, b in combinations(range(seeds), 2)]
    found = np.mean(pairs, axis=0)

    def ceiling(r: Float[np.ndarray, " q"]) -> Float[np.ndarray, " q"]:
        positive = np.clip(r, 0, None)
        return np.sqrt(seeds * positive / (1 + (seeds - 1) * positive))

    whole = ceiling(found.mean(keepdims=True))
    if count == 1:
        return Estimate.over(whole)
    pseudo = count * whole - (count - 1) * ceiling((found.sum() - found) / (count - 1))
    return Estimate(pseudo, float(whole[0]), Estimate.over(pseudo).standard_error)


def _summed(
    masks: Shaped[np.ndarray, "m n"],
    scores: Float[np.ndarray, "q _"],
    losses: Float[np.ndarray, "..."],
) -> Float[np.ndarray, "m q"]:
    """Return the sum of scores over each subset."""
    num_subsets, num_examples = masks.shape
    if scores.shape[1] != num_examples or losses.shape != (num_subsets, len(scores)):
        raise ValueError(
            "`masks` must be (m, n), `scores` (q, n) and `losses` (m, q). Got "
            f"{masks.shape}, {scores.shape} and {losses.shape}."
        )
    return masks @ scores.T.astype(np.float64)
