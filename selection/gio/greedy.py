"""One pick after the other, until a rule stops: the loop of GIO, and what it leaves.

Letters: ``g`` candidates.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from projections import track
from selection.gio.estimates import Estimate
from selection.gio.stopping import Restarts, Step, StoppingRule


@dataclass(frozen=True)
class Pick:
    """One candidate that was chosen.

    Args:
        candidate: Its number.
        divergence: The estimate once it is chosen.
    """

    candidate: int
    divergence: float


@dataclass
class Greedy:
    """The state of the loop.

    Args:
        estimate: What is to be lowered.
        sizes: Number of rows of each candidate.
        rule: When to stop.
    """

    estimate: Estimate
    sizes: Int[np.ndarray, " g"]
    rule: StoppingRule

    def __post_init__(self) -> None:
        """Make every candidate available."""
        self.start = self.estimate.value
        self.ended = "as many picks as were asked for"
        self._available = np.ones(len(self.sizes), dtype=bool)
        self._num_left = len(self.sizes)
        self._restarts = self.rule.most if isinstance(self.rule, Restarts) else 0
        self._num_rows = self._num_rises = 0

    def take(self, candidates: Sequence[int]) -> list[Pick]:
        """Choose candidates without asking the rule."""
        return [
            self._take(candidate, self.estimate.value_with(candidate)) for candidate in candidates
        ]

    def run(self, most: int | None) -> list[Pick]:
        """Choose until the rule stops, or there are so many picks."""
        return list(track(self._steps(most), "greedy", total=most, unit="picks"))

    def _steps(self, most: int | None) -> Iterator[Pick]:
        """Yield picks, and leave the reason for the end in `ended`."""
        count, before = 0, self.estimate.value
        while most is None or count < most:
            if not self._num_left:
                self.ended = "every candidate is chosen"
                return
            candidate = self.estimate.best(self._available)
            after = self.estimate.value_with(candidate)
            rises = self._num_rises + 1 if after > before else 0
            share = (self._num_rows + int(self.sizes[candidate])) / int(self.sizes.sum())
            verdict = self.rule.verdict(Step(before, after, rises, share))
            if verdict == "refuse":
                if not self._restarts or self._num_left == len(self.sizes):
                    name = type(self.rule).__name__
                    self.ended = f"{name}: the next pick takes {before:.6g} to {after:.6g}"
                    return
                self._refill()
                continue
            self._num_rises, before, count = rises, after, count + 1
            yield self._take(candidate, after)
            if verdict == "last":
                self.ended = f"{type(self.rule).__name__}: reached at {after:.6g}"
                return

    def _take(self, candidate: int, after: float) -> Pick:
        """Choose one."""
        self.estimate.add(candidate)
        self._available[candidate] = False
        self._num_left -= 1
        self._num_rows += int(self.sizes[candidate])
        return Pick(candidate, after)

    def _refill(self) -> None:
        """Make every candidate available again."""
        self._restarts -= 1
        self._available[:] = True
        self._num_left = len(self.sizes)
        self._num_rises = 0
        self.estimate.refill()
