"""Greedy and beam search for the components that carry influence.

Letters: ``c`` components, ``b`` sets that go on.

Each round judges every extension of a set at once, from sums over components. Values are
compared to twelve decimals, and ties go to the component, or the set, whose name comes first.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from influence.components.costs import Budget, component_costs
from influence.components.objectives import Objective
from influence.components.products import ComponentProducts
from influence.components.sums import SetSums, Sums
from projections import check_at_least

DECIMALS = 12  # beyond are roundings


@dataclass(frozen=True)
class ComponentPath:
    """The sets that a search went through.

    Args:
        sets: Names of the components of each set, in their order.
        values: The objective of each.
        costs: What each costs, in the unit of the budget; parameters without one.
        most: What a set may cost.
    """

    sets: tuple[tuple[str, ...], ...]
    values: Float[np.ndarray, " s"]
    costs: Float[np.ndarray, " s"]
    most: float = np.inf

    @property
    def best(self) -> int:
        """Position of the best set within the budget; ties go to the cheaper, then by name.

        Raises:
            ValueError: No set fits the budget.
        """
        fitting = np.flatnonzero(self.costs <= self.most)
        if not len(fitting):
            raise ValueError(
                f"a set of the path must cost at most {self.most:g}. The cheapest costs "
                f"{self.costs.min():g}. Search forward, or allow more."
            )
        values = np.round(self.values, DECIMALS)
        return min(fitting.tolist(), key=lambda s: (-values[s], self.costs[s], self.sets[s]))


def search_forward(
    products: ComponentProducts, objective: Objective, *, budget: Budget | None = None
) -> ComponentPath:
    """Add the component that helps most, until none fits the budget.

    Args:
        products: Pairs to choose on.
        objective: What is to be large.
        budget: What a set may cost; no limit if left out.
    """
    return search_beam(products, objective, width=1, budget=budget)


def search_beam(
    products: ComponentProducts, objective: Objective, *, width: int, budget: Budget | None = None
) -> ComponentPath:
    """Add components to the ``width`` best sets of each size, until none fits the budget.

    Args:
        products: Pairs to choose on.
        objective: What is to be large.
        width: Number of sets that go on.
        budget: What a set may cost; no limit if left out.

    Returns:
        The best set of each size.
    """
    check_at_least("width", width, 1)
    sums = SetSums(products, objective.fit(products))
    costs, most = _costs(products, budget)
    beam = [_Reached((), 0.0, sums.empty)]
    path: list[tuple[tuple[int, ...], float]] = []
    while True:
        values = np.full((len(beam), len(costs)), -np.inf)
        for row, reached in zip(values, beam, strict=True):
            chosen = list(reached.chosen)
            fits = costs[chosen].sum() + costs <= most
            fits[chosen] = False
            rest = np.flatnonzero(fits)
            row[rest] = np.round(sums.adding(reached.sums, rest), DECIMALS)
        steps = _best_steps([reached.chosen for reached in beam], values, width)
        if not steps:
            return _path(path, products, costs, most)
        beam = [
            _Reached(chosen, float(values[place, other]), sums.with_one(beam[place].sums, other))
            for chosen, (place, other) in steps.items()
        ]
        path.append((beam[0].chosen, beam[0].value))


def search_backward(
    products: ComponentProducts, objective: Objective, *, budget: Budget | None = None
) -> ComponentPath:
    """Start with all components and leave out the one that is missed least, down to one.

    Args:
        products: Pairs to choose on.
        objective: What is to be large.
        budget: What the best set of the path may cost; the path begins above it.
    """
    fitted = objective.fit(products)
    sums = SetSums(products, fitted)
    costs, most = _costs(products, budget)
    chosen = list(range(len(costs)))
    path = [(tuple(chosen), float(fitted.values(products.cosines()[None])[0]))]
    while len(chosen) > 1:
        values = np.round(sums.removing(chosen), DECIMALS)
        place = int(np.argmax(values))
        del chosen[place]
        path.append((tuple(chosen), float(values[place])))
    return _path(path, products, costs, most)


@dataclass(frozen=True)
class _Reached:
    """A set that goes on, with its value and its sums."""

    chosen: tuple[int, ...]
    value: float
    sums: Sums


def _best_steps(
    beam: Sequence[tuple[int, ...]], values: Float[np.ndarray, "b c"], width: int
) -> dict[tuple[int, ...], tuple[int, int]]:
    """Return the best extensions of some sets, each once, ties by name, and how they are reached.

    Args:
        beam: The sets.
        values: The value of each set with each component, minus infinity where it cannot be had.
        width: How many are wanted.
    """
    # A set is reached from each of the others at most once, so that many hold enough sets.
    enough = min(width * len(beam), values.size)
    least = np.partition(values, -enough, axis=None)[-enough]
    found: dict[tuple[int, ...], tuple[int, int]] = {}
    for place, other in np.argwhere((values >= least) & (values > -np.inf)).tolist():
        key = tuple(sorted((*beam[place], other)))
        if key not in found or values[place, other] > values[found[key]]:
            found[key] = (place, other)
    best = sorted(found, key=lambda key: (-values[found[key]], key))[:width]
    return {key: found[key] for key in best}


def _costs(
    products: ComponentProducts, budget: Budget | None
) -> tuple[Float[np.ndarray, " c"], float]:
    """Return what components cost, and the most that a set may."""
    if budget is None:
        return component_costs(products.components, "parameters"), np.inf
    return budget.costs(products.components), budget.most


def _path(
    found: Sequence[tuple[tuple[int, ...], float]],
    products: ComponentProducts,
    costs: Float[np.ndarray, " c"],
    most: float,
) -> ComponentPath:
    """Return the sets by name."""
    sets = tuple(tuple(products.names[place] for place in chosen) for chosen, _ in found)
    values = np.array([value for _, value in found])
    return ComponentPath(
        sets, values, np.array([costs[list(chosen)].sum() for chosen, _ in found]), most
    )
