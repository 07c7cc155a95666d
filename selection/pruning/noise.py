"""Orders by chance that belong to seed and row id, and so to no order of rows or shards.

Letters: ``n`` rows.
"""

import numpy as np
import pyarrow as pa
from jaxtyping import Float

from selection.dsir.noise import gumbel, row_uniforms


def chances(ids: np.ndarray, *, seed: int, name: str) -> Float[np.ndarray, " n"]:
    """Return one number in ``(0, 1)`` for each row."""
    return row_uniforms(pa.array(ids.tolist()), seed=seed, name=name)


def gumbel_noise(ids: np.ndarray, *, seed: int, name: str) -> Float[np.ndarray, " n"]:
    """Return standard Gumbel noise for each row."""
    return gumbel(pa.array(ids.tolist()), seed=seed, name=name)
