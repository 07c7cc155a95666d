"""Compiled loops over text: tokens, n-grams, buckets, and what is added up over them.

Letters: ``n`` rows, ``T`` targets, ``B`` buckets. Text is UTF-8 in one array of bytes with
the bounds of its rows, as arrow keeps it. Every loop releases the lock of the interpreter,
so that threads work side by side.

Import this module where it is needed and not at the top of a file: it loads numba.
"""

from collections.abc import Callable
from inspect import unwrap
from typing import Any

import numba
import numpy as np

from selection.dsir.unicode_classes import CLASS_BITS, SPECIAL

ONE = np.uint64(1)
TIMES = np.uint64(0xD6E8FEB86659FD93)  # the base of the polynomial that a text's hash is
MIX_1 = np.uint64(0xFF51AFD7ED558CCD)  # of the finaliser of MurmurHash3
MIX_2 = np.uint64(0xC4CEB9FE1A85EC53)
STEP = np.uint64(0x9E3779B97F4A7C15)
HALF = np.uint64(33)
WORD_BITS = np.uint64(32)
ASCII = np.uint64(0x80)
CLASS = np.uint64(CLASS_BITS)
LAST = np.uint64(63)
NONE = np.uint64(0)
SIGMA, DOTTED_I = (np.uint64(ord(letter)) for letter in SPECIAL)
UNCLEAR = np.uint64(0xFFFFFFFFFFFFFFFF)  # instead of the number of a row's tokens


def compiled(function: Callable[..., Any]) -> Any:
    """Compile without the lock, and keep the machine code where a folder can be written."""
    plain = unwrap(function)  # what checks types during tests cannot be compiled
    try:
        return numba.njit(nogil=True, cache=True)(plain)
    except RuntimeError:  # neither the package nor a cache folder of the user is writable
        return numba.njit(nogil=True)(plain)


@compiled
def mix(value: np.uint64) -> np.uint64:
    """Spread the bits of a hash over the whole word."""
    value ^= value >> HALF
    value *= MIX_1
    value ^= value >> HALF
    value *= MIX_2
    return value ^ (value >> HALF)


@compiled
def has_special(data: np.ndarray) -> bool:
    """Tell whether a capital sigma or a dotted capital I is in the text."""
    found = 0
    for at in range(len(data) - 1):
        first, second = data[at], data[at + 1]
        found |= ((first == 0xCE) & (second == 0xA3)) | ((first == 0xC4) & (second == 0xB0))
    return found != 0


@compiled
def decode(data: np.ndarray, at: int) -> tuple[int, int]:
    """Return the code point that starts at a byte, and its width. The text is valid."""
    first = np.int64(data[at])
    if first < 0xE0:
        return ((first & 0x1F) << 6) | (data[at + 1] & 0x3F), 2
    if first < 0xF0:
        point = ((first & 0x0F) << 12) | ((data[at + 1] & 0x3F) << 6)
        return point | (data[at + 2] & 0x3F), 3
    point = ((first & 0x07) << 18) | ((data[at + 1] & 0x3F) << 12)
    return point | ((data[at + 2] & 0x3F) << 6) | (data[at + 3] & 0x3F), 4


@compiled
def grown(value: np.uint64, entry: np.uint64) -> np.uint64:
    """Return the hash of a token with another character: one bit around, and its entry."""
    return ((value << ONE) | (value >> LAST)) + entry


