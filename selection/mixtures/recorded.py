"""What all mixtures keep: names, weights, and the history of their moves.

Letters: ``m`` domains.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from projections import StoreMismatchError, Table, check_at_least
from selection.history import History
from selection.mixtures.mirror import MirrorDescent, MirrorState, check_weights

START = -1  # the step of the first row of a history


class RecordedMixture:
    """Base of all mixtures: weights with their history, and perhaps a rule that moves them.

    Args:
        names: Names of the domains.
        weights: Their weights at the start; default: uniform.
        rule: The rule of `_move`; without one, a subclass says itself what the weights are.
        every: Steps between two moves.
    """

    def __init__(
        self,
        names: Sequence[str],
        weights: Sequence[float] | np.ndarray | None = None,
        *,
        rule: MirrorDescent | None = None,
        every: int = 1,
    ) -> None:
        """Check the names and the weights."""
        check_at_least("every", every, 1)
        self._names = check_names(names)
        start = _check_start(self._names, weights)
        self._rule, self._every = rule, every
        self._state = rule.begin(start) if rule else None
        self._steps: list[int] = [START]
        self._path: list[list[float]] = [start.tolist()]
        self._signals: list[list[float]] = [[float("nan")] * len(self._names)]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the ``m`` domains."""
        return self._names

    @property
    def weights(self) -> Float[np.ndarray, " m"]:
        """The share of each domain now, in float64 with the sum 1; the caller's own copy."""
        return np.array(self._path[-1])

    @property
    def history(self) -> Table:
        """The moves so far: ids are steps, the columns ``"weights"`` and ``"signal"``."""
        columns = {"weights": np.array(self._path), "signal": np.array(self._signals)}
        return Table(np.array(self._steps), columns)

    @property
    def weight_history(self) -> History:
        """The weights by name over the steps, with `History.table` and `History.plot`."""
        history = History()
        for step, weights in zip(self._steps, self._path, strict=True):
            history.add(step, dict(zip(self._names, weights, strict=True)))
        return history

    @property
    def num_moves(self) -> int:
        """Number of moves so far."""
        return len(self._steps) - 1

    @property
    def mean_weights(self) -> Float[np.ndarray, " m"]:
        """The mean of the weights over all moves; before the first, the weights."""
        return np.mean(self._path[1:] or self._path, axis=0)

    def due(self, step: int) -> bool:
        """Tell whether the step is the last of its ``every``."""
        return (step + 1) % self._every == 0

    def state_dict(self) -> dict[str, Any]:
        """Return all that changes during training, as plain values that JSON can hold."""
        # JSON has no NaN.
        signals = [[None if value != value else value for value in row] for row in self._signals]
        return {
            "names": list(self._names),
            "steps": list(self._steps),
            "weights": [list(row) for row in self._path],
            "signals": signals,
            "mirror": self._state.to_json() if self._state else None,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state of a mixture of the same domains.

        Raises:
            StoreMismatchError: The state is of other domains.
        """
        if tuple(state["names"]) != self._names:
            raise StoreMismatchError(
                "a mixture goes on from a state of the same domains in the same order. It has "
                f"{list(self._names)}, the state {list(state['names'])}."
            )
        self._steps = [int(step) for step in state["steps"]]
        self._path = [list(row) for row in state["weights"]]
        self._signals = [
            [float("nan") if value is None else value for value in row] for row in state["signals"]
        ]
        self._state = MirrorState.from_json(state["mirror"]) if self._rule else None

    def _move(
        self,
        step: int,
        signal: Float[np.ndarray, " m"],
        known: Bool[np.ndarray, " m"] | None = None,
    ) -> None:
        """Take one step of the rule along a signal, which knows of some domains."""
        assert self._rule is not None and self._state is not None
        self._state = self._rule.step(self._state, signal, names=self._names, known=known)
        seen = signal if known is None else np.where(known, signal, np.nan)
        self._record(step, self._state.weights, seen)

    def _record(
        self, step: int, weights: Float[np.ndarray, " m"], signal: Float[np.ndarray, " m"]
    ) -> None:
        """Make these the weights, and keep what led to them."""
        self._steps.append(int(step))
        self._path.append(weights.tolist())
        self._signals.append(signal.tolist())


class FixedMixture(RecordedMixture):
    """Weights that stay as they are: what static methods return.

    Args:
        names: Names of the domains.
        weights: Their weights; default: uniform.

    Example:
        >>> FixedMixture(("news", "code"), [0.75, 0.25]).weights
        array([0.75, 0.25])
    """

    def __init__(
        self, names: Sequence[str], weights: Sequence[float] | np.ndarray | None = None
    ) -> None:
        """Check the names and the weights."""
        super().__init__(names, weights)

    def due(self, step: int) -> bool:
        """Never."""
        return False


def check_names(names: Sequence[str]) -> tuple[str, ...]:
    """Return the names, of which there must be one, and none twice."""
    kept = (names,) if isinstance(names, str) else tuple(names)
    if not kept or len(set(kept)) < len(kept):
        raise ValueError(f"`names` must be one or more different names. Got {list(kept)}.")
    return kept


def _check_start(
    names: tuple[str, ...], weights: Sequence[float] | np.ndarray | None
) -> Float[np.ndarray, " m"]:
    """Return the weights at the start, one a name."""
    if weights is None:
        return np.full(len(names), 1 / len(names))
    given = np.asarray(weights, dtype=float)
    if given.shape != (len(names),):
        raise ValueError(
            f"`weights` must have one entry for each of the {len(names)} domains. Got the shape "
            f"{given.shape}."
        )
    return check_weights(given)
