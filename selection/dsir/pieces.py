"""Rows cut into pieces of a fixed number of tokens, as published for DSIR on the Pile."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
from jaxtyping import Int

from projections import TextBatch
from selection.dsir.tokens import bytes_and_bounds
from selection.dsir.unicode_classes import characters


def cut(batch: TextBatch, num_tokens: int | None) -> tuple[TextBatch, Int[np.ndarray, " n"]]:
    r"""Cut each text behind every ``num_tokens`` of its tokens.

    Tokens are those of ``\w+|[^\w\s]+``; the last piece of a row may be shorter, and a row
    without tokens is one piece. Pieces put together are the text.

    Args:
        batch: Rows.
        num_tokens: Tokens of a piece; None leaves rows whole.

    Returns:
        The pieces with ids ``row:piece``, and which row each comes from.

    Example:
        >>> batch = TextBatch(pa.array(["a"]), pa.array(["one two, three"]), None)
        >>> pieces, origin = cut(batch, 2)
        >>> pieces.ids.to_pylist(), pieces.texts.to_pylist(), origin.tolist()
        (['a:0', 'a:1'], ['one two', ', three'], [0, 0])
    """
    if num_tokens is None:
        return batch, np.arange(len(batch))
    from selection.dsir.ngram_kernels import piece_starts  # it loads numba, which takes a while

    data, bounds = bytes_and_bounds(batch.texts)
    starts = np.empty(len(data) // max(num_tokens, 1) + len(batch) + 1, dtype=np.int64)
    origin = np.empty(len(starts), dtype=np.int64)
    num = piece_starts(data, bounds, characters().classes, num_tokens, starts, origin)
    starts[num] = bounds[-1]
    starts, origin = starts[: num + 1], origin[:num]
    buffers = [None, pa.py_buffer(starts), pa.py_buffer(data)]
    texts = pa.Array.from_buffers(pa.large_string(), num, buffers)
    firsts = np.searchsorted(origin, origin)
    rows = batch.ids.take(pa.array(origin)).cast(pa.string()).to_pylist()
    numbers = (np.arange(num) - firsts).tolist()
    ids = pa.array([f"{row}:{number}" for row, number in zip(rows, numbers, strict=True)])
    domains = None if batch.domains is None else batch.domains.take(pa.array(origin))
    return replace(batch, ids=ids, texts=texts, domains=domains), origin
