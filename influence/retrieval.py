"""Retrieval: the training examples behind a query, most helpful and most harmful.

Letters: ``q`` queries, ``k`` neighbours.
"""

from typing import Any

import numpy as np
from jaxtyping import Float

from influence.base import Metric
from projections import (
    GradientStore,
    PassSettings,
    Projector,
    Reranked,
    RowIndex,
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
        queries: A dataset of queries, or the path of a file of them.
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
    rows = query_rows(task, queries, projector, settings=settings, store=store)
    return retrieve_rows(rows, store, metric, k=k)


def retrieve_rows(
    rows: Float[np.ndarray, "q k"],
    store: GradientStore,
    metric: Metric,
    *,
    k: int = 10,
    index: RowIndex | None = None,
    rerank: int = 0,
) -> tuple[TopK, TopK]:
    """Return the stored examples with the largest and the smallest score for each query row.

    Several metrics, and several searches, so share the gradients of their queries.

    Args:
        rows: Queries as `query_rows` or `project_gradients` gives them.
        store: Rows of training gradients.
        metric: How rows are compared.
        k: Number of examples at each end.
        index: An index of the store's rows, such as `faiss_beside`; exact search unless given.
        rerank: Candidates at each end that are scored again by the stored rows; 0 for none.

    Returns:
        The most helpful, best first, and the most harmful, worst first.

    Raises:
        ValueError: ``k`` is larger than the number of rows or of candidates, or the metric
            scales rows, which an index does not, and nothing is scored again.
    """
    check_between("k", k, 1, len(store), "the number of rows")
    fitted = metric.fit(store)
    wanted, scales = fitted.map_queries(rows), fitted.row_scales()
    if index is None:
        return SearchIndex(store, scales=scales).search_both(wanted, k)
    if rerank:
        return Reranked(index, store, rerank, scales).search_both(wanted, k)
    if scales is not None:
        raise ValueError(
            f"`rerank` must be at least k={k} for {type(metric).__name__}, which scales rows: the "
            "index compares them unscaled. Got 0."
        )
    return index.search_both(wanted, k)
