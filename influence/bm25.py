"""BM25: how much of a query's rare words a text shares, as a baseline without a model.

Letters: ``q`` queries, ``n`` texts.

Not symmetric: words of the query are looked up in texts, whose length and repetitions count.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import bm25s
import numpy as np
from jaxtyping import Float

from influence.members import check_fitted_data
from projections import (
    PassSettings,
    Rows,
    Scores,
    Task,
    as_rows,
    check_at_least,
    check_between,
    check_not_empty,
    describe,
    texts_of,
)


@dataclass(frozen=True, kw_only=True)
class BM25:
    r"""Score by rare words in common, more for many of them in a short text.

    .. math:: \sum_{w \in q} \log\Big(1 + \frac{N - n_w + 1/2}{n_w + 1/2}\Big)
        \frac{f_w}{f_w + k_1 (1 - b + b\, |z| / \bar l)}

    with :math:`n_w` of :math:`N` texts that have the word, :math:`f_w` times in this one. The
    usual constant :math:`k_1 + 1` is left out.

    Args:
        k1: How soon more of the same word stop to count.
        b: How much the length of a text counts against it, in [0, 1].
        text_column: Name of the column with the text.

    Example:
        >>> texts = ["the cat sat", "a dog ran", "the cat ran far"]
        >>> fitted = BM25().fit(None, texts)
        >>> fitted.scores(None, ["where is the cat"], texts).values.round(2)
        array([[0.38, 0.  , 0.33]], dtype=float32)

    References:
        Robertson and Zaragoza, The probabilistic relevance framework: BM25 and beyond (2009),
        Sec. 3, as Lucene has it. Here by the package bm25s.
    """

    k1: float = 1.5
    b: float = 0.75
    text_column: str = "text"

    def __post_init__(self) -> None:
        """Check the arguments."""
        check_at_least("k1", self.k1, 0)
        check_between("b", self.b, 0, 1)

    def fit(
        self, task: Task | None, data: Any, *, settings: PassSettings | None = None
    ) -> "FittedBM25":
        """Count the words of the training texts.

        Args:
            task: Not looked at, and may be None.
            data: Texts, or rows with a text column.
            settings: Not looked at.

        Raises:
            DataError: A row has no text.
        """
        rows = as_rows(data)
        index = bm25_index(texts_of(all_rows(rows), self.text_column), k1=self.k1, b=self.b)
        how = {"method": describe(self), "data": rows.fingerprint}
        return FittedBM25(self, index, how)


@dataclass(frozen=True)
class FittedBM25:
    """Counted words of training texts.

    Args:
        settings: What they were counted for.
        index: The index of bm25s.
        provenance: Where they came from, as plain JSON values.
    """

    settings: BM25
    index: Any = field(repr=False)
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def scores(
        self, task: Task | None, queries: Any, data: Any, *, settings: PassSettings | None = None
    ) -> Scores:
        """Return the score of every training text for every query, ``q n``.

        Args:
            task: Not looked at, and may be None.
            queries: Texts, or rows with a text column.
            data: The texts of the fit.
            settings: Not looked at.

        Raises:
            StoreMismatchError: The texts are not those of the fit.
        """
        rows, asked = as_rows(data), as_rows(queries)
        check_fitted_data(rows, self.provenance)
        texts = texts_of(all_rows(asked), self.settings.text_column)
        values = bm25_scores(self.index, texts)
        return Scores(rows.ids, {"similarity": values}, asked.ids, self.provenance)


def bm25_index(texts: Sequence[str], *, k1: float = 1.5, b: float = 0.75) -> Any:
    """Return an index of texts, whose words are all kept."""
    index = bm25s.BM25(k1=k1, b=b)
    words = bm25s.tokenize(list(texts), stopwords=[], show_progress=False)
    index.index(words, show_progress=False)
    return index


def bm25_scores(index: Any, queries: Sequence[str]) -> Float[np.ndarray, "q n"]:
    """Return the score of every text of an index for every query."""
    check_not_empty("queries", len(queries))
    asked = bm25s.tokenize(list(queries), stopwords=[], return_ids=False, show_progress=False)
    return np.stack([index.get_scores([str(word) for word in words]) for words in asked])


def all_rows(rows: Rows) -> list[Any]:
    """Return every row at once."""
    return rows.fetch(range(len(rows)))
