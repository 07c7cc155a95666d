"""Which rows lie near which: a graph by FAISS, of a few edges a row and never of all pairs.

Letters: ``n`` rows, ``d`` dimensions, ``k`` neighbours.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import sqrt
from typing import Any, Literal

import numpy as np
import scipy.sparse
from jaxtyping import Float, Int

from projections import Embeddings, check_at_least, check_one_of, require, track
from selection.clusters import INSTALL_FAISS

SIMILARITIES = ("cosine", "euclidean")
SimilarityName = Literal["cosine", "euclidean"]
TICKS = 1 << 24  # in a similarity of 1
MOST_EXACT = 65_536  # rows up to which every pair is compared for the nearest row
MOST_EXACT_GRAPH = 16_384  # likewise for a graph, of which a few edges may be missing
ROUNDS = 4  # of k-means: lists that are only searched need no more
SAMPLE = 64  # rows for each list that train an inverted file
NUM_PROBES = 8  # lists that are looked through for a row
BLOCK = 1 << 14  # rows that are searched for at a time


@dataclass(frozen=True, kw_only=True)
class NeighbourGraph:
    """Join each row with its most similar ones.

    Similarities are in ``[0, 1]``, and 0 between rows that are not joined: with
    ``"cosine"`` the cosine where it is positive; with ``"euclidean"``
    :math:`1 - d^2 / d_{max}^2`, over the largest distance in the graph. They are rounded to
    2**-24, so that sums are exact and ties are ties. A row is most similar to itself, 1.

    Args:
        num_neighbours: Number ``k`` of neighbours of each row; rows are also joined with
            those whose neighbour they are.
        similarity: How rows are compared.
        num_probes: Lists that are looked through for each row, above 16,384 rows, where
            neighbours are found by an inverted file of about ``4 sqrt(n)`` lists; more find
            more true neighbours. Below, they are exact.
        seed: Draws what trains the inverted file.

    Raises:
        ImportError: FAISS is not installed.

    Example:
        >>> rows = Embeddings(np.array([[1.0, 0], [0.6, 0.8], [0, 1]]))
        >>> (NeighbourGraph(num_neighbours=1, seed=0).build(rows).toarray() / TICKS).round(2)
        array([[1. , 0.6, 0. ],
               [0.6, 1. , 0.8],
               [0. , 0.8, 1. ]])
    """

    num_neighbours: int = 32
    similarity: SimilarityName = "cosine"
    num_probes: int = NUM_PROBES
    seed: int

    def __post_init__(self) -> None:
        """Check the arguments."""
        check_at_least("num_neighbours", self.num_neighbours, 1)
        check_one_of("similarity", self.similarity, SIMILARITIES)
        check_at_least("num_probes", self.num_probes, 1)

    def build(self, embeddings: Embeddings) -> scipy.sparse.csr_array:
        """Return the similarities as a symmetric sparse matrix, ``n n``, in ticks.

        Args:
            embeddings: One vector a row.
        """
        cosine = self.similarity == "cosine"
        num_rows = len(embeddings)
        if num_rows == 0:
            return scipy.sparse.csr_array((0, 0), dtype=np.int64)
        rows = (embeddings.normalized() if cosine else embeddings).rows
        index = _index_of(
            rows,
            cosine=cosine,
            most_exact=MOST_EXACT_GRAPH,
            num_probes=self.num_probes,
            seed=self.seed,
        )
        k = min(self.num_neighbours + 1, num_rows)  # a row finds itself, or its copies
        values = np.empty((num_rows, k), np.float32)
        found = np.empty((num_rows, k), np.int64)
        for start, block in track(
            _blocks(rows), "neighbours", total=num_rows, size=lambda item: len(item[1])
        ):
            here = slice(start, start + len(block))
            values[here], found[here] = index.search(block, k)
        return _symmetric(found, _similarities(values, found, cosine))


def nearest_others(
    embeddings: Embeddings, *, seed: int
) -> tuple[Int[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """Return the position of the most similar other row of each row, and the cosine.

    Of equally similar rows the first. A zero vector has the cosine 0 with every row.

    Args:
        embeddings: One vector a row, at least two.
        seed: Draws what trains an inverted file, where there are many rows.
    """
    rows = embeddings.normalized().rows
    index = _index_of(rows, cosine=True, most_exact=MOST_EXACT, num_probes=NUM_PROBES, seed=seed)
    places = np.empty(len(rows), np.int64)
    for start, block in track(
        _blocks(rows), "nearest", total=len(rows), size=lambda item: len(item[1])
    ):
        # A row finds itself, or as many copies of itself as are asked for.
        found = index.search(block, min(3, len(rows)))[1]
        own = (start + np.arange(len(block)))[:, None]
        other = np.where((found == own) | (found < 0), len(rows), found)
        values = np.einsum("bd,bkd->bk", block, rows[np.minimum(other, len(rows) - 1)])
        values = np.where(other < len(rows), values.astype(np.float64), -np.inf)
        best = np.lexsort((other, -values.round(6)))[:, 0]
        picked = other[np.arange(len(block)), best]
        # Where lists that were looked through held no other row, any will do.
        spare = (own[:, 0] + 1) % len(rows)
        places[own[:, 0]] = np.where(picked < len(rows), picked, spare)
    wide = rows.astype(np.float64)
    return places, np.einsum("nd,nd->n", wide, wide[places])


def _index_of(
    rows: Float[np.ndarray, "n d"], *, cosine: bool, most_exact: int, num_probes: int, seed: int
) -> Any:
    """Return a FAISS index of the rows, exact up to so many."""
    faiss = require("faiss", INSTALL_FAISS)
    metric = faiss.METRIC_INNER_PRODUCT if cosine else faiss.METRIC_L2
    if len(rows) <= most_exact:
        index = faiss.IndexFlat(rows.shape[1], metric)
    else:
        num_lists = int(4 * sqrt(len(rows)))
        index = faiss.index_factory(rows.shape[1], f"IVF{num_lists},Flat", metric)
        random = np.random.default_rng(seed)
        size = min(len(rows), SAMPLE * num_lists)
        drawn = np.sort(random.choice(len(rows), size, replace=False))
        index.cp.min_points_per_centroid = 1
        index.cp.niter = ROUNDS
        index.train(np.ascontiguousarray(rows[drawn], np.float32))
        index.nprobe = min(num_probes, num_lists)
    for _, block in _blocks(rows):
        index.add(block)
    return index


def _similarities(
    values: Float[np.ndarray, "n k"], found: Int[np.ndarray, "n k"], cosine: bool
) -> Int[np.ndarray, "n k"]:
    """Return what FAISS measured as similarities in ticks."""
    if not cosine:
        squares = np.where(found >= 0, np.maximum(values, 0), 0)
        values = 1 - squares / (squares.max() or 1.0)
    return np.rint(np.clip(values, 0, 1).astype(np.float64) * TICKS).astype(np.int32)


def _symmetric(
    found: Int[np.ndarray, "n k"], ticks: Int[np.ndarray, "n k"]
) -> scipy.sparse.csr_array:
    """Return the matrix of all edges, in both directions, with ones on the diagonal."""
    num_rows, k = found.shape
    here = np.repeat(np.arange(num_rows, dtype=np.int32), k)
    there, weights = found.ravel().astype(np.int32), ticks.ravel()
    real = (there >= 0) & (there != here) & (weights > 0)
    shape = (num_rows, num_rows)
    edges = scipy.sparse.csr_array((weights[real], (here[real], there[real])), shape=shape)
    both = edges.maximum(edges.T)
    own = scipy.sparse.diags_array(np.full(num_rows, TICKS), format="csr", dtype=np.int32)
    return scipy.sparse.csr_array(both + own)


def _blocks(rows: Float[np.ndarray, "n d"]) -> Iterator[tuple[int, Float[np.ndarray, "b d"]]]:
    """Yield the rows as float32, some at a time, each with the position of its first."""
    for start in range(0, len(rows), BLOCK):
        yield start, np.ascontiguousarray(rows[start : start + BLOCK], np.float32)
