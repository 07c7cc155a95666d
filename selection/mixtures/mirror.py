"""Mirror descent on the simplex: the one rule by which signals move mixture weights.

Letters: ``m`` domains.

All of it happens to logarithms in float64: a weight may become as small as it likes and
still come back. Not handled: where signals come from, and when to take a step.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float
from scipy.special import logsumexp
from scipy.stats import rankdata

from projections import NonFiniteError, check_at_least, check_between, check_one_of

Signal = Float[np.ndarray, " m"]
SUM_TOLERANCE = 1e-6  # how far from 1 the sum of given weights may be


@dataclass(frozen=True)
class MirrorState:
    """Where a mixture stands; steps return a new one.

    Args:
        logs: Logarithms of the weights, averaged and with the floor: what is sampled from.
        raw_logs: Logarithms of the last mirror step, before averaging and floor.
        num_steps: Number of steps so far, those of the warm-up among them.
    """

    logs: Float[np.ndarray, " m"]
    raw_logs: Float[np.ndarray, " m"]
    num_steps: int = 0

    @property
    def weights(self) -> Float[np.ndarray, " m"]:
        """The weights, with the sum 1."""
        weights = np.exp(self.logs)
        return weights / weights.sum()

    def to_json(self) -> dict[str, Any]:
        """Return plain values, from which `from_json` makes the same bits."""
        return {
            "logs": self.logs.tolist(),
            "raw_logs": self.raw_logs.tolist(),
            "num_steps": self.num_steps,
        }

    @classmethod
    def from_json(cls, state: Mapping[str, Any]) -> "MirrorState":
        """Return what `to_json` wrote."""
        logs, raw_logs = (np.array(state[name], dtype=float) for name in ("logs", "raw_logs"))
        return cls(logs, raw_logs, int(state["num_steps"]))


@dataclass(frozen=True, kw_only=True)
class MirrorDescent:
    r"""Move weights by exponentiated gradients, with averaging and a floor.

    A signal :math:`a` is first scaled and clipped. From weights :math:`w`, the step is
    :math:`\log u = \log w + \eta a - \mathrm{const}`, then
    :math:`w' = (1 - \phi) ((1 - \beta) w + \beta u) + \phi / m`. Adding a constant to the
    signal of all domains changes nothing unless it is clipped.

    Args:
        step_size: :math:`\eta`; how far one step goes.
        average: :math:`\beta` in ``[0, 1]``; 1 takes each step as it is, less smooths it.
        floor: :math:`\phi` in ``[0, 1]``, the share that stays uniform, so that no domain
            is lost for good.
        scale: ``"none"``; ``"deviation"`` divides a signal by its standard deviation over
            domains; ``"rank"`` replaces it by ranks from -1 to 1, ties sharing theirs.
        clip: Least and largest value of the scaled signal.
        warmup: Number of first steps that only count, and leave the weights where they are.
        start: Where a step starts: at the ``"averaged"`` weights, as in DGA, or at the
            ``"raw"`` ones, whose average then follows the path without acting on it.

    Example:
        >>> rule = MirrorDescent(step_size=1.0)
        >>> state = rule.step(rule.begin([0.5, 0.5]), np.array([1.0, 0.0]))
        >>> state.weights.round(3)
        array([0.731, 0.269])

    References:
        Kivinen and Warmuth, Exponentiated gradient versus gradient descent for linear
        predictors (1997). Averaging of the weights: Fan et al., Dynamic gradient alignment
        for online data mixing (2024), arXiv:2410.02498, Algorithm 1.
    """

    step_size: float = 1.0
    average: float = 1.0
    floor: float = 0.0
    scale: Literal["none", "deviation", "rank"] = "none"
    clip: tuple[float, float] | None = None
    warmup: int = 0
    start: Literal["averaged", "raw"] = "averaged"

    def __post_init__(self) -> None:
        """Check the arguments."""
        check_at_least("step_size", self.step_size, 0)
        check_between("average", self.average, 0, 1)
        check_between("floor", self.floor, 0, 1)
        check_one_of("scale", self.scale, SCALES)
        check_at_least("warmup", self.warmup, 0)
        check_one_of("start", self.start, ("averaged", "raw"))
        if self.clip is not None and not self.clip[0] < self.clip[1]:
            raise ValueError(f"`clip` must be two rising numbers. Got {self.clip}.")

    def begin(self, weights: Sequence[float] | Float[np.ndarray, " m"]) -> MirrorState:
        """Return the state at given weights.

        Raises:
            ValueError: The weights are not positive, or do not sum to 1.
        """
        start = check_weights(np.asarray(weights, dtype=float))
        if not (start > 0).all():
            raise ValueError(
                "weights to start from must be positive, since a step multiplies them. Got "
                f"{start.tolist()}. Give small ones a floor."
            )
        logs = np.log(start)
        return MirrorState(logs, logs)

    def step(
        self,
        state: MirrorState,
        signal: Signal,
        *,
        names: Sequence[str] = (),
        known: Bool[np.ndarray, " m"] | None = None,
    ) -> MirrorState:
        """Return the state after one step.

        Args:
            state: The state before.
            signal: What speaks for each domain.
            names: Names of the domains, for messages.
            known: Which domains the signal knows of; default: all. The others keep their
                weight but for the floor, and what they have in ``signal`` is not read.

        Raises:
            NonFiniteError: The signal of a known domain is not finite.
        """
        known = np.ones(len(signal), dtype=bool) if known is None else known
        check_finite(signal, names=names, known=known)
        if state.num_steps < self.warmup or not known.any():
            return MirrorState(state.logs, state.raw_logs, state.num_steps + 1)
        begun = state.logs if self.start == "averaged" else state.raw_logs
        raw = begun.copy()
        moved = begun[known] + self.step_size * self._prepared(signal[known])
        # The known domains share among them what they had together.
        raw[known] = moved - logsumexp(moved) + logsumexp(begun[known])
        logs = _mixed_logs(state.logs, raw, self.average)
        logs = _mixed_logs(logs - logsumexp(logs), np.full(len(raw), -np.log(len(raw))), self.floor)
        logs = logs - logsumexp(logs)
        return MirrorState(logs, raw, state.num_steps + 1)

    def _prepared(self, signal: Signal) -> Signal:
        """Scale and clip."""
        scaled = SCALES[self.scale](signal)
        return scaled if self.clip is None else np.clip(scaled, *self.clip)


def check_weights(weights: Float[np.ndarray, " m"]) -> Float[np.ndarray, " m"]:
    """Return weights scaled to the sum 1, of which they may miss a rounding.

    Raises:
        ValueError: There are none, one is negative, or the sum is not 1.
    """
    total = weights.sum()
    if not (len(weights) and (weights >= 0).all() and abs(total - 1) <= SUM_TOLERANCE):
        raise ValueError(
            f"`weights` must not be negative and must sum to 1. Got {weights.tolist()}, of sum "
            f"{total:g}."
        )
    return weights / total


def check_finite(
    signal: Signal, *, names: Sequence[str], known: Bool[np.ndarray, " m"] | None = None
) -> None:
    """Refuse NaN and infinity, and name the domains that have it."""
    wrong = ~np.isfinite(signal) if known is None else known & ~np.isfinite(signal)
    if wrong.any():
        found = {
            names[place] if len(names) else f"domain {place}": float(signal[place])
            for place in np.flatnonzero(wrong).tolist()
        }
        raise NonFiniteError(
            f"the signal of every domain must be finite. Got {found}. Look at the batches of "
            "these domains, and at the learning rate if all of them are wrong."
        )


def _by_deviation(signal: Signal) -> Signal:
    """Divide by the standard deviation; equal signals have none and stay."""
    deviation = signal.std()
    return signal / deviation if deviation > 0 else signal


def _by_rank(signal: Signal) -> Signal:
    """Return ranks from -1 to 1."""
    if len(signal) == 1:
        return np.zeros(1)
    return (rankdata(signal) - 1) / (len(signal) - 1) * 2 - 1


SCALES: dict[str, Callable[[Signal], Signal]] = {
    "none": lambda signal: signal,
    "deviation": _by_deviation,
    "rank": _by_rank,
}


def _mixed_logs(
    left: Float[np.ndarray, " m"], right: Float[np.ndarray, " m"], share: float
) -> Float[np.ndarray, " m"]:
    """Return the logarithm of ``(1 - share) exp(left) + share exp(right)``."""
    if share in (0, 1):
        return right if share else left
    return np.logaddexp(np.log1p(-share) + left, np.log(share) + right)
