"""How strongly weights follow scores, and how that changes over a run.

Letters: ``n`` examples, ``r`` temperatures.

Weights are the softmax of scores over the temperature: large is uniform, small keeps only the
best scores. Steps are counted from the end of the warm-up.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import cos, exp, log, pi
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from projections import check_at_least

LOWEST, HIGHEST = exp(-9.0), exp(9.0)  # of the widths of the scores: what a search considers
ROUNDS, POINTS = 3, 64


@runtime_checkable
class Temperature(Protocol):
    """The temperature of a step."""

    def __call__(self, scores: Float[Tensor, " n"], step: int) -> Float[Tensor, ""] | float:
        """Return a positive number for these scores at this step."""
        ...


@dataclass(frozen=True)
class ConstantTemperature:
    """The same at every step.

    Args:
        value: The temperature, above 0.
    """

    value: float = 1.0

    def __post_init__(self) -> None:
        """Check the arguments."""
        check_positive("value", self.value)

    def __call__(self, scores: Float[Tensor, " n"], step: int) -> float:
        """Return the temperature."""
        return self.value


@dataclass(frozen=True)
class StepTemperature:
    """One value until a step, then the next.

    Args:
        values: The temperature from each step on; one of the steps must be 0.

    Example:
        >>> schedule = StepTemperature({0: 1.0, 100: 0.4})
        >>> [schedule(torch.zeros(1), step) for step in (0, 99, 100)]
        [1.0, 1.0, 0.4]
    """

    values: Mapping[int, float]

    def __post_init__(self) -> None:
        """Check the arguments."""
        if 0 not in self.values or min(self.values) < 0:
            raise ValueError(f"`values` must begin at step 0. Got the steps {sorted(self.values)}.")
        for step, value in self.values.items():
            check_positive(f"values[{step}]", value)

    def __call__(self, scores: Float[Tensor, " n"], step: int) -> float:
        """Return the value of the last step that is not after ``step``."""
        return self.values[max(start for start in self.values if start <= step)]


@dataclass(frozen=True, kw_only=True)
class CosineTemperature:
    """Half a cosine from one value to another, which then stays.

    Args:
        start: The first temperature.
        end: The last.
        num_steps: Number of steps between them.

    Example:
        >>> schedule = CosineTemperature(start=1.0, end=0.4, num_steps=10)
        >>> [round(schedule(torch.zeros(1), step), 2) for step in (0, 5, 10, 99)]
        [1.0, 0.7, 0.4, 0.4]
    """

    start: float
    end: float
    num_steps: int

    def __post_init__(self) -> None:
        """Check the arguments."""
        check_positive("start", self.start)
        check_positive("end", self.end)
        check_at_least("num_steps", self.num_steps, 1)

    def __call__(self, scores: Float[Tensor, " n"], step: int) -> float:
        """Return the temperature of a step."""
        share = min(step / self.num_steps, 1.0)
        return self.end + (self.start - self.end) * (1 + cos(pi * share)) / 2


@dataclass(frozen=True)
class EffectiveSampleSize:
    r"""The temperature at which the weights are worth a share of the batch.

    The effective sample size is :math:`1 / \sum w_i^2` of ``n`` weights that sum to one. Found on
    the device, to 1e-4 of the logarithm of the temperature. Where scores tie at the top, no
    temperature goes below the number of ties; the least that is considered is then taken.

    Args:
        share: The effective sample size over ``n``, in ``(0, 1)``.

    Example:
        >>> scores = torch.linspace(0, 1, 100)
        >>> temperature = EffectiveSampleSize(0.5)(scores, 0)
        >>> float(1 / (scores / temperature).softmax(0).square().sum()).__round__(1)
        50.0
    """

    share: float

    def __post_init__(self) -> None:
        """Check the arguments."""
        if not 0 < self.share < 1:
            raise ValueError(f"`share` must be in (0, 1). Got {self.share}.")

    def __call__(self, scores: Float[Tensor, " n"], step: int) -> Float[Tensor, ""]:
        """Return the temperature of these scores."""
        width = scores.max() - scores.min()
        scaled = (scores - scores.max()) / torch.where(width > 0, width, 1)
        low = scores.new_tensor(log(LOWEST))
        high = scores.new_tensor(log(HIGHEST))
        steps = torch.linspace(0, 1, POINTS, dtype=scores.dtype, device=scores.device)
        for _ in range(ROUNDS):
            logs = low + (high - low) * steps
            weights = (scaled / logs.exp()[:, None]).softmax(dim=1)
            sizes: Float[Tensor, " r"] = 1 / weights.square().sum(1)  # grows with r
            above = (sizes < self.share * len(scores)).sum().clamp(1, POINTS - 1)
            low, high = logs[above - 1], logs[above]
        return ((low + high) / 2).exp() * torch.where(width > 0, width, 1)


def as_temperature(value: "float | Temperature") -> Temperature:
    """Return a number as a constant temperature."""
    return ConstantTemperature(float(value)) if isinstance(value, int | float) else value


def check_positive(name: str, value: float) -> None:
    """Refuse what is not above 0."""
    if not value > 0:
        raise ValueError(f"`{name}` must be above 0. Got {value}.")