@compiled
def row_hashes(
    data: np.ndarray, start: int, end: int, entries: np.ndarray, hashes: np.ndarray
) -> np.uint64:
    """Hash the tokens of one row.

    All numbers are unsigned, since a signed index costs a look whether it is negative. A hash
    is written at each byte and kept at the ends of tokens, since branches would be guessed
    wrong.

    Args:
        data: Bytes of all rows.
        start: Where the row begins.
        end: Where it ends.
        entries: Hash of the lower case of each code point, with its class.
        hashes: Receives one hash a token; one place more than the row has bytes.

    Returns:
        The number of tokens, or `UNCLEAR` if the lower case of a character depends on others.
    """
    num, at, stop, state, value = NONE, np.uint64(start), np.uint64(end), NONE, NONE
    while at < stop:
        point, width = np.uint64(data[at]), ONE
        if point >= ASCII:
            wide, length = decode(data, np.int64(at))
            point, width = np.uint64(wide), np.uint64(length)
            if (point == SIGMA) | (point == DOTTED_I):
                return UNCLEAR
        entry = np.uint64(entries[point])
        kind = entry & CLASS
        same = kind == state
        hashes[num] = value
        num += np.uint64((not same) & (state != NONE))
        value = grown(value if same else NONE, entry)
        state = kind
        at += width
    hashes[num] = value
    return num + np.uint64(state != NONE)


@compiled
def tokenize(
    data: np.ndarray,
    bounds: np.ndarray,
    entries: np.ndarray,
    hashes: np.ndarray,
    row_tokens: np.ndarray,
) -> int:
    """Hash the words and the runs of punctuation of each row, in lower case.

    No row is unclear: texts come through `lowered_bytes`.

    Args:
        data: Bytes of all rows.
        bounds: Where rows begin and end, ``n + 1``.
        entries: Hash of the lower case of each code point, with its class.
        hashes: Receives one hash a token; one place more than there are bytes.
        row_tokens: Receives where the tokens of each row begin, ``n + 1``.

    Returns:
        The number of tokens.
    """
    num = 0
    row_tokens[0] = 0
    for row in range(len(bounds) - 1):
        num += int(row_hashes(data, bounds[row], bounds[row + 1], entries, hashes[num:]))
        row_tokens[row + 1] = num
    return num


@compiled
def encode(point: int, out: np.ndarray, at: int) -> int:
    """Write a code point as UTF-8 and return where it ends."""
    if point < 0x80:
        out[at] = point
        return at + 1
    if point < 0x800:
        out[at] = 0xC0 | (point >> 6)
    elif point < 0x10000:
        out[at] = 0xE0 | (point >> 12)
        at += 1
        out[at] = 0x80 | ((point >> 6) & 0x3F)
    else:
        out[at] = 0xF0 | (point >> 18)
        out[at + 1] = 0x80 | ((point >> 12) & 0x3F)
        at += 2
        out[at] = 0x80 | ((point >> 6) & 0x3F)
    out[at + 1] = 0x80 | (point & 0x3F)
    return at + 2


@compiled
def write_tokens(
    data: np.ndarray,
    bounds: np.ndarray,
    classes: np.ndarray,
    lowers: np.ndarray,
    text: np.ndarray,
    spans: np.ndarray,
    row_tokens: np.ndarray,
) -> int:
    """Write the tokens of `tokenize` themselves, a space behind each.

    Args:
        data: Bytes of all rows.
        bounds: Where rows begin and end, ``n + 1``.
        classes: Class of each code point.
        lowers: Lower case of each code point.
        text: Receives the tokens as UTF-8.
        spans: Receives where each token begins and ends in ``text``.
        row_tokens: Receives where the tokens of each row begin, ``n + 1``.

    Returns:
        The number of tokens.
    """
    num, to = 0, 0
    row_tokens[0] = 0
    for row in range(len(bounds) - 1):
        at, state = bounds[row], 0
        while at < bounds[row + 1]:
            point, width = np.int64(data[at]), 1
            if point >= 0x80:
                point, width = decode(data, at)
            kind = classes[point]
            if kind != state:
                if state != 0:
                    spans[num, 1] = to
                    text[to] = 32
                    num, to = num + 1, to + 1
                spans[num, 0] = to
                state = kind
            if kind != 0:
                to = encode(np.int64(lowers[point]), text, to)
            at += width
        if state != 0:
            spans[num, 1] = to
            text[to] = 32
            num, to = num + 1, to + 1
        row_tokens[row + 1] = num
    return num


