"""Texts as tokens: their hashes, and where asked for the tokens themselves."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from selection.dsir.unicode_classes import SPECIAL, characters

Tokenizer = Callable[[str], Sequence[str]]
GROWTH = 3  # bytes of a token with its space and in lower case over those of the text, at most


@dataclass(frozen=True)
class Tokens:
    """Tokens of some rows.

    Args:
        hashes: A 64-bit hash of each token.
        bounds: Where the tokens of each row begin, ``n + 1``.
        text: The tokens in UTF-8, a space behind each, if asked for.
        spans: Where each of them begins and ends.
    """

    hashes: np.ndarray
    bounds: np.ndarray
    text: np.ndarray | None = None
    spans: np.ndarray | None = None


def word_hashes(texts: pa.Array) -> Tokens:
    r"""Return the hashes of the words and punctuation of texts, ``\w+|[^\w\s]+``."""
    from selection.dsir import ngram_kernels as kernels  # it loads numba, which takes a while

    data, bounds = lowered_bytes(texts)
    hashes = np.empty(len(data) + 1, dtype=np.uint64)
    rows = np.empty(len(bounds), dtype=np.int64)
    num = kernels.tokenize(data, bounds, characters().entries, hashes, rows)
    return Tokens(hashes[:num], rows)


def words(texts: pa.Array) -> Tokens:
    """Return the words and punctuation of texts with their hashes."""
    from selection.dsir import ngram_kernels as kernels

    data, bounds = lowered_bytes(texts)
    table = characters()
    text = np.empty(GROWTH * len(data) + 1, dtype=np.uint8)
    spans = np.empty((len(data) + 1, 2), dtype=np.int64)
    rows = np.empty(len(bounds), dtype=np.int64)
    num = kernels.write_tokens(data, bounds, table.classes, table.lowers, text, spans, rows)
    return Tokens(_hashes(text, spans[:num]), rows, text, spans[:num])


def custom_tokens(texts: pa.Array, tokenizer: Tokenizer) -> Tokens:
    """Return the tokens that a function finds in each text in lower case."""
    tokens = [[str(token) for token in tokenizer(text.lower())] for text in texts.to_pylist()]
    encoded = [token.encode() + b" " for row in tokens for token in row]
    text = np.frombuffer(b"".join(encoded), dtype=np.uint8)
    ends = np.cumsum([0, *(len(token) for token in encoded)])
    spans = np.stack([ends[:-1], ends[1:] - 1], axis=1)
    rows = np.cumsum([0, *(len(row) for row in tokens)])
    return Tokens(_hashes(text, spans), rows, text, spans)


def text_hashes(texts: pa.Array) -> np.ndarray:
    """Return a hash of each text as a whole, with its case as it is."""
    from selection.dsir import ngram_kernels as kernels

    data, bounds = bytes_and_bounds(texts)
    hashes = np.empty(len(texts), dtype=np.uint64)
    kernels.hash_texts(data, bounds, hashes)
    return hashes


def _hashes(text: np.ndarray, spans: np.ndarray) -> np.ndarray:
    """Return the hashes of tokens."""
    from selection.dsir import ngram_kernels as kernels

    hashes = np.empty(len(spans), dtype=np.uint64)
    kernels.hash_tokens(text, spans, characters().entries, hashes)
    return hashes


def bytes_and_bounds(texts: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """Return the bytes of texts and where each begins and ends, ``n + 1``."""
    if not len(texts):
        return np.empty(0, np.uint8), np.zeros(1, np.int64)
    large = texts.cast(pa.large_string())
    _, bounds, data = large.buffers()
    starts = np.frombuffer(bounds, np.int64)[large.offset : large.offset + len(large) + 1]
    return np.frombuffer(data or b"", np.uint8), starts


def lowered_bytes(texts: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """Return bytes and bounds, in lower case where a character needs its neighbours for that."""
    from selection.dsir import ngram_kernels as kernels

    data, bounds = bytes_and_bounds(texts)
    if not kernels.has_special(data[bounds[0] : bounds[-1]]):
        return data, bounds
    return bytes_and_bounds(lowered(texts))


def lowered(texts: pa.Array) -> pa.Array:
    """Return texts, those with a character that needs its neighbours for that in lower case."""
    plain = [
        text.lower() if any(letter in text for letter in SPECIAL) else text
        for text in texts.to_pylist()
    ]
    return pa.array(plain, pa.large_string())
