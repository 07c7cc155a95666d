"""Rows of projected gradients, wherever they are: on disk in a store, or in memory.

Letters: ``n`` rows, ``k`` dimensions of a row.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from projections.base import Table


@runtime_checkable
class StoredRows(Protocol):
    """What metrics look at: a `GradientStore`, or `MemoryRows`."""

    def __len__(self) -> int:
        """Return the number of rows."""
        ...

    @property
    def num_dims(self) -> int:
        """Number ``k`` of dimensions of a row."""
        ...

    def column(self, name: str) -> np.ndarray:
        """Return one column of all rows."""
        ...

    def blocks(self) -> Iterator[np.ndarray]:
        """Yield the rows, some at a time."""
        ...


@dataclass(frozen=True)
class MemoryRows:
    """Rows that fit into memory, in the precision that they were computed in.

    Args:
        ids: The id of each row.
        rows: The rows.
        columns: Numbers beside them, such as ``"grad_norm"``.

    Example:
        >>> MemoryRows(np.arange(2), np.eye(2), {"loss": np.ones(2)}).column("loss")
        array([1., 1.])
    """

    ids: np.ndarray
    rows: Float[np.ndarray, "n k"]
    columns: Mapping[str, np.ndarray] = field(default_factory=dict)

    @classmethod
    def of(cls, table: Table, name: str) -> "MemoryRows":
        """Return one column of a table as rows, and the others beside them."""
        others = {key: value for key, value in table.columns.items() if key != name}
        return cls(table.ids, table.columns[name], others)

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.rows)

    @property
    def num_dims(self) -> int:
        """Number ``k`` of dimensions."""
        return self.rows.shape[1]

    def column(self, name: str) -> np.ndarray:
        """Return one of the columns.

        Raises:
            KeyError: There is no such column.
        """
        if name not in self.columns:
            raise KeyError(f"the rows must have the column {name!r}. They have {[*self.columns]}.")
        return self.columns[name]

    def blocks(self) -> Iterator[np.ndarray]:
        """Yield all rows at once."""
        yield self.rows
