"""Hashed n-grams of words: what DSIR knows of a text.

Letters: ``n`` rows, ``T`` targets, ``B`` buckets, ``S`` sets that are counted separately.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
from jaxtyping import Float, Int

from projections import check_at_least, check_between, check_one_of
from selection.dsir.tokens import (
    Tokenizer,
    Tokens,
    bytes_and_bounds,
    custom_tokens,
    lowered,
    word_hashes,
    words,
)
from selection.dsir.unicode_classes import characters

HashName = Literal["fast", "sha256"]
MAX_BUCKETS = (1 << 31) - 1  # they are kept as int32


@dataclass(frozen=True, kw_only=True)
class HashedNgrams:
    r"""Bags of the n-grams of 1 to ``order`` words, hashed into buckets.

    Tokens are those of ``\w+|[^\w\s]+`` in the text in lower case. All orders share one
    space of buckets.

    Args:
        order: The longest n-gram, in words.
        num_buckets: Number ``B`` of buckets.
        hashing: ``"fast"``, or ``"sha256"`` for the buckets of the package `data-selection`:
            the hash of the words joined by spaces, modulo ``B``.
        tokenizer: Takes the text in lower case and returns its tokens, instead of the rule
            above. It runs in Python, and so slower.

    Raises:
        ValueError: A number is out of range.

    Example:
        >>> ngrams = HashedNgrams(num_buckets=10_000, hashing="sha256")
        >>> ngrams(pa.array(["Alice went"])).buckets.tolist()  # alice, went, alice went
        [6720, 5816, 114]

    References:
        Xie et al., Data selection for language models via importance resampling (NeurIPS
        2023), arXiv:2302.03169, Sec. 4.
    """

    order: int = 2
    num_buckets: int = 10_000
    hashing: HashName = "fast"
    tokenizer: Tokenizer | None = None

    def __post_init__(self) -> None:
        """Check the arguments."""
        check_at_least("order", self.order, 1)
        check_between("num_buckets", self.num_buckets, 1, MAX_BUCKETS)
        check_one_of("hashing", self.hashing, ("fast", "sha256"))

    def __call__(self, texts: pa.Array) -> "NgramBatch":
        """Return the buckets of all n-grams of some texts.

        Args:
            texts: Arrow array of text.
        """
        from selection.dsir import ngram_kernels as kernels  # it loads numba, which takes a while

        tokens = self._tokens(texts)
        bounds = kernels.ngram_bounds(tokens.bounds, self.order)
        buckets = np.empty(bounds[-1], dtype=np.int32)
        if self.hashing == "fast":
            kernels.fast_buckets(
                tokens.hashes, tokens.bounds, self.order, self.num_buckets, buckets
            )
        else:
            self._sha256(tokens, buckets)
        return NgramBatch(buckets, bounds, np.diff(tokens.bounds))

    def count(
        self, texts: pa.Array, slots: Int[np.ndarray, " n"], counts: Int[np.ndarray, "S B"]
    ) -> None:
        """Add the n-grams of each row to the counts of a set, or to none.

        Args:
            texts: Arrow array of text.
            slots: The set of each row; negative for none.
            counts: Counts to add to.
        """
        if not self._in_one_sweep:
            self(texts).count(slots, counts)
            return
        from selection.dsir import ngram_kernels as kernels

        unclear, entries = np.zeros(len(texts), dtype=bool), characters().entries
        text = bytes_and_bounds(texts)
        kernels.count_rows(*text, entries, self.order, slots, counts, unclear)
        if unclear.any():
            self.count(lowered(texts.filter(pa.array(unclear))), slots[unclear], counts)

    def sums(
        self, texts: pa.Array, table: Float[np.ndarray, "T B"]
    ) -> tuple[Float[np.ndarray, "n T"], Int[np.ndarray, " n"]]:
        """Return the sum of a table over the n-grams of each row, and its number of tokens.

        Args:
            texts: Arrow array of text.
            table: A number for each bucket.
        """
        if not self._in_one_sweep:
            found = self(texts)
            return found.sums(table), found.num_tokens
        from selection.dsir import ngram_kernels as kernels

        sums, num_tokens = np.empty((len(texts), len(table))), np.empty(len(texts), dtype=np.int64)
        unclear, entries = np.zeros(len(texts), dtype=bool), characters().entries
        text = bytes_and_bounds(texts)
        kernels.sum_rows(*text, entries, self.order, table, sums, num_tokens, unclear)
        if unclear.any():
            found = self.sums(lowered(texts.filter(pa.array(unclear))), table)
            sums[unclear], num_tokens[unclear] = found
        return sums, num_tokens

    @property
    def _in_one_sweep(self) -> bool:
        """Whether buckets follow from the bytes of a text, with no tokens in between."""
        return self.tokenizer is None and self.hashing == "fast"

    def num_ngrams(self, num_tokens: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
        """Return the number of n-grams of rows of so many tokens."""
        lengths = np.arange(1, self.order + 1)
        return np.maximum(num_tokens[:, None] - lengths + 1, 0).sum(1)

    def _tokens(self, texts: pa.Array) -> Tokens:
        """Return the tokens of texts, themselves only if SHA-256 needs them."""
        if self.tokenizer is not None:
            return custom_tokens(texts, self.tokenizer)
        return word_hashes(texts) if self.hashing == "fast" else words(texts)

    def _sha256(self, tokens: Tokens, buckets: np.ndarray) -> None:
        """Write the buckets by SHA-256."""
        from selection.dsir.sha256_kernel import MEMORIES, bucket_ngrams

        keys, values = MEMORIES.of(self.num_buckets)
        bucket_ngrams(
            tokens.text,
            tokens.spans,
            tokens.hashes,
            tokens.bounds,
            self.order,
            self.num_buckets,
            keys,
            values,
            buckets,
        )


@dataclass(frozen=True)
class NgramBatch:
    """The buckets of the n-grams of some rows.

    Args:
        buckets: One bucket an n-gram; those that end at a word stand together, short ones first.
        bounds: Where the n-grams of each row begin, ``n + 1``.
        num_tokens: Number of words of each row.
    """

    buckets: Int[np.ndarray, " g"]
    bounds: Int[np.ndarray, " n1"]
    num_tokens: Int[np.ndarray, " n"]

    def count(self, slots: Int[np.ndarray, " n"], counts: Int[np.ndarray, "S B"]) -> None:
        """Add each row to the counts of a set, or to none where its slot is negative."""
        from selection.dsir import ngram_kernels as kernels

        kernels.count(self.buckets, self.bounds, slots, counts)

    def sums(self, table: Float[np.ndarray, "T B"]) -> Float[np.ndarray, "n T"]:
        """Return the sum of a table over the n-grams of each row."""
        from selection.dsir import ngram_kernels as kernels

        sums = np.empty((len(self.num_tokens), len(table)))
        kernels.gather(self.buckets, self.bounds, table, sums)
        return sums
