"""Components of a model, and its attention heads, chosen on one split in several ways."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from influence import (
    Accuracy,
    Agreement,
    Budget,
    ChosenComponents,
    ComponentProducts,
    Objective,
    choose_components,
    search_beam,
)

SHARE = 1 / 3  # of the queries, to choose on
BUDGET = 0.05  # of the parameters
WIDTH = 4  # of a beam


@dataclass(frozen=True)
class Choice:
    """Components that were chosen in one way.

    Args:
        name: The way.
        chosen: What was chosen.
        products: What they were chosen among.
        seconds: Processor seconds of the search.
    """

    name: str
    chosen: ChosenComponents
    products: ComponentProducts
    seconds: float


def choose_in_ways(products: ComponentProducts, groups: Sequence[int]) -> list[Choice]:
    """Return components that were chosen in several ways, on the first split.

    Args:
        products: What the components say of all pairs.
        groups: The author or the task of each query.
    """
    accuracy, budget = _accuracy(products), _budget(products)
    share = f"{BUDGET:.0%}".replace("%", " %") + " of the parameters"
    beam = partial(search_beam, width=WIDTH)
    ways: dict[str, tuple[Objective, dict[str, Any]]] = {
        "best single component": (accuracy, {"search": _single}),
        "greedy, by accuracy": (accuracy, {}),
        f"greedy, by accuracy, {share}": (accuracy, {"budget": budget}),
        f"greedy, by agreement, {share}": (Agreement(), {"budget": budget}),
        f"beam of {WIDTH}, by accuracy, {share}": (accuracy, {"budget": budget, "search": beam}),
    }
    return [_choose(name, products, groups, *way) for name, way in ways.items()]


def choose_heads(products: ComponentProducts, groups: Sequence[int]) -> list[Choice]:
    """Return attention heads, and sets with heads apart, that were chosen on the first split.

    Args:
        products: What components say of all pairs, those of attention by head.
        groups: The author or the task of each query.
    """
    accuracy, budget = _accuracy(products), _budget(products)
    share = f"{BUDGET:.0%}".replace("%", " %") + " of the parameters"
    heads = only(products, is_head)
    return [
        _choose("best single head", heads, groups, accuracy, {"search": _single}),
        _choose(
            f"greedy, by accuracy, heads apart, {share}",
            products,
            groups,
            accuracy,
            {"budget": budget},
        ),
        _choose(
            f"greedy, by agreement, heads apart, {share}",
            products,
            groups,
            Agreement(),
            {"budget": budget},
        ),
    ]


def only(products: ComponentProducts, wanted: Callable[[str], bool]) -> ComponentProducts:
    """Return what some components say."""
    kept = [place for place, name in enumerate(products.names) if wanted(name)]
    return replace(
        products,
        components=tuple(products.components[place] for place in kept),
        products=products.products[:, kept],
        query_norms=products.query_norms[:, kept],
        candidate_norms=products.candidate_norms[:, kept],
    )


def is_head(name: str) -> bool:
    """Tell whether a component is one attention head."""
    return name.endswith("]")


def _choose(
    name: str,
    products: ComponentProducts,
    groups: Sequence[int],
    objective: Objective,
    options: dict[str, Any],
) -> Choice:
    """Choose in one way."""
    began = time.process_time()
    chosen = choose_components(products, objective, seed=0, share=SHARE, groups=groups, **options)
    return Choice(name, chosen, products, time.process_time() - began)


def _single(products: ComponentProducts, objective: Objective, **options: Any) -> Any:
    """Search no further than for one component."""
    path = search_beam(products, objective, width=1, **options)
    return type(path)(path.sets[:1], path.values[:1], path.costs[:1], path.most)


def _accuracy(products: ComponentProducts) -> Accuracy:
    """Return the objective; sources have the ids of their queries."""
    ids = products.query_ids.tolist()
    return Accuracy(dict(zip(ids, ids, strict=True)))


def _budget(products: ComponentProducts) -> Budget:
    """Return the budget of small sets, in which one component fits."""
    sizes = [component.size for component in products.components]
    return Budget(most=max(BUDGET * sum(sizes), min(sizes)))
