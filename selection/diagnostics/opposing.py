r"""Groups of examples that pull a model in opposite directions.

Letters: ``n`` rows, ``k`` dimensions.

Along a direction in which gradients are large and yet cancel, two groups of examples with a
common feature fight: a step that lowers the loss of one raises that of the other. They
are at the two ends of the products :math:`\langle g_i, v \rangle`.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from projections import DataError, Scores, check_at_least
from selection.diagnostics.moments import measure_moments
from selection.row_blocks import RowBlocks, as_row_blocks


@dataclass(frozen=True)
class OpposingGroups:
    r"""The two ends of a direction.

    Args:
        share: The share of all squared gradient norms that lies along the direction.
        cancelled: :math:`1 - |\sum p_i| / \sum |p_i|` of the products ``p``: 1 where both
            sides are equally strong, 0 where all point the same way.
        positive: Ids of the examples with the largest products, the largest first.
        negative: Ids of those with the smallest, the smallest first.
        positive_products: Their products with the direction of length 1.
        negative_products: Those of the others.
        direction: The direction, ``k``.
    """

    share: float
    cancelled: float
    positive: np.ndarray
    negative: np.ndarray
    positive_products: Float[np.ndarray, " a"]
    negative_products: Float[np.ndarray, " b"]
    direction: Float[np.ndarray, " k"]


def find_opposing(
    rows: Any, *, num_directions: int = 3, num_shown: int = 8
) -> list[OpposingGroups]:
    """Find the directions along which gradients differ most, and the examples at their ends.

    The directions are the main axes of the gradients around their mean, largest first.

    Args:
        rows: A `GradientStore`, `Embeddings`, an array ``n k``, or their `measure_moments`.
        num_directions: Number of directions.
        num_shown: Most examples that are named at either end.

    Raises:
        ValueError: A number is below 1, or there is no row.

    Example:
        >>> rows = np.array([[5.0, 1], [5, 1], [-5, 1], [0, 1]])
        >>> (found,) = find_opposing(rows, num_directions=1, num_shown=2)
        >>> found.positive, found.negative, round(found.share, 2)
        (array([0, 1]), array([2]), 0.95)

    References:
        Rosenfeld and Risteski, Outliers with opposing signals have an outsized effect on neural
        network optimization (ICLR 2024), arXiv:2311.04163.
    """
    check_at_least("num_directions", num_directions, 1)
    check_at_least("num_shown", num_shown, 1)
    moments = measure_moments(rows)
    blocks = moments.blocks
    mean = moments.total / len(blocks)
    values, axes = np.linalg.eigh(moments.products / len(blocks) - np.outer(mean, mean))
    count = min(num_directions, int((values > 1e-12 * max(values[-1], 0.0)).sum()))
    main = axes[:, ::-1][:, :count]
    products = np.concatenate([some @ main for _, some in blocks])
    trace = float(np.trace(moments.products))
    return [_ends(blocks, products[:, n], main[:, n], trace, num_shown) for n in range(count)]


def oppose_along(
    rows: Any, direction: Float[np.ndarray, " k"], *, num_shown: int = 8
) -> OpposingGroups:
    r"""Find the examples that a given step helps and hurts most.

    With the direction :math:`-\Delta\theta` of a step, projected as the rows are, the
    positive end are those whose loss the step lowers, to first order.

    Args:
        rows: A `GradientStore`, `Embeddings` or an array ``n k``.
        direction: The direction, ``k``; its length does not matter.
        num_shown: Most examples that are named at either end.

    Raises:
        ValueError: The direction is zero, not finite, or not as long as the rows.

    Example:
        >>> found = oppose_along(np.array([[1.0, 0], [-2, 0], [0, 1]]), np.array([2.0, 0]))
        >>> found.positive, found.negative, found.negative_products
        (array([0]), array([1]), array([-2.]))

    References:
        As for `find_opposing`.
    """
    check_at_least("num_shown", num_shown, 1)
    blocks = as_row_blocks(rows)
    length = float(np.linalg.norm(direction))
    if direction.shape != (blocks.num_dims,) or not 0 < length < np.inf:
        raise ValueError(
            f"`direction` must be {blocks.num_dims} finite numbers, not all 0. Got the shape "
            f"{direction.shape} and the length {length:.4g}."
        )
    unit = np.asarray(direction, np.float64) / length
    products = np.concatenate([rows @ unit for _, rows in blocks])
    trace = sum(float(np.square(rows).sum()) for _, rows in blocks)
    return _ends(blocks, products, unit, trace, num_shown, turn=False)


@dataclass(frozen=True)
class LossChanges:
    """What a step, or a stretch of training, did to the loss of each example.

    Args:
        risen: Ids of the examples whose loss rose most, the largest rise first.
        fallen: Ids of those whose loss fell most, the largest fall first.
        rises: Change of the loss of the former.
        falls: Change of the loss of the latter, below zero.
        share_risen: Share of all examples whose loss rose.
        cancelled: How much of all change cancels in the mean: 1 all of it, 0 nothing.
    """

    risen: np.ndarray
    fallen: np.ndarray
    rises: Float[np.ndarray, " a"]
    falls: Float[np.ndarray, " b"]
    share_risen: float
    cancelled: float


def compare_losses(before: Scores, after: Scores, *, num_shown: int = 8) -> LossChanges:
    """Find the examples whose loss changed most, up and down, between two snapshots.

    Args:
        before: One loss an example.
        after: The same later.
        num_shown: Most examples that are named at either end.

    Raises:
        DataError: The scores are about different rows.
        ValueError: There are several columns, or `num_shown` is below 1.

    Example:
        >>> losses = [Scores(np.arange(3), {"loss": np.array(x)}) for x in ([1.0, 1, 1], [3, 0, 1])]
        >>> found = compare_losses(*losses)
        >>> found.risen, found.fallen, round(found.cancelled, 2)
        (array([0]), array([1]), 0.67)

    References:
        As for `find_opposing`, Sec. 3.
    """
    check_at_least("num_shown", num_shown, 1)
    if not np.array_equal(before.ids, after.ids):
        raise DataError(
            "losses must be about the same ids in the same order. They are not. Compute both on "
            "one dataset."
        )
    changes = np.asarray(after.values, np.float64) - np.asarray(before.values, np.float64)
    order = np.argsort(changes, kind="stable")
    down = order[: int(min(num_shown, (changes < 0).sum()))]
    up = np.argsort(-changes, kind="stable")[: int(min(num_shown, (changes > 0).sum()))]
    share = float((changes > 0).mean()) if len(changes) else 0.0
    ids = before.ids
    return LossChanges(ids[up], ids[down], changes[up], changes[down], share, cancelled(changes))


def cancelled(products: Float[np.ndarray, " n"]) -> float:
    r"""Return :math:`1 - |\sum p_i| / \sum |p_i|`, and 0 where all are zero."""
    total = float(np.abs(products).sum())
    return 1 - abs(float(products.sum())) / total if total > 0 else 0.0


def _ends(
    blocks: RowBlocks,
    products: Float[np.ndarray, " n"],
    direction: Float[np.ndarray, " k"],
    trace: float,
    num_shown: int,
    *,
    turn: bool = True,
) -> OpposingGroups:
    """Return both ends of a direction; an axis has no sign and is turned to the larger one."""
    if turn and products[np.abs(products).argmax()] < 0:
        products, direction = -products, -direction
    down = np.argsort(products, kind="stable")[: int(min(num_shown, (products < 0).sum()))]
    up = np.argsort(-products, kind="stable")[: int(min(num_shown, (products > 0).sum()))]
    ids, share = blocks.ids, float(products @ products) / trace if trace > 0 else 0.0
    ends = (ids[up], ids[down], products[up], products[down])
    return OpposingGroups(share, cancelled(products), *ends, direction)
