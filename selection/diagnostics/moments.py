"""Sums over rows that several diagnostics start from.

Letters: ``n`` rows, ``k`` dimensions.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from selection.row_blocks import RowBlocks, as_row_blocks


@dataclass(frozen=True)
class RowMoments:
    """Rows, with the sums that directions are found from.

    Args:
        blocks: The rows.
        products: Sum of the outer products of all rows, ``k k``.
        total: Sum of all rows, ``k``.
    """

    blocks: RowBlocks
    products: Float[np.ndarray, "k k"]
    total: Float[np.ndarray, " k"]


def measure_moments(rows: Any) -> RowMoments:
    """Return the sums of rows and of their outer products, in one walk over them.

    `measure_spectrum` and `find_opposing` take the result in place of the rows, and then do
    not form the sums each for itself.

    Args:
        rows: A `GradientStore`, `Embeddings` or an array ``n k``; or sums, which are returned.

    Raises:
        ValueError: There is no row.

    Example:
        >>> moments = measure_moments(np.array([[1.0, 2], [3, 0]]))
        >>> moments.total, moments.products.tolist()
        (array([4., 2.]), [[10.0, 2.0], [2.0, 4.0]])
    """
    if isinstance(rows, RowMoments):
        return rows
    blocks = as_row_blocks(rows)
    products, total = np.zeros((blocks.num_dims, blocks.num_dims)), np.zeros(blocks.num_dims)
    for _, some in blocks:
        products += some.T @ some
        total += some.sum(axis=0)
    return RowMoments(blocks, products, total)
