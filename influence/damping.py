"""Damping: what is added to every eigenvalue before it is inverted.

It matters more than the estimator of the curvature, and is therefore always reported.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from projections import StoreMismatchError, check_at_least, check_between


@runtime_checkable
class Damping(Protocol):
    """A rule for the damping of one layer."""

    def of(self, mean_eigenvalue: float) -> float:
        """Return the damping of a layer whose eigenvalues have this mean."""
        ...


@dataclass(frozen=True)
class RelativeDamping:
    """A multiple of the mean eigenvalue of each layer.

    Args:
        factor: The multiple.

    References:
        Grosse et al. (2023), arXiv:2308.03296: 0.1.
    """

    factor: float = 0.1

    def __post_init__(self) -> None:
        """Check the argument."""
        check_at_least("factor", self.factor, 0)

    def of(self, mean_eigenvalue: float) -> float:
        """Return the multiple of the mean."""
        return self.factor * mean_eigenvalue


@dataclass(frozen=True)
class AbsoluteDamping:
    """The same number for every layer, in units of the squared gradient of one example.

    Args:
        value: The number.
    """

    value: float

    def __post_init__(self) -> None:
        """Check the argument."""
        check_at_least("value", self.value, 0)

    def of(self, mean_eigenvalue: float) -> float:
        """Return the number."""
        return self.value


def damping_from(description: Mapping[str, Any]) -> Damping:
    """Return the damping that `describe` has described.

    Raises:
        StoreMismatchError: It is not one of this library.
    """
    values = dict(description)
    kinds = {kind.__name__: kind for kind in (RelativeDamping, AbsoluteDamping)}
    name = values.pop("kind")
    if name not in kinds:
        raise StoreMismatchError(
            f"`damping` must be given: the one that was saved is a {name}, and not one of "
            f"{sorted(kinds)}."
        )
    return kinds[name](**values)


def noise_floor(trace: float, num_rows: int) -> AbsoluteDamping:
    r"""Return the damping below which a Gram matrix of this many rows is noise.

    A second-moment matrix estimated from :math:`n` rows cannot tell a direction from zero
    whose eigenvalue is below about :math:`\mathrm{tr} / n`, what one row adds on average.
    It needs no training recipe and does not depend on how many coordinates are kept. In
    `benchmarks/influence_index.md` it is at or next to the best of a sweep.

    Args:
        trace: Trace of the mean Gram matrix.
        num_rows: Number ``n`` of rows that it is the mean of.

    Example:
        >>> noise_floor(22.5, 5000)
        AbsoluteDamping(value=0.0045)
    """
    check_at_least("num_rows", num_rows, 1)
    return AbsoluteDamping(trace / num_rows)


def recipe_damping(
    *, learning_rate: float, num_steps: int, momentum: float = 0.0
) -> AbsoluteDamping:
    r"""Return the damping that a training run of this length has by itself.

    After :math:`K` steps of size :math:`\eta`, directions with eigenvalues far below
    :math:`1 / (\eta K)` have hardly moved: the run is as if damped by that number.

    Args:
        learning_rate: The step size (its mean over a schedule).
        num_steps: Number of optimiser steps.
        momentum: Momentum of SGD, which multiplies the step by ``1 / (1 - momentum)``.

    Example:
        >>> recipe_damping(learning_rate=0.01, momentum=0.9, num_steps=3900)
        AbsoluteDamping(value=0.00256...)

    References:
        Bae et al., Training data attribution via approximate unrolling (NeurIPS 2024),
        arXiv:2405.12186, Sec. 3.
    """
    check_at_least("num_steps", num_steps, 1)
    check_between("momentum", momentum, 0, 1 - 1e-9)
    if not learning_rate > 0:
        raise ValueError(f"`learning_rate` must be positive. Got {learning_rate}.")
    return AbsoluteDamping((1 - momentum) / (learning_rate * num_steps))
