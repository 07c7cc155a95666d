"""The seam of attribution on stored rows, and the sign of every score.

Letters: ``q`` queries, ``n`` rows, ``k`` dimensions of a row.

**Sign.** A larger score means a more helpful example: training more on it lowers the
query's loss. Scores are divided by nothing unless the name says so; in particular not by
the number of examples.
"""

from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from projections import PassSettings, Scores, StoredRows, Task


@runtime_checkable
class FittedMetric(Protocol):
    """An inner product on rows, fitted to the rows of one store."""

    def map_queries(self, queries: Float[np.ndarray, "q k"]) -> Float[np.ndarray, "q k"]:
        """Return queries whose plain inner product with a scaled row is the score."""
        ...

    def row_scales(self) -> Float[np.ndarray, " n"] | None:
        """Return the factor of each row, if any."""
        ...

    def self_scores(self) -> Float[np.ndarray, " n"]:
        """Return the score of each row with itself, unscaled."""
        ...


@runtime_checkable
class Metric(Protocol):
    """Hyper-parameters of an attribution method on stored rows."""

    def fit(self, store: StoredRows) -> FittedMetric:
        """Look at the rows of a store once."""
        ...


@runtime_checkable
class FittedInfluence(Protocol):
    """An attribution method that was fitted to a model and its training data."""

    def scores(
        self, task: Task, queries: Any, data: Any, *, settings: PassSettings | None = None
    ) -> Scores:
        """Return the influence of every training example on every query, ``q n``."""
        ...
