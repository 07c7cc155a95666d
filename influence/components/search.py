"""Greedy and beam search for the components that carry influence.

Letters: ``c`` components, ``k`` chosen, ``r`` others, ``p`` pairs, ``q`` queries,
``n`` candidates.

Each round judges every extension of a set at once, from sums over components. Values are
compared to twelve decimals, and ties go to the component, or the set, whose name comes first.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float, Int

from influence.components.costs import Budget, component_costs
from influence.components.objectives import FittedObjective, Objective
from influence.components.products import ComponentProducts, cosines_of
from projections import check_at_least

DECIMALS = 12  # beyond are roundings
LEAST_LEFT = 1e-3  # share of a squared norm, with which 13 digits of 16 are left
CHUNK = 1 << 22  # cosines in memory at a time


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
    sums, fitted = _Sums(products), objective.fit(products)
    costs, most = _costs(products, budget)
    beam: list[tuple[int, ...]] = [()]
    path: list[tuple[tuple[int, ...], float]] = []
    while True:
        found: dict[tuple[int, ...], float] = {}
        for chosen in beam:
            rest = np.setdiff1d(np.arange(len(costs)), chosen)
            rest = rest[costs[list(chosen)].sum() + costs[rest] <= most]
            values = np.round(sums.adding(fitted, list(chosen), rest), DECIMALS)
            keys = (tuple(sorted((*chosen, other))) for other in rest.tolist())
            found.update(zip(keys, values.tolist(), strict=True))
        if not found:
            return _path(path, products, costs, most)
        beam = sorted(found, key=lambda key: (-found[key], key))[:width]
        path.append((beam[0], found[beam[0]]))


def search_backward(
    products: ComponentProducts, objective: Objective, *, budget: Budget | None = None
) -> ComponentPath:
    """Start with all components and leave out the one that is missed least, down to one.

    Args:
        products: Pairs to choose on.
        objective: What is to be large.
        budget: What the best set of the path may cost; the path begins above it.
    """
    sums, fitted = _Sums(products), objective.fit(products)
    costs, most = _costs(products, budget)
    chosen = list(range(len(costs)))
    path = [(tuple(chosen), float(fitted.values(products.cosines()[None])[0]))]
    while len(chosen) > 1:
        values = np.round(fitted.values(sums.removing(chosen)), DECIMALS)
        place = int(np.argmax(values))
        del chosen[place]
        path.append((tuple(chosen), float(values[place])))
    return _path(path, products, costs, most)


@dataclass(frozen=True)
class _Sums:
    """Products and norms with the components in front, to be summed over sets of them."""

    products: ComponentProducts

    @cached_property
    def parts(self) -> list[Float[np.ndarray, "c _"]]:
        """Products, norms of queries and norms of candidates."""
        p = self.products
        arrays = (p.products, p.query_norms, p.candidate_norms)
        return [np.ascontiguousarray(array.T) for array in arrays]

    def adding(
        self, fitted: FittedObjective, chosen: list[int], others: Int[np.ndarray, " r"]
    ) -> Float[np.ndarray, " r"]:
        """Return the value of a set with each one of some other components."""
        base = [part[chosen].sum(0) for part in self.parts]
        size = max(1, CHUNK // len(self.products.pairs))
        values = [np.empty(0)]
        for first in range(0, len(others), size):
            some = others[first : first + size]
            sums = [own + part[some] for own, part in zip(base, self.parts, strict=True)]
            values.append(fitted.values(cosines_of(self.products.pairs, *sums)))
        return np.concatenate(values)

    def removing(self, chosen: list[int]) -> Float[np.ndarray, "k p"]:
        """Return the cosines of a set without each one of its components.

        A difference loses digits where little is left, which is then summed again.
        """
        own = [part[chosen] for part in self.parts]
        totals = [part.sum(0) for part in own]
        sums = [total - part for part, total in zip(own, totals, strict=True)]
        lost = np.zeros(len(chosen), dtype=bool)
        for left, total in zip(sums[1:], totals[1:], strict=True):
            lost |= (left < LEAST_LEFT * total).any(axis=1)
        for place in np.flatnonzero(lost).tolist():
            for left, part in zip(sums, own, strict=True):
                left[place] = part[:place].sum(0) + part[place + 1 :].sum(0)
        return cosines_of(self.products.pairs, *sums)


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
