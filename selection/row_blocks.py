"""Rows of a store, of embeddings or of an array, a block at a time, and groups of them.

Letters: ``n`` rows, ``k`` dimensions, ``c`` groups.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from projections import DataError, Embeddings, GradientStore, as_embeddings, check_not_empty

BLOCK_BYTES = 1 << 25  # of float64 rows at a time


@dataclass(frozen=True)
class RowBlocks:
    """Rows that can be walked any number of times, in float64, without all being in memory.

    Args:
        source: Where they are.
    """

    source: GradientStore | Embeddings

    def __len__(self) -> int:
        """Return the number ``n`` of rows."""
        return len(self.source)

    @property
    def ids(self) -> np.ndarray:
        """The id of each row."""
        return self.source.ids

    @property
    def num_dims(self) -> int:
        """Number ``k`` of dimensions."""
        return self.source.num_dims

    def __iter__(self) -> Iterator[tuple[slice, Float[np.ndarray, "b k"]]]:
        """Yield positions and rows of each block."""
        whole = self.source
        blocks = whole.blocks() if isinstance(whole, GradientStore) else [whole.rows]
        height = max(1, BLOCK_BYTES // (8 * max(1, self.num_dims)))
        start = 0
        for block in blocks:
            for first in range(0, len(block), height):
                rows = np.asarray(block[first : first + height], dtype=np.float64)
                yield slice(start, start + len(rows)), rows
                start += len(rows)


def as_row_blocks(source: Any) -> RowBlocks:
    """Return rows from a store, embeddings or an array ``n k``.

    Raises:
        TypeError: It is none of these.
        ValueError: It holds no row.
    """
    if not isinstance(source, GradientStore):
        source = as_embeddings(source)
    check_not_empty("rows", len(source))
    return RowBlocks(source)


def number_groups(groups: Sequence[Any] | np.ndarray, num_rows: int) -> tuple[np.ndarray, list]:
    """Return the number of the group of each row, and the groups in order.

    Args:
        groups: One class, domain or other name a row.
        num_rows: Number ``n`` of rows.

    Raises:
        DataError: There is not one group a row.

    Example:
        >>> number_groups(["b", "a", "b"], 3)
        (array([1, 0, 1]), ['a', 'b'])
    """
    found = np.asarray(groups)
    if found.shape != (num_rows,):
        raise DataError(
            f"`groups` must have one entry a row, {num_rows}. Got the shape {found.shape}."
        )
    names, numbers = np.unique(found, return_inverse=True)
    return numbers.astype(np.int64), names.tolist()


def sum_by_group(
    blocks: RowBlocks, groups: Int[np.ndarray, " n"], count: int
) -> Float[np.ndarray, "c k"]:
    """Return the sum of the rows of each group."""
    sums = np.zeros((count, blocks.num_dims))
    for where, rows in blocks:
        own = groups[where]
        for group in np.unique(own):
            sums[group] += rows[own == group].sum(axis=0)
    return sums
