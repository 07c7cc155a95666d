"""From some rows to their vectors, by an encoder, here or on a worker.

Letters: ``n`` rows, ``d`` dimensions.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Float

from projections.ray_data import check_ray_ids

Encoder = Callable[[list[Any]], Any]


def encode(encoder: Encoder, rows: list[Any], batch_size: int) -> Float[np.ndarray, "n d"]:
    """Return the vectors of rows as float32.

    Args:
        encoder: A function from a list of rows to a matrix with one vector a row.
        rows: At least one.
        batch_size: Rows that the encoder gets at a time.

    Raises:
        ValueError: The encoder does not return one vector a row.

    Example:
        >>> encode(lambda rows: np.array([[len(row)] for row in rows]), ["a", "bbb"], 1)
        array([[1.],
               [3.]], dtype=float32)
    """
    starts = range(0, len(rows), batch_size)
    return np.concatenate([_call(encoder, rows[start : start + batch_size]) for start in starts])


@dataclass(frozen=True, kw_only=True)
class EncodeTable:
    """Ids and vectors of a block of a Ray dataset.

    Args:
        encoder: A function from a list of rows, which are mappings, to a matrix.
        batch_size: Rows that the encoder gets at a time.
    """

    encoder: Encoder
    batch_size: int

    def __call__(self, table: pa.Table) -> tuple[list[Any], Float[np.ndarray, "n d"]]:
        """Encode one block.

        Raises:
            DataError: It has no column of ids.
        """
        check_ray_ids(table, "id")
        vectors = encode(self.encoder, table.to_pylist(), self.batch_size)
        return table.column("id").to_pylist(), vectors


def _call(encoder: Encoder, batch: list[Any]) -> Float[np.ndarray, "n d"]:
    """Return the vectors of a batch, and refuse what are none."""
    vectors = np.asarray(encoder(batch), dtype=np.float32)
    if vectors.ndim != 2 or len(vectors) != len(batch):
        raise ValueError(
            f"`encoder` must return a matrix with one vector a row. For {len(batch)} rows it "
            f"returned the shape {vectors.shape}."
        )
    return vectors
