"""Embeddings: one vector of fixed length a row, with the row's id.

Letters: ``n`` rows, ``d`` dimensions.

They come as an array, from a store of gradients, or from any function of rows, whose work
is then kept in shards and goes on after a kill. What computes with them takes the rows in
the order of their ids, so that no result depends on the order of the data. Not handled:
embeddings of tokens, and rows of different lengths.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from projections.base import Provenance, Table
from projections.checks import check_at_least, check_not_empty
from projections.data import as_ids, as_rows, shard_ranges
from projections.encoding import Encoder, EncodeTable, encode
from projections.errors import DataError, NonFiniteError
from projections.fingerprint import describe
from projections.progress import track
from projections.ray_data import check_ray_arguments, is_on_ray, map_on_ray
from projections.row_types import ROWS
from projections.store import GradientStore
from projections.store_writer import StoreWriter
from projections.workers import HERE, ON_RAY, Workers

CHECK_BYTES = 1 << 26  # read at a time when rows are checked


@dataclass(frozen=True)
class Embeddings:
    """Vectors of rows, by id.

    Args:
        rows: One vector a row, ``n d``, in memory or mapped from disk.
        ids: Ids of the rows; their positions unless given.
        provenance: Where the vectors came from.
        workers: Who clusters and compares them: this process, or a cluster.

    Raises:
        DataError: An id is missing or occurs twice, or there are not as many as rows.
        NonFiniteError: A vector has a NaN or an infinity; names the ids.

    Example:
        >>> Embeddings(np.eye(2), np.array(["b", "a"])).by_id().rows
        array([[0., 1.],
               [1., 0.]])
    """

    rows: np.ndarray
    ids: np.ndarray = None  # pyright: ignore[reportAssignmentType]
    provenance: Provenance = field(default_factory=dict)
    workers: Workers = HERE

    def __post_init__(self) -> None:
        """Check shapes, ids and numbers."""
        if self.rows.ndim != 2 or not np.issubdtype(self.rows.dtype, np.floating):
            raise ValueError(
                "`rows` must be a matrix of floating-point numbers, one vector a row. Got "
                f"{self.rows.dtype} of shape {self.rows.shape}."
            )
        given = np.arange(len(self.rows)) if self.ids is None else self.ids
        ids = as_ids(given, "`ids`")
        if len(ids) != len(self.rows):
            raise DataError(
                f"`ids` must have one entry a row. Got {len(ids)} ids and {len(self.rows)} rows."
            )
        object.__setattr__(self, "ids", ids)
        bad = _not_finite(self.rows)
        if bad.any():
            raise NonFiniteError(
                f"every embedding must be finite. Those of the ids {ids[bad][:10].tolist()} "
                f"({int(bad.sum())} in all) are not. Remove these rows, or look at their encoder."
            )

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.rows)

    @property
    def num_dims(self) -> int:
        """Number ``d`` of dimensions."""
        return self.rows.shape[1]

    def take(self, which: np.ndarray) -> "Embeddings":
        """Return some rows, by position or by a mask."""
        return replace(self, rows=self.rows[which], ids=self.ids[which])

    def by_id(self) -> "Embeddings":
        """Return the rows in the order of their ids; themselves where they are in it."""
        order = self.order
        return self if (order[1:] > order[:-1]).all() else self.take(order)

    @cached_property
    def order(self) -> np.ndarray:
        """Positions in the order of the ids."""
        return np.argsort(self.ids, kind="stable")

    @cached_property
    def norms(self) -> Float[np.ndarray, " n"]:
        """Length of each vector."""
        parts = [np.linalg.norm(block, axis=1) for block in _blocks(self.rows)]
        return np.concatenate(parts) if parts else np.zeros(0)

    def normalized(self) -> "Embeddings":
        """Return vectors of length 1 as float32; a zero vector, without direction, stays zero."""
        out = np.empty(self.rows.shape, np.float32)
        for start, block in _starts(self.rows):
            norms = np.linalg.norm(block, axis=1, keepdims=True)
            part = out[start : start + len(block)]
            np.divide(block, norms, out=part, where=norms > 0, casting="same_kind")
            part[norms[:, 0] == 0] = 0
        return replace(self, rows=out)


def as_embeddings(source: Any) -> Embeddings:
    """Return embeddings from what callers have.

    Args:
        source: `Embeddings`; a `GradientStore`, whose rows are read into memory; or an
            array ``n d``, whose ids are the positions.

    Raises:
        TypeError: It is none of these.
    """
    if isinstance(source, Embeddings):
        return source
    if isinstance(source, GradientStore):
        note = {"store": dict(source.manifest)}
        return Embeddings(source.rows(np.arange(len(source))), source.ids, note)
    if isinstance(source, np.ndarray):
        return Embeddings(source)
    raise TypeError(
        "embeddings must be `Embeddings`, a `GradientStore` or an array with one vector a row. "
        f"Got {type(source).__name__}. Use `embed` to compute them from rows."
    )


def embed(
    data: Any,
    encoder: Encoder,
    *,
    path: str | Path | None = None,
    batch_size: int = 64,
    shard_size: int = 4096,
) -> Embeddings:
    """Compute the embedding of every row, one shard at a time.

    Args:
        data: A dataset; see `Rows`. A ``ray.data.Dataset`` with a column ``id`` is encoded
            by the workers of its cluster, and gathered in memory.
        encoder: Any function from a list of rows to a matrix with one vector a row. One
            that is a frozen dataclass, or has ``describe``, is told apart from others.
        path: A folder that keeps finished shards; the same call goes on where an earlier
            one was stopped. Without it everything is kept in memory only.
        batch_size: Rows that the encoder gets at a time.
        shard_size: Rows that are finished, and safe, at a time; on Ray, those of a block.

    Returns:
        The vectors as float32, in the order of the data.

    Raises:
        StoreMismatchError: The folder holds embeddings of other data or another encoder.
        ValueError: The encoder does not return one vector a row.
        NonFiniteError: A vector is not finite.

    Example:
        >>> embed(["a", "bbb"], lambda rows: np.array([[float(len(row))] for row in rows])).rows
        array([[1.],
               [3.]], dtype=float32)
    """
    check_at_least("batch_size", batch_size, 1)
    if is_on_ray(data):
        check_ray_arguments(path=path)
        return _embed_on_ray(data, encoder, batch_size)
    rows = as_rows(data)
    shards = shard_ranges(len(rows), shard_size)
    note = {"encoder": _describe(encoder), "data": rows.fingerprint}
    if path is None:
        parts = [vectors for _, vectors in _encode(rows, encoder, shards, 0, batch_size)]
        return Embeddings(np.concatenate(parts), rows.ids, note)
    writer = StoreWriter(path, {**note, "shard_size": shard_size}, num_rows=len(rows))
    for shard, vectors in _encode(rows, encoder, shards, writer.num_finished, batch_size):
        table = Table(rows.ids[shards[shard].start : shards[shard].stop], {ROWS: vectors})
        writer.write(shard, table)
    store = GradientStore.open(path)
    return Embeddings(store.rows(np.arange(len(store))), store.ids, note)


def _embed_on_ray(dataset: Any, encoder: Encoder, batch_size: int) -> Embeddings:
    """Return what workers encode, in the order of the data."""
    work = EncodeTable(encoder=encoder, batch_size=batch_size)
    blocks = track(map_on_ray(dataset, work), "embed", total=None, size=lambda block: len(block[1]))
    found = list(blocks)
    check_not_empty("data", len(found))
    ids = [row_id for block, _ in found for row_id in block]
    note = {"encoder": _describe(encoder), "data": "ray.data.Dataset"}
    rows = np.concatenate([vectors for _, vectors in found])
    return Embeddings(rows, as_ids(ids, "column 'id'"), note, ON_RAY)


def _encode(
    rows: Any, encoder: Encoder, shards: Sequence[range], first: int, batch_size: int
) -> Iterator[tuple[int, Float[np.ndarray, "n d"]]]:
    """Yield the number and the vectors of each shard that is not finished."""
    done = shards[first].start if first < len(shards) else len(rows)
    todo = track(
        range(first, len(shards)),
        "embed",
        total=len(rows),
        done=done,
        size=lambda shard: len(shards[shard]),
    )
    for shard in todo:
        positions = list(shards[shard])
        vectors = encode(encoder, rows.fetch(positions), batch_size)
        bad = _not_finite(vectors)
        if bad.any():
            found = rows.ids[positions][bad][:10].tolist()
            raise NonFiniteError(
                f"every embedding must be finite. Those of the ids {found} are not."
            )
        yield shard, vectors


def _describe(encoder: Encoder) -> dict[str, Any]:
    """Return what tells one encoder from another."""
    try:
        return describe(encoder)
    except TypeError:
        kind = encoder if hasattr(encoder, "__qualname__") else type(encoder)
        return {"kind": f"{kind.__module__}.{kind.__qualname__}"}


def _starts(rows: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Yield the rows in blocks, each with the position of its first."""
    height = max(1, CHECK_BYTES // max(1, rows.shape[1] * rows.itemsize))
    for start in range(0, len(rows), height):
        yield start, rows[start : start + height]


def _blocks(rows: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the rows in blocks."""
    for _, block in _starts(rows):
        yield block


def _not_finite(rows: Float[np.ndarray, "n d"]) -> Bool[np.ndarray, " n"]:
    """Tell which rows have a NaN or an infinity."""
    parts = [~np.isfinite(block).all(axis=1) for block in _blocks(rows)]
    return np.concatenate(parts) if parts else np.zeros(0, dtype=bool)
