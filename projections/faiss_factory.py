"""FAISS indexes without rows, and the rows that train them.

Letters: ``n`` rows, ``d`` dimensions of a row.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Float

from projections.checks import require
from projections.store import GradientStore

INSTALL = "pip install 'gradsift[cpu]' (or 'gradsift[gpu]')"
TRAIN_ROWS_PER_LIST = 64  # rows that train an index, a random sample
LEAST_TRAIN_ROWS = 10_000
LEAST_PRODUCT_ROWS = 256  # that product quantisers are trained on
LISTS_SEARCHED = 16  # one list in so many is looked into, unless said otherwise
ADDED_ROWS = 1 << 14  # rows added at a time
FOLDER = "faiss"  # of the indexes beside a store


def load_faiss() -> Any:
    """Import FAISS, or say how to install it."""
    return require("faiss", INSTALL)


def empty_index(num_dims: int, factory: str) -> Any:
    """Return a new index without rows.

    Raises:
        ValueError: FAISS does not understand the string.
    """
    faiss = load_faiss()
    try:
        return faiss.index_factory(num_dims, factory, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError as error:
        raise ValueError(
            f"`factory` must be a FAISS factory string such as 'Flat', 'IVF256,SQ8' or "
            f"'HNSW32'. Got {factory!r}: {error}"
        ) from error


def training_rows(rows: Any, index: Any, factory: str, seed: int) -> Float[np.ndarray, "n d"]:
    """Return a random sample of the rows, large enough to train an index.

    Args:
        rows: A `GradientStore`, or an array ``n d``.
        index: The index.
        factory: Its factory string.
        seed: Chooses the rows.

    Raises:
        ValueError: There are too few.
    """
    lists = load_faiss().try_extract_index_ivf(index)
    least = max(
        lists.nlist if lists is not None else 1, LEAST_PRODUCT_ROWS if "PQ" in factory else 1
    )
    if len(rows) < least:
        raise ValueError(
            f"`factory` must need no more rows than there are. {factory!r} is trained on "
            f"at least {least}; there are {len(rows)}. Use fewer lists, or 'Flat'."
        )
    size = min(len(rows), max(least * TRAIN_ROWS_PER_LIST, LEAST_TRAIN_ROWS))
    chosen = np.sort(np.random.default_rng(seed).choice(len(rows), size, replace=False))
    if isinstance(rows, GradientStore):
        return rows.rows(chosen)
    return np.ascontiguousarray(rows[chosen], np.float32)


def added_blocks(rows: Any) -> Iterator[np.ndarray]:
    """Yield the rows as many at a time as are added to an index."""
    for block in rows.blocks() if isinstance(rows, GradientStore) else [rows]:
        for start in range(0, len(block), ADDED_ROWS):
            yield block[start : start + ADDED_ROWS]
