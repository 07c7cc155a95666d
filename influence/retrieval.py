"""Retrieval: the training examples behind a query, most helpful and most harmful.

Letters: ``q`` queries, ``k`` neighbours.
"""

from typing import Any

from influence.base import Metric
from projections import (
    GradientStore,
    PassSettings,
    Projector,
    SearchIndex,
    Task,
    TopK,
    check_between,
    query_rows,
)


def retrieve(
    task: Task,
    queries: Any,
    store: GradientStore,
    projector: Projector,
    metric: Metric,
    *,
    k: int = 10,
    settings: PassSettings | None = None,
) -> tuple[TopK, TopK]:
    """Return the stored examples with the largest and the smallest score for each query.

    Args:
        task: The model that the store was built with; its `measurements` are the queries.
        queries: A dataset of queries.
        store: Rows of training gradients.
        projector: The map of the store.
        metric: How rows are compared.
        k: Number of examples at each end.
        settings: How to read the queries; with the layers of the store.

    Returns:
        The most helpful, best first, and the most harmful, worst first.

    Raises:
        StoreMismatchError: The store was built with another model or map.
        ValueError: ``k`` is larger than the number of rows.
    """
    check_between("k", k, 1, len(store), "the number of rows")
    fitted = metric.fit(store)
    rows = query_rows(task, queries, projector, settings=settings, store=store)
    index = SearchIndex(store, scales=fitted.row_scales())
    return index.search_both(fitted.map_queries(rows), k)
