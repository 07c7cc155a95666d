"""Search: the rows with the largest inner products with each query.

Letters: ``q`` queries, ``n`` rows, ``k`` neighbours, ``d`` dimensions of a row.

Exact search reads the rows in blocks, one matrix product each, and keeps the best and the
worst at once; scores of all pairs are never held. Any FAISS index can stand in its place.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from projections.base import TopK
from projections.best import BestRows
from projections.checks import check_between, require
from projections.errors import NonFiniteError
from projections.files import replacing
from projections.progress import track
from projections.store import GradientStore

INSTALL_FAISS = "pip install 'gradsift[cpu]' (or 'gradsift[gpu]')"
BLOCK_BYTES = 1 << 24  # scores held at a time: few enough to stay in a cache
TRAIN_ROWS_PER_LIST = 64  # rows that train a FAISS index, a random sample


@dataclass(frozen=True)
class SearchIndex:
    """Exact search over a store or a matrix of rows.

    Args:
        rows: A `GradientStore`, or an array ``n d``.
        ids: Ids of the rows; those of the store, or the positions, unless given.
        scales: A factor for each row, such as one over its exact norm for a cosine.

    Example:
        >>> index = SearchIndex(np.eye(3, dtype=np.float32))
        >>> index.search(np.array([[0.1, 0.3, 0.2]]), 2).ids
        array([[1, 2]])
    """

    rows: Any
    ids: np.ndarray | None = None
    scales: np.ndarray | None = None

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
        wanted = torch.from_numpy(queries)
        ends = (BestRows(len(queries), k), BestRows(len(queries), k))
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
        buffer = torch.empty(len(queries), height)
        start = end = 0
        for block in _blocks(self.rows, height):
            if end - start + len(block) > height:
                yield torch.arange(start, end), buffer[:, : end - start]
                start = end
            scores = buffer[:, end - start : end - start + len(block)]
            torch.mm(
                queries, torch.from_numpy(np.ascontiguousarray(block, np.float32)).T, out=scores
            )
            if self.scales is not None:
                scores *= torch.from_numpy(np.float32(self.scales[end : end + len(block)]))
            end += len(block)
        yield torch.arange(start, end), buffer[:, : end - start]


@dataclass(frozen=True)
class FaissIndex:
    """Search by a FAISS index with inner products.

    Args:
        index: The FAISS index; its numbers are positions of rows.
        ids: Ids of the rows.
    """

    index: Any
    ids: np.ndarray

    @classmethod
    def build(
        cls, rows: Any, factory: str, *, seed: int, ids: np.ndarray | None = None
    ) -> "FaissIndex":
        """Build an index from a factory string such as ``"IVF256,SQ8"``.

        Args:
            rows: A `GradientStore`, or an array ``n d``.
            factory: A FAISS factory string.
            seed: Chooses the rows that train the index.
            ids: Ids of the rows; those of the store, or the positions, unless given.

        Raises:
            ImportError: FAISS is not installed.
            ValueError: FAISS does not understand the string, or there are too few rows.
        """
        faiss = require("faiss", INSTALL_FAISS)
        try:
            index = faiss.index_factory(width_of(rows), factory, faiss.METRIC_INNER_PRODUCT)
        except RuntimeError as error:
            raise ValueError(
                f"`factory` must be a FAISS factory string such as 'Flat', 'IVF256,SQ8' or "
                f"'HNSW32'. Got {factory!r}: {error}"
            ) from error
        if not index.is_trained:
            lists = faiss.try_extract_index_ivf(index)
            least = lists.nlist if lists is not None else 256
            if len(rows) < least:
                raise ValueError(
                    f"`factory` must need no more rows than there are. {factory!r} is trained on "
                    f"at least {least}; there are {len(rows)}. Use fewer lists, or 'Flat'."
                )
            index.train(_sample(rows, max(least * TRAIN_ROWS_PER_LIST, 10_000), seed))
        for block in track(_blocks(rows, 1 << 14), "faiss", total=len(rows), size=len):
            index.add(np.ascontiguousarray(block, np.float32))
        return cls(index, row_ids(rows, ids))

    def __len__(self) -> int:
        """Return the number of rows."""
        return self.index.ntotal

    def search(self, queries: Float[np.ndarray, "q d"], k: int) -> TopK:
        """Return about the ``k`` rows with the largest inner products for each query.

        Rows that an approximate index does not find have the position -1 and the id -1 or "".

        Args:
            queries: One query a row.
            k: Number of neighbours.
        """
        queries = check_queries(queries, self.index.d, k, len(self))
        scores, positions = self.index.search(queries, k)
        ids = self.ids[positions]
        ids[positions < 0] = -1 if ids.dtype.kind == "i" else ""
        return TopK(ids, scores, positions)

    def search_both(self, queries: Float[np.ndarray, "q d"], k: int) -> tuple[TopK, TopK]:
        """Return both ends: the bottom is the top of the negated queries."""
        bottom = self.search(-np.asarray(queries), k)
        return self.search(queries, k), TopK(bottom.ids, -bottom.scores, bottom.positions)

    def save(self, path: str | Path) -> None:
        """Write the index and its ids to ``path`` and ``path`` + ``.ids.npy``."""
        faiss = require("faiss", INSTALL_FAISS)
        path = Path(path)
        with replacing(path) as file:
            file.write(faiss.serialize_index(self.index).tobytes())
        with replacing(path.with_name(path.name + ".ids.npy")) as file:
            np.save(file, self.ids, allow_pickle=False)

    @classmethod
    def load(cls, path: str | Path) -> "FaissIndex":
        """Open a saved index, mapped from disk where FAISS can."""
        faiss = require("faiss", INSTALL_FAISS)
        path = Path(path)
        # NOTE: the plain IO_FLAG_MMAP maps inverted lists only; this one maps flat codes too.
        index = faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)
        return cls(index, np.load(path.with_name(path.name + ".ids.npy"), allow_pickle=False))


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


def _blocks(rows: Any, height: int) -> Iterator[np.ndarray]:
    """Yield the rows in blocks of at most ``height``."""
    for block in rows.blocks() if isinstance(rows, GradientStore) else [rows]:
        for start in range(0, len(block), height):
            yield block[start : start + height]


def _sample(rows: Any, size: int, seed: int) -> Float[np.ndarray, "n d"]:
    """Return a random sample of the rows."""
    size = min(size, len(rows))
    chosen = np.sort(np.random.default_rng(seed).choice(len(rows), size, replace=False))
    if isinstance(rows, GradientStore):
        return rows.rows(chosen)
    return np.ascontiguousarray(rows[chosen], np.float32)
