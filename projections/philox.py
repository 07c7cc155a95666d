"""Philox4x32-10: random bits as a pure function of a key and a counter.

The bits do not depend on the device, on the number of threads or on what was drawn
before, so a random map is defined by its key alone and need not be stored.

References:
    Salmon et al., Parallel random numbers: as easy as 1, 2, 3 (SC 2011).
"""

from hashlib import sha256

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

MASK = 0xFFFFFFFF
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)
ROUNDS = 10
Key = tuple[int, int]


def derive_key(seed: int, name: str) -> Key:
    """Return the key of the map called ``name``: 64 bits of ``sha256("{seed}/{name}")``."""
    digest = sha256(f"{seed}/{name}".encode()).digest()
    return int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:8], "little")


def philox(key: Key, *counter: Int[Tensor, "..."] | int) -> Int[Tensor, "... 4"]:
    """Return four 32-bit words for each counter.

    Args:
        key: Two 32-bit words.
        counter: One to four words of each counter, the first as an int64 tensor in
            ``[0, 2**32)``, which the others are broadcast to. Missing words are zero.

    Returns:
        The words as int64 in ``[0, 2**32)``, on the device of the first word.

    Example:
        >>> words = philox((0, 0), torch.zeros(1, dtype=torch.int64))
        >>> [f"{int(word):08x}" for word in words[0]]
        ['6627e8d5', 'e169c58d', 'bc57ac4c', '9b00dbd8']
    """
    zero = torch.zeros_like(torch.as_tensor(counter[0]))
    c0, c1, c2, c3 = (zero + word for word in (*counter, 0, 0, 0)[:4])
    k0, k1 = key
    for _ in range(ROUNDS):
        # The product wraps in int64, which leaves all 64 bits right; >> copies the sign.
        p0, p1 = c0 * MULTIPLIERS[0], c2 * MULTIPLIERS[1]
        c0 = ((p1 >> 32) & MASK) ^ c1 ^ k0
        c1 = p1 & MASK
        c2 = ((p0 >> 32) & MASK) ^ c3 ^ k1
        c3 = p0 & MASK
        k0, k1 = (k0 + WEYL[0]) & MASK, (k1 + WEYL[1]) & MASK
    return torch.stack([c0, c1, c2, c3], dim=-1)


def distinct(values: Int[Tensor, "..."]) -> tuple[Int[Tensor, " u"], Int[Tensor, "..."]]:
    """Return what occurs, to draw for each only once, and where each value stands in that.

    On a CPU. A GPU would be waited for, and draws faster than it can be asked: there all
    values are returned as they are.

    Args:
        values: Whole numbers.
    """
    if values.device.type == "cpu":
        return values.unique(return_inverse=True)
    return values.flatten(), torch.arange(values.numel(), device=values.device).view(values.shape)


def uniforms(seed: int, name: str, size: int) -> Float[np.ndarray, " size"]:
    """Return numbers in ``[0, 1)``, each a function of the seed, the name and its position.

    Args:
        seed: The seed.
        name: What the numbers are for, so that two uses of one seed do not meet.
        size: How many.

    Example:
        >>> uniforms(0, "an example", 3).round(3)
        array([0.939, 0.904, 0.965])
    """
    words = philox(derive_key(seed, name), torch.arange(-(-size // 4)))
    return words.reshape(-1)[:size].numpy() / 2.0**32


def keyed_words(seed: int, name: str, numbers: Int[np.ndarray, " n"]) -> Int[np.ndarray, "n 4"]:
    """Return four random 32-bit words for each number below 2**63, whatever comes beside it.

    Args:
        seed: The seed.
        name: What the words are for, so that two uses of one seed do not meet.
        numbers: Numbers of what is drawn.

    Example:
        >>> both = keyed_words(0, "an example", np.array([5, 7]))
        >>> bool((both[1] == keyed_words(0, "an example", np.array([7]))[0]).all())
        True
    """
    low = torch.from_numpy(np.asarray(numbers, dtype=np.int64) & MASK)
    high = torch.from_numpy(np.asarray(numbers, dtype=np.int64) >> 32)
    return philox(derive_key(seed, name), low, high).numpy()


def draw_subset(key: Key, size: int, count: int) -> Int[Tensor, " c"]:
    """Return ``count`` of the numbers below ``size``, drawn without replacement, in order.

    Args:
        key: Key of the draw.
        size: How many numbers there are.
        count: How many are drawn: those with the smallest random words.
    """
    words = philox(key, torch.arange(-(-size // 4))).flatten()[:size]
    return words.argsort(stable=True)[:count].sort().values
