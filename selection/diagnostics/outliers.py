"""Examples whose gradient is unlike those of their own class.

Letters: ``n`` rows, ``k`` dimensions, ``c`` classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from projections import Scores
from selection.row_blocks import as_row_blocks, number_groups, sum_by_group
from selection.scoring import score_agreement


@dataclass(frozen=True)
class ClassOutliers:
    """How each example stands to its own class and to the nearest other, the oddest first.

    Args:
        ids: Ids of the rows.
        groups: The class of each.
        nearest: The other class with whose mean gradient it agrees most.
        own: Cosine with the sum of the others of its own class.
        other: Cosine with the mean of the nearest other class.
    """

    ids: np.ndarray
    groups: np.ndarray
    nearest: np.ndarray
    own: Float[np.ndarray, " n"]
    other: Float[np.ndarray, " n"]

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.ids)

    @property
    def margins(self) -> Float[np.ndarray, " n"]:
        """Own less other: below 0 for a row that another class suits better."""
        return self.own - self.other

    def first(self, count: int) -> "ClassOutliers":
        """Return the oddest rows."""
        return self._take(np.arange(min(count, len(self))))

    def of(self, group: Any) -> "ClassOutliers":
        """Return the rows of one class, the oddest first."""
        return self._take(np.flatnonzero(self.groups == group))

    def scores(self) -> Scores:
        """Return the margins as the score ``class_margin``."""
        return Scores(self.ids, {"class_margin": self.margins})

    def _take(self, where: Int[np.ndarray, " m"]) -> "ClassOutliers":
        """Return some rows."""
        parts = (self.ids, self.groups, self.nearest, self.own, self.other)
        return ClassOutliers(*(part[where] for part in parts))


def find_class_outliers(rows: Any, groups: Sequence[Any] | np.ndarray) -> ClassOutliers:
    """Compare each gradient with the mean of its own class, itself left out, and of others.

    Args:
        rows: A `GradientStore`, `Embeddings` or an array ``n k``.
        groups: The class of each row.

    Returns:
        All rows, those with the least margin first; of equal ones in their order.

    Raises:
        DataError: There is not one class a row.
        ValueError: There is one class only.

    Example:
        >>> rows = np.array([[1.0, 0], [1, 0.1], [0.1, 1], [0, 1], [0.9, 0]])
        >>> found = find_class_outliers(rows, ["cat", "cat", "dog", "dog", "dog"]).first(1)
        >>> found.ids, found.groups, found.nearest
        (array([4]), array(['dog'], dtype='<U3'), array(['cat'], dtype='<U3'))
    """
    blocks = as_row_blocks(rows)
    numbers, names = number_groups(groups, len(blocks))
    if len(names) < 2:
        raise ValueError(f"`groups` must name at least two classes. Got {names}.")
    own = score_agreement(blocks.source, groups)["group_agreement"].values
    sums = sum_by_group(blocks, numbers, len(names))
    lengths = np.linalg.norm(sums, axis=1)
    other, nearest = np.empty(len(blocks)), np.empty(len(blocks), np.int64)
    for where, part in blocks:
        size = np.linalg.norm(part, axis=1)[:, None] * lengths
        cosines = np.divide(part @ sums.T, size, out=np.zeros_like(size), where=size > 0)
        cosines[np.arange(len(part)), numbers[where]] = -np.inf
        nearest[where], other[where] = cosines.argmax(axis=1), cosines.max(axis=1)
    labels = np.asarray(names)
    found = ClassOutliers(blocks.ids, labels[numbers], labels[nearest], own, other)
    return found._take(np.argsort(found.margins, kind="stable"))