@compiled
def hash_tokens(
    text: np.ndarray, spans: np.ndarray, entries: np.ndarray, hashes: np.ndarray
) -> None:
    """Hash tokens that were written, as `row_hashes` does on its way."""
    for token in range(len(spans)):
        at, value = spans[token, 0], NONE
        while at < spans[token, 1]:
            point, width = np.int64(text[at]), 1
            if point >= 0x80:
                point, width = decode(text, at)
            value = grown(value, entries[point])
            at += width
        hashes[token] = value


@compiled
def hash_texts(data: np.ndarray, bounds: np.ndarray, hashes: np.ndarray) -> None:
    """Hash whole texts by a polynomial over their bytes, spread over the whole word."""
    for row in range(len(bounds) - 1):
        value = NONE
        for at in range(bounds[row], bounds[row + 1]):
            value = value * TIMES + np.uint64(data[at]) + ONE
        hashes[row] = mix(value)


@compiled
def longer(value: np.uint64, word: np.uint64) -> np.uint64:
    """Return the state of an n-gram that grows by the word before it."""
    return value * MIX_2 + word


@compiled
def finish(value: np.uint64, length: int) -> np.uint64:
    """Return the hash of an n-gram of this length from its state."""
    return mix(value + np.uint64(length) * STEP)


@compiled
def fast_bucket(hashes: np.ndarray, last: np.uint64, length: np.uint64, width: np.uint64) -> int:
    """Return the bucket, of ``width``, of the n-gram of this length that ends at a token."""
    value = hashes[last]
    for back in range(ONE, length):
        value = longer(value, hashes[last - back])
    value += length * STEP
    value = (value ^ (value >> HALF)) * MIX_1  # its upper half is spread enough
    return ((value >> WORD_BITS) * width) >> WORD_BITS


@compiled
def fast_buckets(
    hashes: np.ndarray, row_tokens: np.ndarray, order: int, num_buckets: int, buckets: np.ndarray
) -> None:
    """Write the bucket of every n-gram of every row, of the orders 1 to ``order``."""
    num, width = 0, np.uint64(num_buckets)
    for row in range(len(row_tokens) - 1):
        first = row_tokens[row]
        for last in range(first, row_tokens[row + 1]):
            for length in range(1, min(order, last - first + 1) + 1):
                buckets[num] = fast_bucket(hashes, np.uint64(last), np.uint64(length), width)
                num += 1


@compiled
def longest_row(bounds: np.ndarray) -> int:
    """Return the number of bytes of the longest row."""
    longest = 0
    for row in range(len(bounds) - 1):
        longest = max(longest, bounds[row + 1] - bounds[row])
    return int(longest)


@compiled
def count_rows(
    data: np.ndarray,
    bounds: np.ndarray,
    entries: np.ndarray,
    order: int,
    slots: np.ndarray,
    counts: np.ndarray,
    unclear: np.ndarray,
) -> None:
    """Count the n-grams of each row into ``counts[slot]``, without writing them down.

    Args:
        data: Bytes of all rows.
        bounds: Where rows begin and end, ``n + 1``.
        entries: Hash of the lower case of each code point, with its class.
        order: The longest n-gram.
        slots: Where each row counts; negative for nowhere.
        counts: Numbers to add to, ``S B``.
        unclear: Receives whether a row must be in lower case first; it is not counted.
    """
    hashes, width = np.empty(longest_row(bounds) + 1, np.uint64), np.uint64(counts.shape[1])
    for row in range(len(bounds) - 1):
        if slots[row] < 0:
            continue
        into = counts[slots[row]]
        num = row_hashes(data, bounds[row], bounds[row + 1], entries, hashes)
        if num == UNCLEAR:
            unclear[row] = True
            continue
        for length in range(ONE, np.uint64(order) + ONE):
            for last in range(length - ONE, num):
                into[fast_bucket(hashes, last, length, width)] += 1


