"""Noise that belongs to a row: a pure function of seed, name and row id.

What is drawn for a row depends on no other row, so that nothing depends on workers, shards
or the order of files. An id counts by its text: 7 and "7" are the same.
"""

import numpy as np
import pyarrow as pa
from jaxtyping import Float, UInt

from projections import keyed_words
from selection.dsir.tokens import text_hashes


def row_uniforms(ids: pa.Array, *, seed: int, name: str) -> Float[np.ndarray, " n"]:
    """Return one number in ``(0, 1)`` for each id.

    Args:
        ids: Row ids.
        seed: Seed.
        name: What the numbers are for; different names give independent numbers.

    Example:
        >>> row_uniforms(pa.array(["7", "8"]), seed=0, name="an example").round(3)
        array([0.586, 0.132])
        >>> bool((row_uniforms(pa.array([7]), seed=0, name="an example") < 1).all())
        True
    """
    numbers = (id_hashes(ids) >> np.uint64(1)).astype(np.int64)
    words = keyed_words(seed, name, numbers)
    whole = (words[:, 0] << 20) | (words[:, 1] >> 12)
    return (whole + 0.5) * 2.0**-52


def gumbel(ids: pa.Array, *, seed: int, name: str) -> Float[np.ndarray, " n"]:
    """Return standard Gumbel noise of each id, ``-log(-log(u))``."""
    return -np.log(-np.log(row_uniforms(ids, seed=seed, name=name)))


def id_hashes(ids: pa.Array) -> UInt[np.ndarray, " n"]:
    """Return 64 bits of each id, of its text."""
    return text_hashes(ids.cast(pa.large_string()))
