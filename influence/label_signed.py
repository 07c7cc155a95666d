"""Any similarity with the sign of the labels: what is like the query and agrees with it helps.

Letters: ``q`` queries, ``n`` training examples.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from influence.base import FittedInfluence
from projections import DataError, PassSettings, Rows, Scores, Task, as_rows


@dataclass(frozen=True, kw_only=True)
class LabelSigned:
    """Multiply the scores of another method by one where labels agree, and by minus one elsewhere.

    Similarities know no harm; with labels of few classes this gives them a sign.

    Args:
        method: The method, such as `TFIDF` or `HiddenSimilarity`.
        label: Name of the column with the label, or a function from a row to it.

    Example:
        >>> from influence import TFIDF
        >>> data = [{"text": "a good film", "label": 1}, {"text": "a bad film", "label": 0}]
        >>> fitted = LabelSigned(method=TFIDF()).fit(None, data)
        >>> fitted.scores(None, data[:1], data).values.round(2)
        array([[ 1.  , -0.34]])

    References:
        Hanawa et al., Evaluation of similarity-based explanations (ICLR 2021),
        arXiv:2006.04528, for the demand that labels agree.
    """

    method: Any
    label: str | Callable[[Any], Any] = "label"

    def fit(
        self, task: Task | None, data: Any, *, settings: PassSettings | None = None
    ) -> "FittedLabelSigned":
        """Fit the method.

        Args:
            task: What the method wants.
            data: The training data.
            settings: What the method wants.

        Raises:
            DataError: A row has no label.
        """
        self.labels(as_rows(data))
        return FittedLabelSigned(self, self.method.fit(task, data, settings=settings))

    def labels(self, rows: Rows) -> np.ndarray:
        """Return the label of every row as text."""
        found = [label_of(row, self.label) for row in rows.fetch(range(len(rows)))]
        return np.asarray([str(getattr(one, "item", lambda one=one: one)()) for one in found])


@dataclass(frozen=True)
class FittedLabelSigned:
    """A fitted method, and how labels are read.

    Args:
        settings: How labels are read.
        method: The fitted method.
    """

    settings: LabelSigned
    method: FittedInfluence

    def scores(
        self, task: Any, queries: Any, data: Any, *, settings: PassSettings | None = None
    ) -> Scores:
        """Return the signed scores, ``q n``.

        Args:
            task: What the method wants.
            queries: Queries with labels.
            data: Training examples with labels.
            settings: What the method wants.

        Raises:
            DataError: A row has no label.
        """
        agree = np.equal.outer(
            self.settings.labels(as_rows(queries)), self.settings.labels(as_rows(data))
        )
        found = self.method.scores(task, queries, data, settings=settings)
        signs = np.where(agree, 1, -1).astype(np.int8)
        columns = {name: values * signs for name, values in found.columns.items()}
        how = {"method": "LabelSigned", "signed": dict(found.provenance)}
        return replace(found, columns=columns, provenance=how)


def label_of(row: Any, label: str | Callable[[Any], Any]) -> Any:
    """Return the label of a row.

    Raises:
        DataError: It has no such column.
    """
    if callable(label):
        return label(row)
    if not isinstance(row, Mapping) or label not in row:
        raise DataError(
            f"rows must have the label in the column {label!r}. Got {row!r:.120}. Name another "
            "column with `label`, or give a function from a row to its label."
        )
    return row[label]
