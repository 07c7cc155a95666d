"""What happened to weights over a run, as a table and as a plot."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from torch import Tensor

from projections import require

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class History:
    """Named numbers by step, in the order in which they were written down.

    Example:
        >>> history = History()
        >>> history.add(0, {"books": 0.5, "code": 0.5})
        >>> history.add(10, {"books": 0.7, "code": 0.3})
        >>> history.table().to_pydict()["books"], len(history)
        ([0.5, 0.7], 2)
    """

    def __init__(self) -> None:
        """Start empty."""
        self._rows: list[tuple[int, dict[str, Any]]] = []

    def __len__(self) -> int:
        """Return the number of entries."""
        return len(self._rows)

    def __iter__(self) -> Iterator[tuple[int, dict[str, float]]]:
        """Yield steps and their numbers."""
        for step, numbers in self._rows:
            yield step, {name: float(value) for name, value in numbers.items()}

    def add(self, step: int, numbers: Mapping[str, "float | Tensor"]) -> None:
        """Write down the numbers of a step; tensors are read only when they are asked for."""
        self._rows.append((step, dict(numbers)))

    def table(self) -> pa.Table:
        """Return one row an entry: the step, and a column for each name."""
        rows = list(self)
        names = list(dict.fromkeys(name for _, numbers in rows for name in numbers))
        columns = {name: [numbers.get(name) for _, numbers in rows] for name in names}
        return pa.table({"step": [step for step, _ in rows], **columns})

    def plot(self, names: Sequence[str] | None = None, *, label: str = "weight") -> "Figure":
        """Draw the numbers over the steps.

        Args:
            names: Which to draw. Default: all.
            label: Label of the vertical axis.

        Raises:
            ValueError: A name is not in the history.
        """
        table = self.table()
        chosen = list(names) if names is not None else table.column_names[1:]
        unknown = sorted(set(chosen) - set(table.column_names))
        if unknown:
            raise ValueError(f"`names` must be of {table.column_names[1:]}. Got {unknown} besides.")
        figure = require("matplotlib.figure", "pip install matplotlib").Figure(
            figsize=(4.8, 3.0), layout="constrained"
        )
        axes = figure.add_subplot()
        steps = table.column("step").to_pylist()
        for name in chosen:
            axes.plot(steps, table.column(name).to_pylist(), label=name)
        axes.set_xlabel("step")
        axes.set_ylabel(label)
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
        return figure

    def state(self) -> dict[str, Any]:
        """Return all entries as plain values, whose order does not lie in mappings."""
        table = self.table()
        return {
            "names": table.column_names,
            "columns": [column.to_pylist() for column in table.columns],
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> "History":
        """Return the history of a state."""
        history = cls()
        names = state["names"][1:]
        for step, *values in zip(*state["columns"], strict=True):
            pairs = zip(names, values, strict=True)
            history.add(step, {name: value for name, value in pairs if value is not None})
        return history
