"""Rows drawn in proportion to weights that may change while a model trains.

Letters: ``n`` rows of a batch, ``m`` rows of the data.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from projections import NonFiniteError, check_at_least, check_not_empty
from selection.keyed import keyed_uniforms
from selection.samplers.base import LAG, check_seed
from selection.samplers.timeline import Timeline


class WeightedDraws:
    r"""Draw rows with replacement, each with a probability in proportion to its weight.

    Draw number :math:`t` takes the row at which the cumulated weights pass
    :math:`u_t \sum w`, with :math:`u_t` from Philox by seed and :math:`t`.

    Args:
        weights: One weight a row, none negative; 0 is never drawn.
        batch_size: Rows of an optimiser step, over all ranks.
        seed: Seed of the draws.
        lag: Batches between `set_weights` and the first that is drawn with it.

    Raises:
        NonFiniteError: A weight is not finite.
        ValueError: A weight is negative, or all are 0.

    Example:
        >>> draws = WeightedDraws(np.array([1.0, 0.0, 3.0]), batch_size=4, seed=0)
        >>> draws.positions(0)
        array([2, 2, 2, 0])
        >>> draws.importance(0)
        array([0.44444444, 0.44444444, 0.44444444, 1.33333333])
    """

    def __init__(
        self, weights: Float[np.ndarray, " m"], *, batch_size: int, seed: int, lag: int = LAG
    ) -> None:
        """Check the weights."""
        check_at_least("batch_size", batch_size, 1)
        self.batch_size = batch_size
        self.seed = seed
        self._timeline = Timeline(_cumulated(weights), lag=lag)

    @property
    def consumed(self) -> int:
        """Number of batches that were consumed."""
        return self._timeline.consumed

    def positions(self, batch: int) -> Int[np.ndarray, " n"]:
        """Return the rows of a batch."""
        return self._rows(batch, self._timeline.at(batch))

    def importance(self, batch: int) -> Float[np.ndarray, " n"]:
        """Return what makes the mean over a batch unbiased for the mean over the data.

        The weight of a row that was drawn with probability ``p`` is ``1 / (m p)``, of the
        probabilities that this batch was drawn with.
        """
        ends = self._timeline.look(batch)
        probabilities = np.diff(ends, prepend=0)[self._rows(batch, ends)]
        return 1 / (len(ends) * probabilities)

    def set_weights(self, weights: Float[np.ndarray, " m"]) -> None:
        """Change the weights, from ``lag`` batches after the last consumed one on.

        Raises:
            NonFiniteError: A weight is not finite.
            ValueError: The number of weights changes, or one is negative, or all are 0, or
                the loader reads further ahead than the lag.
        """
        if len(weights) != len(self._timeline.newest):
            raise ValueError(
                f"`weights` must have {len(self._timeline.newest)} entries, one a row. "
                f"Got {len(weights)}."
            )
        self._timeline.change(_cumulated(weights))

    def advance(self) -> None:
        """Count one batch as consumed."""
        self._timeline.advance()

    def state_dict(self) -> dict[str, Any]:
        """Return the seed, the number of consumed batches, and weights that are needed."""
        return {"seed": self.seed, **self._timeline.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on after the consumed batches of a state."""
        check_seed(state, self.seed)
        self._timeline.load_state_dict(state)

    def _rows(self, batch: int, ends: Float[np.ndarray, " m"]) -> Int[np.ndarray, " n"]:
        """Return the rows of a batch, for these cumulated probabilities."""
        numbers = np.arange(batch * self.batch_size, (batch + 1) * self.batch_size)
        return np.searchsorted(ends, keyed_uniforms(self.seed, "draw", numbers), side="right")


def _cumulated(weights: Float[np.ndarray, " m"]) -> Float[np.ndarray, " m"]:
    """Return cumulated probabilities, which end in 1."""
    weights = np.asarray(weights, dtype=np.float64)
    check_not_empty("weights", len(weights))
    bad = np.flatnonzero(~np.isfinite(weights))
    if len(bad):
        raise NonFiniteError(
            f"every weight must be finite. Those at the positions {bad[:10].tolist()} are not."
        )
    if weights.min() < 0 or weights.sum() == 0:
        raise ValueError(
            "`weights` must be at least 0, and some above it. "
            f"Got {weights.min():g} to {weights.max():g}."
        )
    ends = np.cumsum(weights)
    ends /= ends[-1]
    ends[np.flatnonzero(weights)[-1] :] = 1  # whatever the rounding
    return ends
