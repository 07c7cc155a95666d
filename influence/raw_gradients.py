"""Whole gradients of a few examples, and inner products of many with them.

Letters: ``q`` vectors, ``n`` examples, ``d`` parameters.

The gradients of the many are never kept: they meet the vectors a batch at a time.
"""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from influence.parameter_space import Directions, ParameterSpace
from projections import PassSettings, QueryTask, Rows, Sketch, Task, check_at_least, run_pass

VECTOR_BYTES = 1 << 30  # gradients held at a time unless said otherwise


def gradient_blocks(
    task: Task,
    rows: Rows,
    space: ParameterSpace,
    *,
    settings: PassSettings,
    memory: int = VECTOR_BYTES,
) -> Iterator[Float[Tensor, "q d"]]:
    """Yield the gradients of as many rows at a time as fit the memory.

    Args:
        task: The model and its loss; a `QueryTask` for queries.
        rows: Whose gradients.
        space: The layout of vectors.
        settings: Layers, as those of the space, and batching.
        memory: Bytes of gradients held at a time.
    """
    check_at_least("memory", memory, 1)
    height = max(1, memory // (space.num_dims * space.dtype.itemsize))
    for start in range(0, len(rows), height):
        some = range(start, min(start + height, len(rows)))
        table = run_pass(
            task,
            rows.fetch(some),
            [Sketch(space.coordinates)],
            settings=settings,
            description="gradients",
        )
        yield torch.from_numpy(table.columns["sketch"]).to(space.device, space.dtype)


def gradient_products(
    task: Task,
    rows: Rows,
    space: ParameterSpace,
    vectors: Float[Tensor, "q d"],
    *,
    settings: PassSettings,
) -> Float[np.ndarray, "q n"]:
    """Return the inner products of the gradients of all rows with each vector.

    Args:
        task: The model and its loss.
        rows: Whose gradients.
        space: The layout of vectors.
        vectors: The vectors.
        settings: Layers, as those of the space, and batching.
    """
    column = Sketch(Directions(space, vectors), name="influence")
    table = run_pass(task, rows, [column], settings=settings, description="influence")
    return table.columns["influence"].T


def preconditioned_products(
    task: Task,
    queries: Rows,
    rows: Rows,
    space: ParameterSpace,
    precondition: Callable[[Tensor], Tensor],
    *,
    settings: PassSettings,
    memory: int = VECTOR_BYTES,
) -> Float[np.ndarray, "q n"]:
    """Return the inner products of all rows with the preconditioned gradients of queries.

    Args:
        task: The model and its loss; its `measurements` are the queries.
        queries: The queries.
        rows: Whose gradients they meet.
        space: The layout of vectors.
        precondition: From gradients ``q d`` to vectors of the same shape.
        settings: Layers, as those of the space, and batching.
        memory: Bytes of query gradients held at a time.
    """
    blocks = gradient_blocks(QueryTask(task), queries, space, settings=settings, memory=memory)
    parts = [
        gradient_products(task, rows, space, precondition(vectors), settings=settings)
        for vectors in blocks
    ]
    return np.concatenate(parts)
