"""Hashed n-grams are those of the plain definition, by any hash, and depend on nothing else."""

import hashlib
import re
import sys
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from projections import TextBatch
from selection import HashedNgrams
from selection.dsir.ngrams import HashName
from selection.dsir.noise import gumbel, row_uniforms
from selection.dsir.pieces import cut
from selection.dsir.tokens import word_hashes
from selection.dsir.unicode_classes import NUM_POINTS, OTHER, SPACE, WORD, characters

WORDS = re.compile(r"\w+|[^\w\s]+")
TEXTS = [
    "Alice went to the store",
    "",
    " \n\t",
    "Alice walked into the store\n\n()()($#%@?)@(#(*",
    "ΑΣ ΌΔΟΣ, İstanbul Straße ǅ x_1 ٣٤ 你好 ⅷ ² 😀😀!! a\u0301b \u00a0x\u200by \x1c z",
    "long" * 400,
]


def oracle_tokens(text: str) -> list[str]:
    """Return tokens by the regular expression: obviously right, and slow."""
    return WORDS.findall(text.lower())


def oracle_buckets(text: str, order: int, num_buckets: int) -> list[int]:
    """Return buckets one n-gram at a time, with the hash of the standard library."""
    tokens = oracle_tokens(text)
    ngrams = [
        " ".join(tokens[last - length + 1 : last + 1])
        for last in range(len(tokens))
        for length in range(1, min(order, last + 1) + 1)
    ]
    return [int(hashlib.sha256(n.encode()).hexdigest(), 16) % num_buckets for n in ngrams]


def oracle_tokenizer(text: str) -> list[str]:
    return WORDS.findall(text)


def test_the_reference_vectors_hold() -> None:
    ngrams = HashedNgrams(hashing="sha256")
    found = ngrams(pa.array(TEXTS))
    alice = found.buckets[: found.bounds[1]]
    assert len(alice) == 9  # 5 words and 4 pairs
    assert (alice[0], alice[2]) == (6720, 114)  # alice, alice went
    assert found.num_tokens.tolist()[:4] == [5, 0, 0, 6]
    assert np.diff(found.bounds).tolist()[:4] == [9, 0, 0, 11]
    assert ngrams.num_ngrams(found.num_tokens).tolist() == np.diff(found.bounds).tolist()


@pytest.mark.parametrize("order", [1, 2, 3, 5])
@pytest.mark.parametrize("num_buckets", [1, 7, 10_000, 2**31 - 1])
def test_sha256_buckets_are_those_of_the_standard_library(order: int, num_buckets: int) -> None:
    found = HashedNgrams(order=order, num_buckets=num_buckets, hashing="sha256")(pa.array(TEXTS))
    expected = [oracle_buckets(text, order, num_buckets) for text in TEXTS]
    assert found.buckets.tolist() == list(chain(*expected))
    assert np.diff(found.bounds).tolist() == [len(one) for one in expected]


@settings(max_examples=150, deadline=None)
@given(
    texts=st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=40), max_size=5),
    order=st.integers(1, 4),
)
def test_any_text_has_the_buckets_of_the_oracle(texts: list[str], order: int) -> None:
    array = pa.array(texts, pa.string())
    found = HashedNgrams(order=order, hashing="sha256")(array)
    assert found.buckets.tolist() == list(chain(*(oracle_buckets(t, order, 10_000) for t in texts)))
    assert found.num_tokens.tolist() == [len(oracle_tokens(text)) for text in texts]
    fast = HashedNgrams(order=order)(array)
    custom = HashedNgrams(order=order, tokenizer=oracle_tokenizer)(array)
    assert fast.buckets.tolist() == custom.buckets.tolist()
    assert fast.bounds.tolist() == found.bounds.tolist() == custom.bounds.tolist()


@pytest.mark.parametrize("length", [0, 1, 54, 55, 56, 63, 64, 65, 119, 120, 128, 1000])
def test_sha256_is_right_at_every_length_of_its_padding(length: int) -> None:
    text = "a" * length
    found = HashedNgrams(order=1, num_buckets=2**31 - 1, hashing="sha256")(pa.array([text]))
    assert found.buckets.tolist() == oracle_buckets(text, 1, 2**31 - 1)


def test_every_character_has_the_class_and_the_lower_case_of_python() -> None:
    table = characters()
    for point in range(0, NUM_POINTS, 1 if "slow" in sys.argv else 13):
        letter = chr(point)
        lower = letter.lower()
        if len(lower) > 1 or 0xD800 <= point < 0xE000:
            continue
        kind = WORD if re.match(r"\w", lower) else SPACE if lower.isspace() else OTHER
        assert (table.classes[point], table.lowers[point]) == (kind, ord(lower)), hex(point)


def test_fast_buckets_are_even() -> None:
    texts = pa.array([f"w{number}" for number in range(200_000)])
    counts = np.bincount(HashedNgrams(order=1)(texts).buckets, minlength=10_000)
    squares = ((counts - 20) ** 2 / 20).sum()  # chi-square with 9,999 degrees of freedom
    assert abs(squares - 9999) < 5 * np.sqrt(2 * 9999)


def test_a_text_has_the_same_buckets_alone_and_among_others() -> None:
    ngrams = HashedNgrams(order=3)
    together = ngrams(pa.array(TEXTS))
    for row, text in enumerate(TEXTS):
        part = together.buckets[together.bounds[row] : together.bounds[row + 1]]
        assert ngrams(pa.array([text])).buckets.tolist() == part.tolist()
    sliced = ngrams(pa.array(["x y", *TEXTS, "z"]).slice(1, len(TEXTS)))
    assert sliced.buckets.tolist() == together.buckets.tolist()


