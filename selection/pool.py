"""The rows that a method may choose from, and how many of a ranking fit a budget.

Letters: ``n`` rows.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from jaxtyping import Bool, Int, Real

from projections import DataError, Embeddings, as_embeddings, check_at_least

MASKED = "not eligible"


@dataclass(frozen=True)
class Pool:
    """Rows that may be chosen, in the order of their ids, so that the data's does not matter.

    Args:
        embeddings: Their vectors.
        positions: Where each stands in the data.
        masked: Reason for each row that may not be chosen, by id.
    """

    embeddings: Embeddings
    positions: Int[np.ndarray, " n"]
    masked: Mapping[Any, str]

    @classmethod
    def of(cls, source: Any, eligible: Bool[np.ndarray, " n"] | None = None) -> "Pool":
        """Return the pool of some embeddings.

        Args:
            source: `Embeddings`, a store or an array.
            eligible: Which rows may be chosen, in the order of the data; all unless given.

        Raises:
            DataError: There is not one mark a row.
        """
        given = as_embeddings(source)
        marks = marks_of(len(given), eligible)
        if marks.all():
            return cls(given.by_id(), given.order, {})
        order = given.order[marks[given.order]]
        masked = dict.fromkeys(given.ids[~marks].tolist(), MASKED)
        return cls(given.take(order), order, masked)

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.embeddings)


def marks_of(num_rows: int, eligible: Bool[np.ndarray, " n"] | None) -> Bool[np.ndarray, " n"]:
    """Return which rows may be chosen: all unless said.

    Raises:
        DataError: There is not one mark a row.
    """
    if eligible is None:
        return np.ones(num_rows, dtype=bool)
    marks = np.asarray(eligible, dtype=bool)
    if marks.shape != (num_rows,):
        raise DataError(
            f"`eligible` must have one mark a row, {num_rows}. Got the shape {marks.shape}."
        )
    return marks


@dataclass(frozen=True, kw_only=True)
class Budget:
    """How much may be chosen: a number of rows, a number of tokens, or both.

    Args:
        num_selected: Most rows.
        num_tokens: Most tokens of the chosen rows together.
        tokens: Number of tokens of each row, in the order of the data.

    Example:
        >>> budget = Budget(num_tokens=10, tokens=np.array([4, 5, 6, 1]))
        >>> budget.cut(np.array([0, 1, 2, 3]))
        2
    """

    num_selected: int | None = None
    num_tokens: float | None = None
    tokens: Real[np.ndarray, " n"] | None = None

    def __post_init__(self) -> None:
        """Check the arguments."""
        if self.num_selected is not None:
            check_at_least("num_selected", self.num_selected, 0)
        if (self.num_tokens is None) != (self.tokens is None):
            raise ValueError(
                "`num_tokens` and `tokens` must be given together. One of them is missing."
            )
        if self.num_tokens is not None and self.tokens is not None:
            check_at_least("num_tokens", self.num_tokens, 0)
            if not (np.isfinite(self.tokens) & (self.tokens >= 0)).all():
                raise ValueError("`tokens` must be finite and at least 0 for every row.")

    def check(self, num_rows: int) -> None:
        """Refuse numbers of tokens that are not one a row."""
        if self.tokens is not None and len(self.tokens) != num_rows:
            raise DataError(
                f"`tokens` must have one entry a row, {num_rows}. Got {len(self.tokens)}."
            )

    def cut(self, ranking: Int[np.ndarray, " n"]) -> int:
        """Return how many rows of a ranking fit: all before the first that does not.

        Args:
            ranking: Positions in the data, best first.
        """
        most = len(ranking)
        if self.num_selected is not None:
            most = min(most, self.num_selected)
        if self.tokens is not None and self.num_tokens is not None:
            total = np.cumsum(self.tokens[ranking])
            most = min(most, int(np.searchsorted(total, self.num_tokens, side="right")))
        return most

    def take(self, ranking: Iterable[int], positions: Int[np.ndarray, " n"]) -> Iterator[int]:
        """Yield what fits of a ranking that is made as it is asked for.

        Args:
            ranking: Rows of a pool, best first.
            positions: Where each row of the pool stands in the data.
        """
        spent, most = 0.0, len(positions) if self.num_selected is None else self.num_selected
        for row in islice(ranking, most):
            if self.tokens is not None and self.num_tokens is not None:
                spent += float(self.tokens[positions[row]])
                if spent > self.num_tokens:
                    return
            yield row

    @property
    def reason(self) -> str:
        """Why a row that comes too late is left out."""
        rows = [f"{self.num_selected:,} rows"] if self.num_selected is not None else []
        tokens = [f"{self.num_tokens:,.0f} tokens"] if self.num_tokens is not None else []
        return f"beyond the budget of {' and '.join(rows + tokens)}"
