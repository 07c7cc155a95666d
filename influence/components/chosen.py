"""The components that were chosen on one split of the queries, and what they are worth on another.

Letters: ``q`` queries.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256

import numpy as np
from jaxtyping import Int

from influence.components.costs import Budget
from influence.components.objectives import Objective
from influence.components.products import ComponentProducts
from influence.components.search import ComponentPath, search_forward
from projections import (
    PassSettings,
    Projector,
    Selected,
    Task,
    check_between,
    find_components,
)

Search = Callable[..., ComponentPath]


@dataclass(frozen=True)
class ChosenComponents:
    """Components chosen on one split, and judged on another.

    Args:
        names: Their names, in order.
        value: The objective on the queries that they were chosen on.
        reported: The objective on the other queries.
        reported_full: The same of all components together.
        cost: What they cost, in the unit of the budget; parameters without one.
        path: The search.
    """

    names: tuple[str, ...]
    value: float
    reported: float
    reported_full: float
    cost: float
    path: ComponentPath

    def projector(self, inner: Projector) -> Selected:
        """Return a projector of these components only.

        Args:
            inner: What projects them: a sketch, or `coordinates` to keep them as they are.
        """
        return Selected(projector=inner, patterns=self.names)

    def settings(self, task: Task, settings: PassSettings | None = None) -> PassSettings:
        """Return settings of passes that look at these components only, such as a fit of EK-FAC.

        Args:
            task: The model.
            settings: Batching, and the heads that components were chosen with.

        Raises:
            ValueError: Patterns cannot tell these components from others of the model.
        """
        chosen = replace(settings or PassSettings(), layers=self.names)
        layout = find_components(task.model, self.names, kinds=chosen.kinds, heads=chosen.heads)
        found, wanted = set(layout.components), set(self.names)
        if found != wanted:
            raise ValueError(
                f"the names of the chosen components must pick them out of the model. They give "
                f"also {sorted(found - wanted)[:5]} and not {sorted(wanted - found)[:5]}. Give the "
                "`heads` that they were chosen with, or use `projector`."
            )
        return chosen


def choose_components(
    products: ComponentProducts,
    objective: Objective,
    *,
    seed: int,
    share: float = 0.5,
    groups: Sequence[Hashable] | None = None,
    budget: Budget | None = None,
    search: Search = search_forward,
) -> ChosenComponents:
    """Choose components on some of the queries, and report them on the others.

    Args:
        products: All pairs.
        objective: What is to be large.
        seed: Seed of the split.
        share: Share of the queries to choose on.
        groups: One label a query; queries with one label stay on one side.
        budget: What the components may cost.
        search: `search_forward`, `search_backward`, or `search_beam` with a width.
    """
    ours, others = split_queries(products.query_ids, seed=seed, share=share, groups=groups)
    chosen_on, reported_on = products.of_queries(ours), products.of_queries(others)
    path = search(chosen_on, objective, budget=budget)
    best = path.best
    fitted = objective.fit(reported_on)
    both = np.stack([reported_on.cosines(path.sets[best]), reported_on.cosines()])
    reported, full = fitted.values(both).tolist()
    return ChosenComponents(
        path.sets[best], float(path.values[best]), reported, full, float(path.costs[best]), path
    )


def split_queries(
    ids: np.ndarray,
    *,
    seed: int,
    share: float = 0.5,
    groups: Sequence[Hashable] | None = None,
) -> tuple[Int[np.ndarray, " a"], Int[np.ndarray, " b"]]:
    """Return positions of queries to choose on, and of the others to report on.

    On which side a query is hangs on the seed and its id, or its group, not on its place.

    Args:
        ids: Ids of the queries.
        seed: Seed of the split.
        share: Share of the queries on the first side.
        groups: One label a query; queries with one label stay on one side.

    Raises:
        ValueError: A side would be empty.

    Example:
        >>> sides = split_queries(np.arange(6), seed=0, groups=[0, 0, 1, 1, 2, 2])
        >>> [side.tolist() for side in sides]
        [[0, 1, 2, 3], [4, 5]]
    """
    check_between("share", share, 0, 1)
    labels = ids.tolist() if groups is None else list(groups)
    if len(labels) != len(ids):
        raise ValueError(f"`groups` must have {len(ids)} labels, one a query. Got {len(labels)}.")
    drawn = {label: sha256(f"{seed}/split/{label}".encode()).digest() for label in set(labels)}
    order = sorted(drawn, key=lambda label: drawn[label])
    count = round(share * len(order))
    first = set(order[:count])
    inside = np.array([label in first for label in labels], dtype=bool)
    if inside.all() or not inside.any():
        raise ValueError(
            f"`share` must leave queries on both sides. Got {share} of {len(order)} labels."
        )
    return np.flatnonzero(inside), np.flatnonzero(~inside)
