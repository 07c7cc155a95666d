"""Buckets by SHA-256, as the package `data-selection` has them.

The bucket of an n-gram is the digest of its words, joined by spaces, as one big-endian
number modulo the number of buckets. A table of fixed size remembers the n-grams that came
before by a hash of 64 bits, since a few of them make up most of any text.

References:
    Secure hash standard, FIPS 180-4 (NIST 2015), Sec. 6.2.
"""

import threading

import numpy as np

from selection.dsir.ngram_kernels import compiled, finish, longer

MEMORY = 1 << 21  # n-grams that are remembered, by each thread
PROBES = 8
MASK = np.uint64(0xFFFFFFFF)
BLOCK = 64  # bytes


def _roots(power: float, num: int) -> np.ndarray:
    """Return the first 32 bits behind the point of the roots of the first primes."""
    primes: list[int] = []
    while len(primes) < num:
        last = primes[-1] if primes else 1
        primes.append(next(p for p in range(last + 1, 1000) if all(p % q for q in primes)))
    return np.array([_fraction(prime, power) for prime in primes], dtype=np.uint64)


def _fraction(prime: int, power: float) -> int:
    """Return the 32 bits behind the point of the root of a prime, exactly."""
    degree = round(1 / power)
    low, high = 0, prime << 32
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if middle**degree <= prime << 32 * degree else (low, middle - 1)
    return low & 0xFFFFFFFF


CONSTANTS = _roots(1 / 3, 64)
START = _roots(1 / 2, 8)


@compiled
def rotate(value: np.uint64, bits: int) -> np.uint64:
    """Rotate a 32-bit word to the right."""
    return ((value >> np.uint64(bits)) | (value << np.uint64(32 - bits))) & MASK


@compiled
def absorb(block: np.ndarray, state: np.ndarray, words: np.ndarray) -> None:
    """Change the state by one block of 64 bytes."""
    for i in range(16):
        word = np.uint64(0)
        for j in range(4):
            word = (word << np.uint64(8)) | np.uint64(block[4 * i + j])
        words[i] = word
    for i in range(16, 64):
        x, y = words[i - 15], words[i - 2]
        s0 = rotate(x, 7) ^ rotate(x, 18) ^ (x >> np.uint64(3))
        s1 = rotate(y, 17) ^ rotate(y, 19) ^ (y >> np.uint64(10))
        words[i] = (words[i - 16] + s0 + words[i - 7] + s1) & MASK
    a, b, c, d, e, f, g, h = state
    for i in range(64):
        s1 = rotate(e, 6) ^ rotate(e, 11) ^ rotate(e, 25)
        choice = (e & f) ^ ((e ^ MASK) & g)
        t1 = (h + s1 + choice + CONSTANTS[i] + words[i]) & MASK
        s0 = rotate(a, 2) ^ rotate(a, 13) ^ rotate(a, 22)
        majority = (a & b) ^ (a & c) ^ (b & c)
        h, g, f, e = g, f, e, (d + t1) & MASK
        d, c, b, a = c, b, a, (t1 + s0 + majority) & MASK
    for i, word in enumerate((a, b, c, d, e, f, g, h)):
        state[i] = (state[i] + word) & MASK


@compiled
def sha256(
    text: np.ndarray, first: int, last: int, state: np.ndarray, block: np.ndarray, words: np.ndarray
) -> None:
    """Leave the digest of ``text[first:last]`` in ``state``, as eight words."""
    state[:] = START
    at = first
    while last - at >= BLOCK:
        absorb(text[at : at + BLOCK], state, words)
        at += BLOCK
    left = last - at
    block[:] = 0
    block[:left] = text[at:last]
    block[left] = 0x80
    if left >= BLOCK - 8:
        absorb(block, state, words)
        block[:] = 0
    bits = (last - first) * 8
    for i in range(8):
        block[BLOCK - 1 - i] = (bits >> (8 * i)) & 0xFF
    absorb(block, state, words)


@compiled
def bucket_ngrams(
    text: np.ndarray,
    spans: np.ndarray,
    hashes: np.ndarray,
    row_tokens: np.ndarray,
    order: int,
    num_buckets: int,
    keys: np.ndarray,
    values: np.ndarray,
    buckets: np.ndarray,
) -> None:
    """Write the bucket of every n-gram, and remember it under its 64-bit hash.

    Args:
        text: Tokens as UTF-8, with one space between those of a row.
        spans: Where each token begins and ends.
        hashes: The 64-bit hash of each token.
        row_tokens: Where the tokens of each row begin.
        order: The longest n-gram.
        num_buckets: Number of buckets.
        keys: Hashes that are remembered; 0 is a free place.
        values: Their buckets.
        buckets: Receives one number an n-gram.
    """
    state, words = np.empty(8, np.uint64), np.empty(64, np.uint64)
    block = np.empty(BLOCK, np.uint8)
    size, num = np.uint64(len(keys) - 1), 0
    for row in range(len(row_tokens) - 1):
        for last in range(row_tokens[row], row_tokens[row + 1]):
            value = hashes[last]
            for length in range(1, min(order, last - row_tokens[row] + 1) + 1):
                first = last - length + 1
                if length > 1:
                    value = longer(value, hashes[first])
                key = finish(value, length) | np.uint64(1)
                place, probes = key >> np.uint64(20) & size, 0
                while keys[place] != key and keys[place] != 0 and probes < PROBES:
                    place = (place + np.uint64(1)) & size
                    probes += 1
                if keys[place] != key:
                    sha256(text, spans[first, 0], spans[last, 1], state, block, words)
                    rest = np.uint64(0)
                    for i in range(8):
                        rest = ((rest << np.uint64(32)) | state[i]) % np.uint64(num_buckets)
                    keys[place], values[place] = key, rest
                buckets[num] = values[place]
                num += 1


class Memory(threading.local):
    """The n-grams that this thread has met, for one number of buckets."""

    def __init__(self) -> None:
        """Start with nothing."""
        self.num_buckets = 0
        self.keys = np.zeros(0, np.uint64)
        self.values = np.zeros(0, np.int32)

    def of(self, num_buckets: int) -> tuple[np.ndarray, np.ndarray]:
        """Return keys and values, empty ones for another number of buckets than before."""
        if num_buckets != self.num_buckets:
            self.num_buckets = num_buckets
            self.keys = np.zeros(MEMORY, np.uint64)
            self.values = np.zeros(MEMORY, np.int32)
        return self.keys, self.values


MEMORIES = Memory()
