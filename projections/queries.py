"""From queries to rows like those of a store: from examples, a file, or given gradients.

Letters: ``q`` queries, ``k`` dimensions of a row.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor, nn

from projections.base import Projector
from projections.columns import Sketch
from projections.components import Parameter
from projections.factors import Formed
from projections.indexing import describe_rows
from projections.layout import find_components
from projections.normal_form import exchange_if_transposed
from projections.pass_settings import PassSettings
from projections.passes import run_pass
from projections.per_example import Gradient
from projections.records import read_dataset
from projections.store import GradientStore
from projections.task import QueryTask, Task


def query_rows(
    task: Task,
    queries: Any,
    projector: Projector,
    *,
    settings: PassSettings | None = None,
    store: GradientStore | None = None,
) -> Float[np.ndarray, "q k"]:
    """Return the projected gradients of the measurements of queries.

    Args:
        task: The model, and what its `measurements` are.
        queries: A dataset of queries, or the path of a file of them.
        projector: The map of the store.
        settings: How to read them; with the layers of the store.
        store: The store to be searched, which is checked to fit.

    Raises:
        StoreMismatchError: The store was built with another model or map.
    """
    settings = settings or PassSettings()
    if store is not None:
        store.require(**describe_rows(task, projector, settings))
    if isinstance(queries, str | Path):
        queries = read_dataset(queries)
    table = run_pass(
        QueryTask(task), queries, [Sketch(projector)], settings=settings, description="queries"
    )
    return table.columns["sketch"]


def project_gradients(
    gradients: Mapping[str, Tensor],
    task: Task,
    projector: Projector,
    *,
    settings: PassSettings | None = None,
) -> Float[np.ndarray, "q k"]:
    """Return query rows from gradients that were computed elsewhere.

    Args:
        gradients: The gradient of each parameter by its name, ``q`` by the parameter's shape.
        task: The model of the store.
        projector: The map of the store.
        settings: With the layers of the store.

    Raises:
        ValueError: A parameter is missing or unknown, a gradient has another shape, or the
            store has attention heads as components.
    """
    settings = settings or PassSettings()
    if settings.heads:
        raise ValueError(
            "`settings` must not take layers apart by head: gradients that come from elsewhere are "
            "whole. Use `query_rows`, which computes them."
        )
    layout = find_components(task.model, settings.layers, kinds=settings.kinds)
    shapes = {name: tuple(value.shape) for name, value in task.model.named_parameters()}
    wanted = {p.name for component in layout.components.values() for p in component.parameters}
    if wanted != set(gradients):
        missing, unknown = sorted(wanted - set(gradients)), sorted(set(gradients) - wanted)
        raise ValueError(
            f"`gradients` must have one entry for each of the {len(wanted)} parameters. Missing: "
            f"{missing[:5]}; unknown: {unknown[:5]}."
        )
    counts = {len(value) for value in gradients.values()}
    for name, value in gradients.items():
        if tuple(value.shape[1:]) != shapes[name] or len(counts) > 1:
            raise ValueError(
                f"the gradient of {name!r} must have the shape (q, {shapes[name]}), with one q for "
                f"all. Got {tuple(value.shape)}."
            )
    first = next(iter(gradients.values()))
    out = first.new_zeros(counts.pop(), projector.num_dims)
    for component in layout.components.values():
        values = tuple(
            _in_normal_form(task.model, p, gradients[p.name]) for p in component.parameters
        )
        projector.project(Gradient(component, (Formed(component, values),)), out)
    return out.float().cpu().numpy()


def _in_normal_form(
    model: nn.Module, parameter: Parameter, gradient: Tensor
) -> Float[Tensor, "q ..."]:
    """Return a gradient in the layout of components."""
    gradient = exchange_if_transposed(model, parameter.name, gradient)
    return gradient.reshape(len(gradient), *parameter.shape)
