"""How long searches among components take, on products of random gradients."""

import time

import numpy as np
from measuring import table

from influence import (
    Accuracy,
    Agreement,
    ComponentProducts,
    search_backward,
    search_beam,
    search_forward,
)
from projections import Component, Parameter

CANDIDATES = 5


def random_products(num_components: int, num_queries: int) -> ComponentProducts:
    """Return products of gradients of three random numbers a component."""
    draw = np.random.default_rng(0)
    names = [f"layers.{place:03}" for place in range(num_components)]
    components = tuple(Component(n, (Parameter(n, (3,)),), "vector") for n in names)
    own = draw.normal(size=(num_queries, num_components, 3))
    other = draw.normal(size=(num_queries * CANDIDATES, num_components, 3))
    other[::CANDIDATES] += 0.2 * own
    queries = np.repeat(np.arange(num_queries), CANDIDATES)
    pairs = np.stack([queries, np.arange(len(other))], axis=1)
    products = np.einsum("pcd,pcd->pc", own[queries], other)
    norms = (own**2).sum(2), (other**2).sum(2)
    ids = np.arange(num_queries), np.arange(len(other))
    return ComponentProducts(components, pairs, products, *norms, *ids)


def search_table(num_components: int, num_queries: int) -> str:
    """Return the seconds of every search, run to the end, as a section."""
    products = random_products(num_components, num_queries)
    sources = Accuracy({query: CANDIDATES * query for query in range(num_queries)})
    searches = {
        "forward": search_forward,
        "backward": search_backward,
        "beam of 4": lambda *which: search_beam(*which, width=4),
    }
    rows = []
    for name, search in searches.items():
        times = []
        for objective in (Agreement(), sources):
            began = time.perf_counter(), time.process_time()
            search(products, objective)
            ended = time.perf_counter(), time.process_time()
            times.append(f"{ended[0] - began[0]:.2f} ({ended[1] - began[1]:.2f})")
        rows.append([name, *times])
    head = ["search, to the end", "by agreement, s (of the processor)", "by accuracy"]
    title = f"## Searching {num_components} components on {len(products.pairs):,} pairs"
    return f"{title}\n\n{table(head, rows)}"
