"""When greedy selection by divergence stops.

A rule looks at each step before it is taken. A step that is refused is not taken; a step
that reaches a goal is the last one. Rules are those of the published package, in which two
(`SequentialIncreases` and `Restarts`) can never fire; here they do.

References:
    Everaert and Potts, GIO: Gradient information optimization for training dataset
    selection (ICLR 2024), arXiv:2306.11670.
"""

from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

from projections import check_at_least, check_between, describe

Verdict = Literal["take", "last", "refuse"]


@dataclass(frozen=True)
class Step:
    """One step of the greedy loop, before it is taken.

    Args:
        before: The divergence now.
        after: The divergence with the step.
        num_rises: Steps in a row, this one included, that raise the divergence.
        share: Share of the rows that is chosen with the step.
    """

    before: float
    after: float
    num_rises: int
    share: float


@runtime_checkable
class StoppingRule(Protocol):
    """Says whether a step is taken."""

    def verdict(self, step: Step) -> Verdict:
        """Return whether to take the step, to take it as the last one, or to refuse it."""
        ...


@dataclass(frozen=True)
class Increase:
    """Stop before the divergence rises (``increase``, the published default)."""

    def verdict(self, step: Step) -> Verdict:
        """Refuse a step that raises the divergence."""
        return "refuse" if step.after > step.before else "take"


INCREASE = Increase()


@dataclass(frozen=True)
class SequentialIncreases:
    """Take up to so many rises in a row, and stop before one more.

    Args:
        most: Number of rises in a row that are taken.
    """

    most: int = 3

    def __post_init__(self) -> None:
        """Check the argument."""
        check_at_least("most", self.most, 0)

    def verdict(self, step: Step) -> Verdict:
        """Refuse one rise too many."""
        return "refuse" if step.num_rises > self.most else "take"


@dataclass(frozen=True)
class MinDifference:
    """Stop before a step that lowers the divergence by less than this.

    Args:
        least: The smallest decrease that is worth a step.
    """

    least: float = 0.0

    def verdict(self, step: Step) -> Verdict:
        """Refuse a step that gains too little."""
        return "refuse" if step.before - step.after < self.least else "take"


@dataclass(frozen=True)
class MinDivergence:
    """Stop when the divergence is below a value (``min_kl``).

    Args:
        value: The goal.
    """

    value: float = 0.0

    def verdict(self, step: Step) -> Verdict:
        """Take the step that reaches the goal, and no other."""
        return "last" if step.after < self.value else "take"


@dataclass(frozen=True)
class DataShare:
    """Stop when a share of the rows is chosen (``data_size``); 1 ranks all of them.

    Args:
        share: The share of the candidates' rows.
    """

    share: float = 1.0

    def __post_init__(self) -> None:
        """Check the argument."""
        check_between("share", self.share, 0, 1, "a share of the rows")

    def verdict(self, step: Step) -> Verdict:
        """Take steps up to the share."""
        if self.share == 0:
            return "refuse"
        return "last" if step.share >= self.share else "take"


@dataclass(frozen=True)
class Restarts:
    """Where another rule stops, make all candidates available again (``resets_allowed``).

    Rows can then be chosen several times, which their weights count. With `Increase` this
    is the published rule ``max_resets``.

    Args:
        rule: The rule that stops.
        most: Number of restarts before it really does.
    """

    rule: StoppingRule = INCREASE
    most: int = 2

    def __post_init__(self) -> None:
        """Check the argument."""
        check_at_least("most", self.most, 0)

    def verdict(self, step: Step) -> Verdict:
        """Return what the rule says; the greedy loop counts the restarts."""
        return self.rule.verdict(step)

    def describe(self) -> dict[str, Any]:
        """Return the settings, those of the rule among them."""
        return {"kind": "Restarts", "rule": describe(self.rule), "most": self.most}
