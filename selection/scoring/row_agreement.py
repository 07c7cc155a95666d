r"""Which rows of a store point as the others do: agreement from projected gradients.

Letters: ``n`` rows, ``k`` dimensions, ``c`` groups.

One pass makes the rows, and this reads them twice, a block at a time. The cosines are those
of projections, and as exact as these; `Agreement` gives the exact ones for a second pass
over the data.
"""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int

from projections import Scores, cosines_with_others
from selection.row_blocks import RowBlocks, as_row_blocks, number_groups, sum_by_group


def score_agreement(rows: Any, groups: Any = None) -> Scores:
    r"""Score rows by the cosine with the sum of all others, and of the others of their group.

    Args:
        rows: A `GradientStore`, `Embeddings` or an array ``n k``.
        groups: The class or domain of each row, in their order, if there are any.

    Returns:
        ``agreement``, and with groups ``group_agreement``. 0 for a row that is zero, or
        whose others cancel.

    Raises:
        DataError: There is not one group a row.

    Example:
        >>> rows = np.array([[1.0, 0], [1, 0], [0, 1], [0, -1]])
        >>> score_agreement(rows, ["a", "a", "b", "b"])["group_agreement"].values
        array([ 1.,  1., -1., -1.])
    """
    blocks = as_row_blocks(rows)
    whole = np.zeros(len(blocks), np.int64)
    columns = {"agreement": _with_others(blocks, whole, 1)}
    if groups is not None:
        numbers, names = number_groups(groups, len(blocks))
        columns["group_agreement"] = _with_others(blocks, numbers, len(names))
    return Scores(blocks.ids, columns)


def _with_others(
    blocks: RowBlocks, groups: Int[np.ndarray, " n"], count: int
) -> Float[np.ndarray, " n"]:
    """Return the cosine of each row with the sum of the others of its group."""
    sums = sum_by_group(blocks, groups, count)
    totals = np.einsum("ck,ck->c", sums, sums)
    out = np.empty(len(blocks))
    for where, rows in blocks:
        own = groups[where]
        products = np.einsum("nk,nk->n", rows, sums[own])
        squares = np.einsum("nk,nk->n", rows, rows)
        parts = (torch.from_numpy(x) for x in (products, squares, totals[own]))
        out[where] = cosines_with_others(*parts).numpy()
    return out
