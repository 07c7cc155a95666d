"""Random numbers and orders that are pure functions of a seed, a name and a number.

Letters: ``n`` numbers.
"""

import numpy as np
from jaxtyping import Float, Int

from projections import keyed_words


def keyed_uniforms(seed: int, name: str, numbers: Int[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Return one number in ``[0, 1)``, of 53 bits, for each number.

    Example:
        >>> both = keyed_uniforms(0, "draw", np.array([3, 8]))
        >>> bool(both[1] == keyed_uniforms(0, "draw", np.array([8]))[0])
        True
    """
    words = keyed_words(seed, name, numbers)
    return ((words[:, 0] >> 5) * float(1 << 26) + (words[:, 1] >> 6)) / float(1 << 53)


def keyed_order(seed: int, name: str, count: int) -> Int[np.ndarray, " n"]:
    """Return ``0`` to ``count - 1`` in random order.

    Example:
        >>> sorted(keyed_order(0, "rows", 4).tolist())
        [0, 1, 2, 3]
    """
    words = keyed_words(seed, name, np.arange(count))
    return np.lexsort((words[:, 1], words[:, 0]))
