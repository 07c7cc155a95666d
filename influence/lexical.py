"""Lexical candidates: texts that share words with a query, to be scored exactly.

Letters: ``q`` queries, ``n`` texts, ``k`` candidates.

Exact influence of every pair is dear, so candidates are chosen by BM25 first. That hides
examples that matter without sharing words; a random control of the same size beside them
shows how much is hidden.

References:
    Grosse et al. (2023), arXiv:2308.03296, Sec. 3.2.1, for the filter. Robertson and Zaragoza,
    The probabilistic relevance framework (2009), for BM25, here by the package bm25s.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from influence.bm25 import bm25_index, bm25_scores
from projections import check_between, check_not_empty


@dataclass(frozen=True)
class Candidates:
    """Rows to score for each query.

    Args:
        chosen: Positions of the texts with the highest BM25 scores, best first, ``q k``.
        control: Positions of as many random texts outside of those, ``q k``; fewer columns
            where not enough texts are left.
    """

    chosen: Int[np.ndarray, "q k"]
    control: Int[np.ndarray, "q c"]


def lexical_candidates(
    queries: Sequence[str], texts: Sequence[str], *, k: int, seed: int
) -> Candidates:
    """Choose candidates for each query by BM25, and a random control.

    Args:
        queries: Texts of the queries.
        texts: The training texts.
        k: Number of candidates for each query.
        seed: Chooses the control.

    Raises:
        ValueError: ``k`` is larger than the number of texts.

    Example:
        >>> texts = ["the cat sat", "a dog ran", "the cat ran far"]
        >>> lexical_candidates(["where is the cat"], texts, k=2, seed=0).chosen.tolist()
        [[0, 2]]
    """
    check_not_empty("queries", len(queries))
    check_between("k", k, 1, len(texts), "the number of texts")
    scores = bm25_scores(bm25_index(texts), queries)
    chosen = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    size = min(k, len(texts) - k)
    random = np.random.default_rng(seed)
    others = [np.setdiff1d(np.arange(len(texts)), row) for row in chosen]
    control = np.stack([random.choice(rest, size, replace=False) for rest in others])
    return Candidates(chosen, control)
