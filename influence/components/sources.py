"""Which candidate did a query come from? The paper's benchmark, for any scores.

Letters: ``q`` queries, ``k`` candidates, ``n`` texts.

Queries are paraphrases or beginnings of training texts. The candidates of a query are the
texts that share most words with it, by BM25, and its source, which takes the place of the
last where it is not among them. A method finds the source if it gives it the largest score.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

import numpy as np
from jaxtyping import Bool, Float, Int

from influence.bm25 import bm25_index, bm25_scores
from projections import check_between, check_not_empty

WORD = re.compile(r"\S+")


@dataclass(frozen=True)
class SourceQuestions:
    """Candidates of each query, with its source among them.

    Args:
        candidates: Positions of the texts, best by BM25 first, ``q k``.
        sources: Position of the source of each query.
        lexical: BM25 scores of the candidates, ``q k``.

    References:
        Hinterleitner, Schoenegger and Roth (2026), arXiv:2601.16651, with BM25 of bm25s.
    """

    candidates: Int[np.ndarray, "q k"]
    sources: Int[np.ndarray, " q"]
    lexical: Float[np.ndarray, "q k"]

    @property
    def pairs(self) -> Int[np.ndarray, "p 2"]:
        """Query and candidate of each pair, query by query."""
        queries = np.repeat(np.arange(len(self.sources)), self.candidates.shape[1])
        return np.stack([queries, self.candidates.ravel()], axis=1)

    @property
    def chance(self) -> float:
        """Accuracy of guessing."""
        return 1 / self.candidates.shape[1]

    def hits(self, scores: Float[np.ndarray, "..."]) -> Bool[np.ndarray, " q"]:
        """Return for each query whether its source has the largest score; a tie is a miss.

        Args:
            scores: One score a pair, in the order of `pairs`, or ``q k``.
        """
        table = np.asarray(scores).reshape(self.candidates.shape)
        own = self.candidates == self.sources[:, None]
        return table[own] > np.where(own, -np.inf, table).max(axis=1)

    def accuracy(self, scores: Float[np.ndarray, "..."]) -> float:
        """Return the share of queries whose source has the largest score."""
        return float(self.hits(scores).mean())


def source_questions(
    queries: Sequence[str], texts: Sequence[str], sources: Sequence[int] | np.ndarray, *, k: int = 5
) -> SourceQuestions:
    """Choose candidates for queries whose source is known.

    Args:
        queries: Texts of the queries.
        texts: The training texts.
        sources: Position of the text that each query came from.
        k: Number of candidates, the source among them.

    Raises:
        ValueError: There are no two candidates, or a source is not among the texts.

    Example:
        >>> texts = ["the cat sat", "a dog ran", "the cat ran far"]
        >>> source_questions(["where is the cat"], texts, [1], k=2).candidates.tolist()
        [[0, 1]]
    """
    check_not_empty("queries", len(queries))
    check_between("k", k, 2, len(texts), "the source and another, to the number of texts")
    own = np.asarray(sources, dtype=np.int64)
    if own.shape != (len(queries),) or own.min() < 0 or own.max() >= len(texts):
        raise ValueError(
            f"`sources` must be {len(queries)} positions, one a query, among {len(texts)} texts. "
            f"Got {own.tolist()[:5]}."
        )
    scores = bm25_scores(bm25_index(texts), queries)
    chosen = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    missing = ~(chosen == own[:, None]).any(axis=1)
    chosen[missing, -1] = own[missing]
    return SourceQuestions(chosen, own, np.take_along_axis(scores, chosen, axis=1))


def beginnings(texts: Sequence[str], share: float) -> list[str]:
    """Return the first words of texts, as queries whose source is the text.

    Args:
        texts: The texts.
        share: Share of the words that is kept, in ``(0, 1]``; at least one word.

    Example:
        >>> beginnings(["a b  c d", "one"], 0.5)
        ['a b', 'one']
    """
    check_between("share", share, 0, 1)
    return [_beginning(text, share) for text in texts]


def _beginning(text: str, share: float) -> str:
    """Return the first words of one text."""
    words = list(WORD.finditer(text))
    return text[: words[max(1, ceil(share * len(words))) - 1].end()] if words else text