def test_tokens_that_repeat_or_swap_letters_a_word_apart_have_hashes_of_their_own() -> None:
    runs = [letter * count for letter in "-=ax" for count in range(1, 700)]
    random = np.random.default_rng(0)
    swaps = ["".join(random.permutation(list("abcdefgh" * 17))) for _ in range(500)]
    swaps += [text[64] + text[1:64] + text[0] + text[65:] for text in swaps if text[0] != text[64]]
    for texts in (runs, swaps):
        assert len(np.unique(word_hashes(pa.array(texts)).hashes)) == len(set(texts))


@pytest.mark.parametrize("order", [1, 2, 4])
@pytest.mark.parametrize("hashing", ["fast", "sha256"])
def test_sums_and_counts_are_those_of_the_dense_vectors(order: int, hashing: HashName) -> None:
    ngrams = HashedNgrams(order=order, num_buckets=50, hashing=hashing)
    texts = pa.array(["x y", *TEXTS, "z"]).slice(1, len(TEXTS))
    found = ngrams(texts)
    dense = np.stack(
        [
            np.bincount(found.buckets[a:b], minlength=50)
            for a, b in zip(found.bounds[:-1], found.bounds[1:], strict=True)
        ]
    )
    table = np.random.default_rng(0).normal(size=(3, 50))
    slots = np.array([0, 1, -1, 0, 1, -1])
    counts = np.zeros((2, 2, 50), np.int64)
    found.count(slots, counts[0])
    ngrams.count(texts, slots, counts[1])
    for one in counts:
        np.testing.assert_array_equal(one, [dense[[0, 3]].sum(0), dense[[1, 4]].sum(0)])
    sums, num_tokens = ngrams.sums(texts, table)
    for each in (sums, found.sums(table)):
        np.testing.assert_allclose(each, dense @ table.T, atol=1e-9)
    np.testing.assert_array_equal(num_tokens, found.num_tokens)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"order": 0}, "`order` must be at least 1. Got 0"),
        ({"num_buckets": 0}, r"`num_buckets` must be in \[1, 2147483647\]\. Got 0"),
        ({"num_buckets": 2**31}, r"`num_buckets` must be in \[1, 2147483647\]"),
    ],
)
def test_a_bad_argument_is_named(arguments: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HashedNgrams(**arguments)


# Pieces.


@settings(max_examples=60, deadline=None)
@given(texts=st.lists(st.text("aé. \n", max_size=30), max_size=4), length=st.integers(1, 5))
def test_pieces_put_together_are_the_text(texts: list[str], length: int) -> None:
    ids = pa.array([f"r{n}" for n in range(len(texts))])
    pieces, origin = cut(TextBatch(ids, pa.array(texts, pa.string()), ids), length)
    joined = [""] * len(texts)
    for row, text in zip(origin.tolist(), pieces.texts.to_pylist(), strict=True):
        joined[row] += text
    assert joined == texts
    for row, text in enumerate(texts):
        own = [
            t for r, t in zip(origin.tolist(), pieces.texts.to_pylist(), strict=True) if r == row
        ]
        sizes = [len(oracle_tokens(piece)) for piece in own]
        assert sizes[:-1] == [length] * (len(sizes) - 1)
        assert sizes[-1] <= length
        assert [t for piece in own for t in oracle_tokens(piece)] == oracle_tokens(text)
    assert pieces.ids.to_pylist() == [
        f"r{row}:{[*origin[:n]].count(row)}" for n, row in enumerate(origin.tolist())
    ]
    assert pieces.domains is not None
    assert pieces.domains.to_pylist() == [f"r{row}" for row in origin.tolist()]


# Noise.


def test_noise_belongs_to_the_row_alone() -> None:
    ids = pa.array([f"row {n}" for n in range(1000)])
    noise = row_uniforms(ids, seed=3, name="x")
    order = np.random.default_rng(0).permutation(1000)
    np.testing.assert_array_equal(
        row_uniforms(ids.take(pa.array(order)), seed=3, name="x"), noise[order]
    )
    np.testing.assert_array_equal(row_uniforms(ids[5:7], seed=3, name="x"), noise[5:7])
    for other in ({"seed": 4, "name": "x"}, {"seed": 3, "name": "y"}):
        assert not np.isclose(row_uniforms(ids, **other), noise).any()
    numbers = row_uniforms(pa.array([7, 12]), seed=0, name="x")
    np.testing.assert_array_equal(row_uniforms(pa.array(["7", "12"]), seed=0, name="x"), numbers)


def test_ids_that_are_alike_have_noise_that_is_not() -> None:
    numbers = row_uniforms(pa.array(range(100_000)), seed=0, name="x")
    assert len(np.unique(numbers)) == len(numbers)
    assert abs(np.corrcoef(numbers[:-1], numbers[1:])[0, 1]) < 5 / np.sqrt(len(numbers))


def test_noise_is_uniform_and_gumbel() -> None:
    from scipy.stats import gumbel_r, kstest

    ids = pa.array(range(20_000))
    assert kstest(row_uniforms(ids, seed=0, name="x"), "uniform").pvalue > 1e-3
    assert kstest(gumbel(ids, seed=0, name="x"), gumbel_r.cdf).pvalue > 1e-3
