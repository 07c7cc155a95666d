"""Cosines of embeddings by any encoder, as a baseline without gradients.

Letters: ``q`` queries, ``n`` training examples, ``d`` dimensions.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from influence.members import check_fitted_data
from projections import Embeddings, Encoder, PassSettings, Scores, Task, as_rows, embed


@dataclass(frozen=True, kw_only=True)
class EmbeddingSimilarity:
    """Score the cosine of two rows' embeddings.

    Args:
        encoder: From a list of rows to a vector each: `SentenceEncoder` of any
            sentence-transformers model, `HiddenStates` of any Hugging Face model (the last
            hidden state), `ColumnEncoder`, or any function.
        batch_size: Rows that the encoder gets at a time.
        path: A folder that keeps the embeddings of the training data, in shards.

    Example:
        >>> sizes = lambda rows: np.array([[float(len(row)), 1.0] for row in rows])
        >>> fitted = EmbeddingSimilarity(encoder=sizes).fit(None, ["a", "bbb"])
        >>> fitted.scores(None, ["c"], ["a", "bbb"]).values.round(3)
        array([[1.   , 0.894]], dtype=float32)

    References:
        Hanawa et al., Evaluation of similarity-based explanations (ICLR 2021),
        arXiv:2006.04528, for similarities beside influence. Reimers and Gurevych,
        Sentence-BERT (EMNLP 2019), arXiv:1908.10084, for embeddings of texts.
    """

    encoder: Encoder = field(repr=False)
    batch_size: int = 64
    path: str | Path | None = None

    def fit(
        self, task: Task | None, data: Any, *, settings: PassSettings | None = None
    ) -> "FittedEmbeddingSimilarity":
        """Compute the embeddings of the training examples, or read those that are kept.

        Args:
            task: Not looked at, and may be None.
            data: The training data.
            settings: Not looked at.

        Raises:
            NonFiniteError: An embedding is not finite.
            StoreMismatchError: The folder holds those of other data or another encoder.
        """
        rows = as_rows(data)
        found = embed(rows, self.encoder, path=self.path, batch_size=self.batch_size)
        how = {"method": "EmbeddingSimilarity", "embeddings": dict(found.provenance)}
        return FittedEmbeddingSimilarity(
            self, found.normalized(), {**how, "data": rows.fingerprint}
        )


@dataclass(frozen=True)
class FittedEmbeddingSimilarity:
    """Embeddings of training examples.

    Args:
        settings: How they were computed.
        embeddings: Vectors of length one.
        provenance: Where they came from, as plain JSON values.
    """

    settings: EmbeddingSimilarity
    embeddings: Embeddings
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def scores(
        self, task: Task | None, queries: Any, data: Any, *, settings: PassSettings | None = None
    ) -> Scores:
        """Return the cosine of every training example with every query, ``q n``.

        An embedding of zeros has the cosine 0 with everything.

        Args:
            task: Not looked at, and may be None.
            queries: A dataset of queries.
            data: The data of the fit.
            settings: Not looked at.

        Raises:
            StoreMismatchError: The data is not that of the fit.
        """
        rows, asked = as_rows(data), as_rows(queries)
        check_fitted_data(rows, self.provenance)
        wanted = embed(asked, self.settings.encoder, batch_size=self.settings.batch_size)
        values = wanted.normalized().rows @ np.asarray(self.embeddings.rows).T
        return Scores(rows.ids, {"similarity": values}, asked.ids, self.provenance)
