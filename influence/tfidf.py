"""TF-IDF: the cosine of two texts' weighted words, as a baseline without a model.

Letters: ``q`` queries, ``n`` texts, ``v`` words.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from influence.bm25 import all_rows
from influence.members import check_fitted_data
from projections import PassSettings, Scores, Task, as_rows, describe, require, texts_of


@dataclass(frozen=True, kw_only=True)
class TFIDF:
    r"""Score the cosine of vectors of words, each :math:`(1 + \log f_w)\, \mathrm{idf}(w)`.

    Args:
        text_column: Name of the column with the text.

    Example:
        >>> texts = ["the cat sat", "a dog ran", "the cat ran far"]
        >>> fitted = TFIDF().fit(None, texts)
        >>> fitted.scores(None, ["a cat sat"], texts).values.round(2)
        array([[0.86, 0.  , 0.28]])

    References:
        Salton and Buckley, Term-weighting approaches in automatic text retrieval (Information
        Processing and Management 1988), here by scikit-learn.
    """

    text_column: str = "text"

    def fit(
        self, task: Task | None, data: Any, *, settings: PassSettings | None = None
    ) -> "FittedTFIDF":
        """Weigh the words of the training texts.

        Args:
            task: Not looked at, and may be None.
            data: Texts, or rows with a text column.
            settings: Not looked at.

        Raises:
            DataError: A row has no text.
        """
        rows = as_rows(data)
        sklearn = require("sklearn.feature_extraction.text", "pip install scikit-learn")
        words = sklearn.TfidfVectorizer(sublinear_tf=True, dtype=np.float64)
        vectors = words.fit_transform(texts_of(all_rows(rows), self.text_column))
        how = {"method": describe(self), "data": rows.fingerprint}
        return FittedTFIDF(self, words, vectors, how)


@dataclass(frozen=True)
class FittedTFIDF:
    """Weighted words of training texts.

    Args:
        settings: What they were weighed for.
        words: The fitted vectoriser.
        vectors: A sparse vector a text, of length one.
        provenance: Where they came from, as plain JSON values.
    """

    settings: TFIDF
    words: Any = field(repr=False)
    vectors: Any = field(repr=False)
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def scores(
        self, task: Task | None, queries: Any, data: Any, *, settings: PassSettings | None = None
    ) -> Scores:
        """Return the cosine of every training text with every query, ``q n``.

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
        wanted = self.words.transform(texts_of(all_rows(asked), self.settings.text_column))
        values = np.asarray((wanted @ self.vectors.T).todense())
        return Scores(rows.ids, {"similarity": values}, asked.ids, self.provenance)