@compiled
def sum_rows(
    data: np.ndarray,
    bounds: np.ndarray,
    entries: np.ndarray,
    order: int,
    table: np.ndarray,
    sums: np.ndarray,
    num_tokens: np.ndarray,
    unclear: np.ndarray,
) -> None:
    """Add up the entries of a table over the n-grams of each row, without writing them down.

    Args:
        data: Bytes of all rows.
        bounds: Where rows begin and end, ``n + 1``.
        entries: Hash of the lower case of each code point, with its class.
        order: The longest n-gram.
        table: What to add up, ``T B``.
        sums: Receives the sums, ``n T``.
        num_tokens: Receives the number of tokens of each row.
        unclear: Receives whether a row must be in lower case first; it is not summed.
    """
    hashes, width = np.empty(longest_row(bounds) + 1, np.uint64), np.uint64(table.shape[1])
    for row in range(len(bounds) - 1):
        num = row_hashes(data, bounds[row], bounds[row + 1], entries, hashes)
        if num == UNCLEAR:
            unclear[row] = True
            continue
        num_tokens[row] = num
        for target in range(len(table)):
            values, total = table[target], 0.0
            for length in range(ONE, np.uint64(order) + ONE):
                for last in range(length - ONE, num):
                    total += values[fast_bucket(hashes, last, length, width)]
            sums[row, target] = total


@compiled
def ngram_bounds(row_tokens: np.ndarray, order: int) -> np.ndarray:
    """Return where the n-grams of each row begin, ``n + 1``."""
    bounds = np.zeros(len(row_tokens), dtype=np.int64)
    for row in range(len(row_tokens) - 1):
        num_tokens = row_tokens[row + 1] - row_tokens[row]
        num = 0
        for length in range(1, order + 1):
            num += max(0, num_tokens - length + 1)
        bounds[row + 1] = bounds[row] + num
    return bounds


@compiled
def count(buckets: np.ndarray, bounds: np.ndarray, slots: np.ndarray, counts: np.ndarray) -> None:
    """Count the buckets of each row into ``counts[slot]``; a negative slot counts nowhere."""
    for row in range(len(bounds) - 1):
        slot = slots[row]
        if slot >= 0:
            for at in range(bounds[row], bounds[row + 1]):
                counts[slot, buckets[at]] += 1


@compiled
def gather(buckets: np.ndarray, bounds: np.ndarray, table: np.ndarray, sums: np.ndarray) -> None:
    """Add up the entries of a table ``T B`` over the buckets of each row, into ``n T``."""
    for target in range(len(table)):
        entries = table[target]
        for row in range(len(bounds) - 1):
            total = 0.0
            for at in range(bounds[row], bounds[row + 1]):
                total += entries[buckets[at]]
            sums[row, target] = total


@compiled
def piece_starts(
    data: np.ndarray,
    bounds: np.ndarray,
    classes: np.ndarray,
    num_tokens: int,
    starts: np.ndarray,
    origin: np.ndarray,
) -> int:
    """Find where pieces of so many tokens begin; the first of a row begins with the row.

    Args:
        data: Bytes of all rows.
        bounds: Where rows begin and end, ``n + 1``.
        classes: Class of each code point.
        num_tokens: Tokens of a piece.
        starts: Receives where pieces begin.
        origin: Receives the row of each.

    Returns:
        The number of pieces.
    """
    num = 0
    for row in range(len(bounds) - 1):
        at, state, seen = bounds[row], 0, 0
        starts[num], origin[num] = at, row
        num += 1
        while at < bounds[row + 1]:
            point, width = np.int64(data[at]), 1
            if point >= 0x80:
                point, width = decode(data, at)
            kind = classes[point]
            if kind != state and kind != 0:
                if seen == num_tokens:
                    starts[num], origin[num] = at, row
                    num, seen = num + 1, 0
                seen += 1
            state = kind
            at += width
    return num
