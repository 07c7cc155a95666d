"""Detection: do scores put the examples first that are known to be the right ones?

Letters: ``n`` training examples, ``q`` queries, ``p`` examples that are looked for.
"""

import numpy as np
from jaxtyping import Bool, Float, Shaped
from scipy.stats import rankdata

from influence.estimates import Estimate
from projections import check_at_least


def mislabel_detection(
    suspicion: Float[np.ndarray, " n"], wrong: Bool[np.ndarray, "..."]
) -> Estimate:
    """Return the area under the ROC curve of one ranking of all examples.

    The chance that a wrong label is more suspicious than a right one; ties count half.

    Args:
        suspicion: Self-influence, loss or another score; larger is more suspicious.
        wrong: Which labels are wrong, ``n``.

    Returns:
        The area; its values are the share of right labels below each wrong one, and the
        standard error counts the chance in both.

    Raises:
        ValueError: Shapes do not fit, or fewer than two labels are wrong, or right.

    Example:
        >>> wrong = np.array([False, True, False, True])
        >>> mislabel_detection(np.array([0.1, 0.9, 0.5, 0.4]), wrong).mean
        0.75

    References:
        DeLong et al., Comparing the areas under two or more correlated receiver operating
        characteristic curves (Biometrics 1988), for the standard error.
    """
    if suspicion.shape != wrong.shape:
        raise ValueError(
            f"`suspicion` and `wrong` must be of one length. Got {len(suspicion)}, {len(wrong)}."
        )
    check_at_least("the number of wrong labels", int(wrong.sum()), 2)
    check_at_least("the number of right labels", int((~wrong).sum()), 2)
    above, below = suspicion[wrong], suspicion[~wrong]
    ranks = rankdata(np.concatenate([above, below]))
    placed = (ranks[: len(above)] - rankdata(above)) / len(below)
    beneath = 1 - (ranks[len(above) :] - rankdata(below)) / len(above)
    variance = placed.var(ddof=1) / len(above) + beneath.var(ddof=1) / len(below)
    return Estimate(placed, float(placed.mean()), float(variance**0.5))


def subset_detection(
    scores: Float[np.ndarray, "q n"], members: Bool[np.ndarray, "..."]
) -> Estimate:
    """Return the area under the ROC curve of the members of a subset, averaged over queries.

    Args:
        scores: Influence of each example on each query; larger is more helpful.
        members: Which examples belong to the subset, ``n``, or to that of each query, ``q n``.

    Raises:
        ValueError: Shapes do not fit, or a query has no members, or only such.

    Example:
        >>> members = np.array([True, False, True])
        >>> subset_detection(np.array([[3.0, 1.0, 2.0], [3.0, 2.0, 1.0]]), members).mean
        0.75
    """
    if scores.shape[-1] != members.shape[-1] or (
        members.ndim == 2 and scores.shape != members.shape
    ):
        raise ValueError(
            f"`members` must be (n,) or (q, n) like `scores`, {scores.shape}. Got {members.shape}."
        )
    wanted = np.broadcast_to(members, scores.shape)
    inside = wanted.sum(1)
    outside = scores.shape[1] - inside
    if not (inside * outside).all():
        where = np.flatnonzero(inside * outside == 0)[:10].tolist()
        raise ValueError(
            "every query must have members and other examples. Queries "
            f"{where} have not. Leave them out."
        )
    ranks = rankdata(scores, axis=1)
    sums = (ranks * wanted).sum(1)
    return Estimate.over((sums - inside * (inside + 1) / 2) / (inside * outside))


def class_detection(
    scores: Float[np.ndarray, "q n"],
    labels: Shaped[np.ndarray, " n"],
    query_labels: Shaped[np.ndarray, " q"],
) -> Estimate:
    """Return how well scores tell examples of the query's own class from others, as an area.

    Args:
        scores: Influence of each example on each query; larger is more helpful.
        labels: Class of each example.
        query_labels: Class of each query.

    Raises:
        ValueError: Shapes do not fit, or a query's class has no examples.

    References:
        Hanawa et al., Evaluation of similarity-based explanations (ICLR 2021),
        arXiv:2006.04528, the identical class test. Kwon et al., DataInf (ICLR 2024),
        arXiv:2310.00902.
    """
    return subset_detection(scores, labels[None, :] == query_labels[:, None])


def recall_of_members(
    scores: Float[np.ndarray, "q n"], members: Bool[np.ndarray, "q n"]
) -> Estimate:
    """Return the share of members among the first, as many as there are members.

    Args:
        scores: Influence of each example on each query; larger is more helpful.
        members: Which examples are looked for.

    Raises:
        ValueError: A query has no members.

    Example:
        >>> recall_of_members(np.array([[3.0, 1.0, 2.0]]), np.array([[True, True, False]])).mean
        0.5

    References:
        Kwon et al., DataInf (ICLR 2024), arXiv:2310.00902.
    """
    check_at_least("the number of members of every query", int(members.sum(1).min()), 1)
    order = np.argsort(-scores, axis=1, kind="stable")
    sorted_members = np.take_along_axis(members, order, axis=1)
    counts = members.sum(1)
    first = np.arange(scores.shape[1])[None, :] < counts[:, None]
    return Estimate.over((sorted_members & first).sum(1) / counts)


def shortcut_detection(
    scores: Float[np.ndarray, "q n"],
    plain: Float[np.ndarray, "..."],
    carriers: Bool[np.ndarray, " n"],
) -> Estimate:
    """Return how much further up the carriers of a shortcut are for queries that carry it.

    A difference of two areas under ROC curves, of each query with the shortcut and of the
    same query without: a method that always ranks the carriers high gets nothing.

    Args:
        scores: Scores of queries that carry the shortcut.
        plain: Scores of the same queries without it, ``q n``.
        carriers: Which training examples carry it.

    Raises:
        ValueError: Shapes do not fit, or no example carries it, or all do.

    Example:
        >>> carriers = np.array([True, False, False])
        >>> with_it, without = np.array([[3.0, 1.0, 2.0]]), np.array([[1.0, 3.0, 2.0]])
        >>> shortcut_detection(with_it, without, carriers).mean
        1.0
    """
    if scores.shape != plain.shape:
        raise ValueError(
            "`scores` and `plain` must be of the same queries. Got "
            f"{scores.shape} and {plain.shape}."
        )
    found = [subset_detection(part, carriers).values for part in (scores, plain)]
    return Estimate.over(found[0] - found[1])
