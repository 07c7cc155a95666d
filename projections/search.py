"""Search: the rows with the largest inner products with each query.

Letters: ``q`` queries, ``n`` rows, ``k`` neighbours, ``d`` dimensions of a row.

Exact search reads the rows in blocks, one matrix product each, and keeps the best and the
worst at once; scores of all pairs are never held. `FaissIndex` can stand in its place.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, Num
from torch import Tensor

from projections.base import TopK
from projections.best import BestRows
from projections.checks import check_between
from projections.errors import NonFiniteError
from projections.progress import track
from projections.row_products import RowProducts
from projections.store import GradientStore

BLOCK_BYTES = 1 << 24  # scores held at a time: few enough to stay in a cache


@dataclass(frozen=True)
class SearchIndex:
    """Exact search over a store or a matrix of rows.

    Args:
        rows: A `GradientStore`, or an array or tensor ``n d``.
        ids: Ids of the rows; those of the store, or the positions, unless given.
        scales: A factor for each row, such as one over its exact norm for a cosine.
        device: Where products are computed. Rows travel there in the type they are kept in.

    Example:
        >>> index = SearchIndex(np.eye(3, dtype=np.float32))
        >>> index.search(np.array([[0.1, 0.3, 0.2]]), 2).ids
        array([[1, 2]])
    """

    rows: Any
    ids: np.ndarray | None = None
    scales: np.ndarray | None = None
    device: str | torch.device = "cpu"

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.rows)

    def search(self, queries: Float[np.ndarray, "q d"], k: int) -> TopK:
        """Return the ``k`` rows with the largest inner products for each query.

        Args:
            queries: One query a row.
            k: Number of neighbours, at most the number of rows.

        Raises:
            ValueError: ``k`` is larger than the number of rows, or the widths differ.
            NonFiniteError: A query is not finite.
        """
        return self.search_both(queries, k)[0]

    def search_both(self, queries: Float[np.ndarray, "q d"], k: int) -> tuple[TopK, TopK]:
        """Return the rows with the largest and with the smallest inner products, in one scan.

        Args:
            queries: One query a row.
            k: Number of neighbours at each end.

        Returns:
            The top, largest first, and the bottom, smallest first.
        """
        queries = check_queries(queries, self.num_dims, k, len(self))
        wanted = torch.from_numpy(queries).to(self.device)
        ends = (
            BestRows(len(queries), k, self.device),
            BestRows(len(queries), k, self.device),
        )
        blocks = track(
            self._scored(wanted), "search", total=len(self), size=lambda block: len(block[0])
        )
        for positions, scores in blocks:
            ends[0].offer(scores, positions)
            ends[1].offer(scores.neg_(), positions)
        ids = row_ids(self.rows, self.ids)
        return ends[0].result(ids, 1), ends[1].result(ids, -1)

    @property
    def num_dims(self) -> int:
        """Number of dimensions of a row."""
        return width_of(self.rows)

    def _scored(
        self, queries: Float[Tensor, "q d"]
    ) -> Iterator[tuple[Int[Tensor, " b"], Float[Tensor, "q b"]]]:
        """Yield positions and scores of some rows, of several shards where those are small.

        The scores stay in one buffer, which the next block overwrites.
        """
        height = min(len(self), max(1, BLOCK_BYTES // (4 * max(1, len(queries)))))
        buffer = queries.new_empty(len(queries), height)
        products = RowProducts(queries)
        start = end = 0
        for block, factors in _blocks(self.rows, height):
            if end - start + len(block) > height:
                yield torch.arange(start, end, device=self.device), buffer[:, : end - start]
                start = end
            scores = buffer[:, end - start : end - start + len(block)]
            products.write(block, scores)
            for some in (factors, self._scales(end, len(block))):
                if some is not None:
                    scores *= torch.from_numpy(some).to(self.device)
            end += len(block)
        yield torch.arange(start, end, device=self.device), buffer[:, : end - start]

    def _scales(self, start: int, count: int) -> Float[np.ndarray, " b"] | None:
        """Return the factors of some rows."""
        if self.scales is None:
            return None
        return self.scales[start : start + count].astype(np.float32)


def check_queries(
    queries: Float[np.ndarray, "q d"], num_dims: int, k: int, num_rows: int
) -> Float[np.ndarray, "q d"]:
    """Return queries as float32, and refuse what cannot be searched."""
    check_between("k", k, 1, num_rows, "the number of rows")
    queries = np.ascontiguousarray(queries, dtype=np.float32)
    if queries.ndim != 2 or queries.shape[1] != num_dims:
        raise ValueError(
            f"`queries` must be a matrix with {num_dims} columns, as the rows have. Got shape "
            f"{queries.shape}."
        )
    bad = ~np.isfinite(queries).all(axis=1)
    if bad.any():
        raise NonFiniteError(
            f"queries must be finite. Those at {np.flatnonzero(bad)[:10]} are not."
        )
    return queries


def width_of(rows: Any) -> int:
    """Return the number of dimensions of a store's or a matrix's rows."""
    return rows.num_dims if isinstance(rows, GradientStore) else rows.shape[1]


def row_ids(rows: Any, ids: np.ndarray | None) -> np.ndarray:
    """Return the ids of the rows of a store or a matrix."""
    if ids is not None:
        return ids
    return rows.ids if isinstance(rows, GradientStore) else np.arange(len(rows))


def _blocks(
    rows: Any, height: int
) -> Iterator[tuple[Num[Tensor, "b d"], Float[np.ndarray, " b"] | None]]:
    """Yield rows as they are kept, at most ``height`` at once, and int8 rows' scales."""
    parts = rows.tensors() if isinstance(rows, GradientStore) else [(torch.as_tensor(rows), None)]
    for part, scales in parts:
        for start in range(0, len(part), height):
            some = None if scales is None else scales[start : start + height]
            factors = None if some is None else np.ascontiguousarray(some)
            yield part[start : start + height], factors
