"""The rows with the largest keys so far, within a budget of rows or of tokens.

Memory is that of the rows that are kept. What is kept does not depend on the order in which
rows come: ties go by the hash of the id.
"""

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float
from torch import Tensor

from selection.dsir.noise import id_hashes

Unit = Literal["rows", "tokens"]
WAITING = 1 << 16  # rows that wait to be sorted in, at the least


class TopRows:
    """The rows with the largest keys that fill a budget.

    Args:
        name: Name of the state.
        budget: Number of rows, or of tokens; the row that reaches the budget is in.
        unit: What the budget counts.
        spare: How many further rows of the largest size are kept, for rows that will be
            given to others.

    Example:
        >>> top = TopRows("top", budget=2, unit="rows")
        >>> columns = {"num_tokens": np.ones(3)}
        >>> top.offer(pa.array(["a", "b", "c"]), np.array([1.0, 3.0, 2.0]), columns)
        >>> top.ids.to_pylist(), top.keys
        (['b', 'c'], array([3., 2.]))
    """

    def __init__(self, name: str, *, budget: int, unit: Unit, spare: int = 0) -> None:
        """Start with nothing."""
        self.name, self.budget, self.unit, self.spare = name, budget, unit, spare
        self.largest = 0.0
        self.threshold = -np.inf
        self._parts: list[tuple[pa.Array, np.ndarray, dict[str, np.ndarray]]] = []
        self._waiting = 0

    def offer(
        self, ids: pa.Array, keys: Float[np.ndarray, " n"], columns: Mapping[str, np.ndarray]
    ) -> None:
        """Take some rows; a key of minus infinity is never kept.

        Args:
            ids: Row ids.
            keys: Larger is better.
            columns: More about the rows, ``num_tokens`` among it.
        """
        self.largest = max(self.largest, float(columns["num_tokens"].max(initial=0)))
        wanted = np.flatnonzero((keys >= self.threshold) & (keys > -np.inf))
        if not len(wanted) or not self.budget:
            return
        picked = {name: values[wanted] for name, values in columns.items()}
        self._parts.append((_text(ids.take(pa.array(wanted))), keys[wanted], picked))
        self._waiting += len(wanted)
        if self._waiting > WAITING:
            self._sort_in()

    def merge(self, other: "TopRows") -> None:
        """Take the rows that another list with the same budget has kept."""
        self.largest = max(self.largest, other.largest)
        ids, keys, columns = other._sorted()
        if len(ids):
            self.offer(ids, keys, columns)

    def __getstate__(self) -> dict[str, Any]:
        """Return what is sent to another process: no more than is kept."""
        self._sort_in()
        return self.__dict__

    @property
    def ids(self) -> pa.Array:
        """Ids of the rows as text, best first."""
        return self._sorted()[0]

    @property
    def keys(self) -> Float[np.ndarray, " k"]:
        """Their keys."""
        return self._sorted()[1]

    @property
    def columns(self) -> dict[str, np.ndarray]:
        """What else is known of them."""
        return self._sorted()[2]

    def state(self) -> dict[str, Tensor]:
        """Return all that is kept, for a checkpoint."""
        ids, keys, columns = self._sorted()
        bounds, data = ids.buffers()[1:] if len(ids) else (b"", b"")
        return {
            "ids": torch.from_numpy(np.frombuffer(data or b"", np.uint8).copy()),
            "bounds": torch.from_numpy(np.frombuffer(bounds, np.int64)[: len(ids) + 1].copy()),
            "keys": torch.from_numpy(keys.copy()),
            "limits": torch.tensor([self.threshold, self.largest], dtype=torch.float64),
            **{f"column/{name}": torch.from_numpy(v.copy()) for name, v in columns.items()},
        }

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a checkpoint."""
        keys = state["keys"].numpy()
        self.threshold, self.largest = state["limits"].tolist()
        names = [name for name in state if name.startswith("column/")]
        columns = {name.removeprefix("column/"): state[name].numpy() for name in names}
        buffers = [
            None,
            *(pa.py_buffer(state[part].numpy().tobytes()) for part in ("bounds", "ids")),
        ]
        ids = pa.Array.from_buffers(pa.large_string(), len(keys), buffers)
        self._parts = [(ids, keys, columns)] if len(keys) else []

    def _sorted(self) -> tuple[pa.Array, np.ndarray, dict[str, np.ndarray]]:
        """Return what is kept in order."""
        self._sort_in()
        empty = pa.array([], pa.large_string()), np.zeros(0), {}
        return self._parts[0] if self._parts else empty

    def _sort_in(self) -> None:
        """Sort what waits into what is kept, and let go of the rest."""
        if not self._parts or (len(self._parts) == 1 and not self._waiting):
            return
        ids = pa.concat_arrays([part[0] for part in self._parts])
        keys = np.concatenate([part[1] for part in self._parts])
        names = self._parts[0][2]
        columns = {n: np.concatenate([part[2][n] for part in self._parts]) for n in names}
        order = np.lexsort((id_hashes(ids), -keys))
        kept = order[: self._num_kept(columns["num_tokens"][order])]
        if len(kept) < len(order):
            self.threshold = float(keys[kept[-1]])
        columns = {name: values[kept] for name, values in columns.items()}
        self._parts = [(ids.take(pa.array(kept)), keys[kept], columns)]
        self._waiting = 0

    def _num_kept(self, tokens: np.ndarray) -> int:
        """Return how many of the best rows fill the budget, with what is spare."""
        if self.unit == "rows":
            return min(len(tokens), self.budget + self.spare)
        return num_within(tokens, self.budget + self.spare * self.largest)


def num_within(tokens: np.ndarray, budget: float) -> int:
    """Return how many rows in turn reach a budget of tokens; all of them if they do not.

    Example:
        >>> num_within(np.array([5, 5, 5]), 7), num_within(np.array([5]), 7)
        (2, 1)
    """
    if budget <= 0:
        return 0
    return min(len(tokens), int(np.searchsorted(np.cumsum(tokens), budget)) + 1)


def _text(ids: pa.Array) -> pa.Array:
    """Return ids as text."""
    return ids.cast(pa.large_string())
