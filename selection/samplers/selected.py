"""The rows of a selection in epochs, each as often as its weight says.

Letters: ``n`` rows of a batch, ``m`` rows of the selection.
"""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from projections import check_at_least, check_not_empty
from selection.base import Selection
from selection.keyed import keyed_order, keyed_uniforms
from selection.samplers.base import LAG, check_seed
from selection.samplers.timeline import Timeline


class SelectionDraws:
    r"""Go through a selection in epochs of as many draws as it has rows, each shuffled.

    In each epoch a row comes :math:`\lfloor c_i \rfloor` or :math:`\lceil c_i \rceil` times,
    where :math:`c_i = m w_i / \sum w` is its expected number (systematic resampling): with equal
    weights, once. Epochs follow each other without a gap: a batch may span two.

    Args:
        selection: Ids and weights.
        data: The data with these ids; positions are of its rows.
        batch_size: Rows of an optimiser step, over all ranks.
        seed: Seed of orders and counts.

    Raises:
        DataError: A chosen id is not in the data.
        ValueError: The selection is empty, or its weights are no weights.

    Example:
        >>> chosen = Selection(np.array([3, 1, 2]), np.array([1.0, 1.0, 2.0]))
        >>> draws = SelectionDraws(chosen, ["a", "b", "c", "d"], batch_size=3, seed=0)
        >>> draws.positions(0)
        array([2, 2, 3])
    """

    def __init__(self, selection: Selection, data: Any, *, batch_size: int, seed: int) -> None:
        """Find the rows."""
        check_at_least("batch_size", batch_size, 1)
        check_not_empty("selection", len(selection))
        weights = np.asarray(selection.weights, dtype=np.float64)
        if not np.isfinite(weights).all() or weights.min() < 0 or weights.sum() == 0:
            raise ValueError(
                "`selection` must have finite weights of at least 0, some above it. "
                f"Got {weights.min():g} to {weights.max():g}."
            )
        self.batch_size = batch_size
        self.seed = seed
        self._timeline = Timeline(weights, lag=LAG)  # which stays as it is
        self._positions = selection.positions(data)
        self._ends = np.cumsum(weights) * (len(weights) / weights.sum())
        self._ends[-1] = len(weights)
        self._epoch = lru_cache(maxsize=2)(self._draw_epoch)

    @property
    def consumed(self) -> int:
        """Number of batches that were consumed."""
        return self._timeline.consumed

    def __len__(self) -> int:
        """Return the number of draws of an epoch."""
        return len(self._positions)

    def positions(self, batch: int) -> Int[np.ndarray, " n"]:
        """Return the rows of a batch."""
        self._timeline.at(batch)
        numbers = np.arange(batch * self.batch_size, (batch + 1) * self.batch_size)
        epochs = numbers // len(self)
        parts = [
            self._epoch(int(epoch))[numbers[epochs == epoch] % len(self)]
            for epoch in np.unique(epochs)
        ]
        return np.concatenate(parts)

    def advance(self) -> None:
        """Count one batch as consumed."""
        self._timeline.advance()

    def state_dict(self) -> dict[str, Any]:
        """Return the seed, the number of consumed batches, and the weights."""
        return {"seed": self.seed, **self._timeline.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on after the consumed batches of a state.

        Raises:
            ValueError: The state is of a selection of another size.
        """
        check_seed(state, self.seed)
        self._timeline.load_state_dict(state)

    def _draw_epoch(self, epoch: int) -> Int[np.ndarray, " m"]:
        """Return the rows of an epoch in their order."""
        start = keyed_uniforms(self.seed, "counts", np.array([epoch]))
        steps: Float[np.ndarray, " m"] = np.floor(self._ends + start)
        counts = np.diff(steps, prepend=0).astype(np.int64)
        rows = np.repeat(self._positions, counts)
        return rows[keyed_order(self.seed, f"order/{epoch}", len(rows))]
