"""What components cost: parameters, bytes or operations.

Letters: ``t`` positions, ``i`` inputs, ``o`` outputs.

Each is a sum over components, as a budget needs it. What is not: a component near the input
needs a backward pass through all that is above it, so the time of a pass falls by less.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from projections import Component, check_at_least, check_one_of, worth_forming

UNITS = ("parameters", "bytes", "operations")
NUMBER_BYTES = 4  # of float32
ID_BYTES = 8


@dataclass(frozen=True, kw_only=True)
class Budget:
    """How much a set of components may cost.

    Args:
        most: The most that its costs may add up to.
        unit: ``"parameters"``; ``"bytes"`` that one example's gradient takes, in factors or
            formed, whichever is less; ``"operations"`` of one inner product of two gradients, in
            the way in which they are computed.
        positions: Number of positions of an example, which bytes and operations hang on.

    Example:
        >>> Budget(most=1_000).unit
        'parameters'
    """

    most: float
    unit: str = "parameters"
    positions: int = 1

    def __post_init__(self) -> None:
        """Check the arguments."""
        check_at_least("most", self.most, 0)
        check_one_of("unit", self.unit, UNITS)
        check_at_least("positions", self.positions, 1)

    def costs(self, components: Sequence[Component]) -> Float[np.ndarray, " c"]:
        """Return the cost of each component.

        Raises:
            ValueError: None of them fits the budget.
        """
        costs = component_costs(components, self.unit, positions=self.positions)
        if costs.min() > self.most:
            raise ValueError(
                f"`most` must be at least the cheapest component, {costs.min():g} {self.unit}. "
                f"Got {self.most:g}."
            )
        return costs


def component_costs(
    components: Sequence[Component], unit: str, *, positions: int = 1
) -> Float[np.ndarray, " c"]:
    """Return what each component costs.

    Args:
        components: The components.
        unit: As in `Budget`.
        positions: Number ``t`` of positions of an example.
    """
    check_one_of("unit", unit, UNITS)
    cost = {"parameters": _parameters, "bytes": _bytes, "operations": _operations}[unit]
    return np.array([cost(component, positions) for component in components], dtype=np.float64)


def _parameters(component: Component, positions: int) -> int:
    """Return the number of parameters."""
    return component.size


def _bytes(component: Component, positions: int) -> int:
    """Return the bytes of one example's gradient."""
    formed = NUMBER_BYTES * component.size
    if component.kind == "vector" or component.kind == "replayed":
        return formed
    num_out, num_in = component.parameters[0].shape
    table = positions * (NUMBER_BYTES * num_in + ID_BYTES)  # ``num_in`` is a table's width
    factors = NUMBER_BYTES * positions * (num_out + num_in)
    if component.kind == "table":
        return min(formed, table)
    return min(formed, factors + table if component.kind == "mixed" else factors)


def _operations(component: Component, positions: int) -> int:
    """Return the multiplications and additions of one inner product."""
    if worth_forming(component, positions):
        return 2 * component.size
    num_out, num_in = component.parameters[0].shape
    pairs = 2 * positions**2
    if component.kind == "table":
        return pairs * num_in
    # A weight that is a table too has products of its two uses, both ways, besides.
    return pairs * (num_out + num_in) + (3 * pairs * num_in if component.kind == "mixed" else 0)
