"""Weights that change while batches are read ahead: which batch is drawn with which weights.

Letters: ``k`` weights.

A data loader asks for batches before the training loop consumes them: how long before
depends on its workers. A change of weights therefore takes effect a fixed number of batches
after it was made, the lag, which is at least as long as any loader reads ahead. So the
weights of a batch, and what is drawn for it, are the same with any number of workers, and
after a resume.
"""

from bisect import bisect_right
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from projections import check_at_least


class Timeline:
    """Weights by batch.

    Args:
        weights: The weights of the first batches.
        lag: Batches between a change and the first batch that is drawn with it.

    Example:
        >>> timeline = Timeline(np.array([1.0, 0.0]), lag=2)
        >>> timeline.change(np.array([0.5, 0.5]))
        >>> timeline.at(1).tolist(), timeline.at(2).tolist()
        ([1.0, 0.0], [0.5, 0.5])
    """

    def __init__(self, weights: Float[np.ndarray, " k"], *, lag: int) -> None:
        """Start at batch 0."""
        check_at_least("lag", lag, 0)
        self.lag = lag
        self.consumed = 0
        self.changes: list[tuple[int, Float[np.ndarray, " k"]]] = [(0, weights)]
        self._drawn = 0

    def at(self, batch: int) -> Float[np.ndarray, " k"]:
        """Return the weights of a batch, which from now on counts as drawn."""
        self._drawn = max(self._drawn, batch + 1)
        return self.look(batch)

    def look(self, batch: int) -> Float[np.ndarray, " k"]:
        """Return the weights of a batch without drawing it."""
        place = bisect_right(self.changes, batch, key=lambda change: change[0])
        return self.changes[max(place - 1, 0)][1]

    @property
    def newest(self) -> Float[np.ndarray, " k"]:
        """The weights that were set last, in effect or not."""
        return self.changes[-1][1]

    def change(self, weights: Float[np.ndarray, " k"]) -> None:
        """Set the weights from ``lag`` batches after the last consumed one on.

        Raises:
            ValueError: A batch that this would change was drawn already.
        """
        start = self.consumed + self.lag
        self.check_read_ahead(self._drawn - 1)
        self.changes = [change for change in self.changes if change[0] != start]
        self.changes.append((start, weights))

    def advance(self) -> None:
        """Count one batch as consumed, and forget weights that no coming batch needs."""
        self.consumed += 1
        old = [start for start, _ in self.changes if start < self.consumed]
        if len(old) > 1:  # the weights of the last consumed batch stay known
            self.changes = [change for change in self.changes if change[0] >= old[-1]]

    def check_read_ahead(self, batch: int) -> None:
        """Refuse a batch that is drawn before the weights that it needs can be known.

        Raises:
            ValueError: It lies more than the lag after the last consumed one.
        """
        if batch >= self.consumed + self.lag and batch > 0:
            raise ValueError(
                f"`lag` must be at least {batch - self.consumed + 1}: batch {batch} was drawn when "
                f"{self.consumed} were consumed, and the lag is {self.lag}. Call `advance` after "
                "each batch, or give a larger lag (workers times prefetch factor, and some)."
            )

    def state_dict(self) -> dict[str, Any]:
        """Return the number of consumed batches and the weights that coming ones need.

        Raises:
            ValueError: More was drawn than can be on its way: `advance` is not called.
        """
        self.check_read_ahead(self._drawn - 1)
        return {
            "consumed": self.consumed,
            "changes": [[start, weights.tolist()] for start, weights in self.changes],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on after the consumed batches of a state; what was read ahead is drawn again.

        Raises:
            ValueError: The state has another number of weights.
        """
        changes = [(int(start), np.array(weights)) for start, weights in state["changes"]]
        if len(changes[-1][1]) != len(self.newest):
            raise ValueError(
                f"the state must have {len(self.newest)} weights. Got {len(changes[-1][1])}. It is "
                "of another dataset or mixture."
            )
        self.consumed = self._drawn = int(state["consumed"])
        self.changes = changes
