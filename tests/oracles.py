"""Obviously correct, slow ways to compute what the library computes cleverly.

Letters: ``n`` examples, ``d`` parameters, ``k`` projected dimensions or neighbours.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from projections import (
    Component,
    Gradient,
    Layout,
    OuterProducts,
    Projector,
    TableRows,
    Task,
    Vectors,
    find_components,
)
from projections.tracing import trace


@dataclass(frozen=True)
class DenseMatrix:
    """A symmetric matrix that is written out, behind the seam of those known by their products."""

    values: Tensor

    @property
    def num_dims(self) -> int:
        return len(self.values)

    @property
    def dtype(self) -> torch.dtype:
        return self.values.dtype

    @property
    def device(self) -> torch.device:
        return self.values.device

    def apply(self, vectors: Tensor) -> Tensor:
        return vectors @ self.values


def gradients_one_by_one(task: Task, examples: Sequence[Any]) -> dict[str, Tensor]:
    """Gradients by parameter name in the normal form, by one backward pass an example."""
    parameters = {name: p for name, p in task.model.named_parameters() if p.requires_grad}
    rows: dict[str, list[Tensor]] = {name: [] for name in parameters}
    for example in examples:
        loss = task.losses(task.collate([example])).sum()
        if loss.requires_grad:
            # `torch.autograd.grad` would refuse reentrant checkpointing.
            loss.backward()
        for name, parameter in parameters.items():
            grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            rows[name].append(normal_form(task.model, name, grad.detach().clone()))
            parameter.grad = None
    return {name: torch.stack(values) for name, values in rows.items()}


def traced_layout(
    task: Task, examples: Sequence[Any], layers: Any = None, heads: Any = ()
) -> Layout:
    """The components of a model, as a pass has them after it has looked at some examples."""
    layout = find_components(task.model, layers, heads=heads)
    ends = [choose(examples, key=task.size) for choose in (max, min)]
    return trace(layout, task.model, lambda count: task.losses(task.collate(ends * count)))


def normal_form(model: nn.Module, name: str, tensor: Tensor) -> Tensor:
    """A parameter's gradient with the shape that components promise."""
    owner = model.get_submodule(name.rpartition(".")[0])
    if (isinstance(owner, Conv1D) and tensor.dim() == 2) or "lora_embedding_A" in name:
        return tensor.T
    if isinstance(owner, nn.LayerNorm | nn.RMSNorm):
        return tensor.flatten()
    return tensor.flatten(1) if tensor.dim() > 2 else tensor


def flat_gradients(task: Task, examples: Sequence[Any]) -> np.ndarray:
    """Full gradients, one a row, in the order of ``named_parameters``."""
    gradients = gradients_one_by_one(task, examples)
    return torch.cat([value.flatten(1) for value in gradients.values()], 1).numpy()


def basis(component: Component, dtype: torch.dtype = torch.float64) -> Gradient:
    """The ``d`` unit vectors of a component as the gradients of ``d`` examples."""
    if component.kind == "vector":
        return Gradient(component, (Vectors(component, torch.eye(component.size, dtype=dtype)),))
    num_out, num_in = component.parameters[0].shape
    rows, columns = torch.arange(num_out), torch.arange(num_in)
    out = torch.eye(num_out, dtype=dtype)[rows.repeat_interleave(num_in)]
    into = torch.eye(num_in, dtype=dtype)[columns.repeat(num_out)]
    if component.kind == "table":
        ids = rows.repeat_interleave(num_in)[:, None]
        return Gradient(component, (TableRows(component, ids, into[:, None]),))
    # A second position takes the bias away from unit vectors of the weight.
    inputs = torch.stack([into, torch.zeros_like(into)], 1)
    grads = torch.stack([out, -out], 1)
    if len(component.parameters) == 2:
        unit = torch.eye(num_out, dtype=dtype)
        bias = torch.stack([unit, torch.zeros_like(unit)], 1)
        inputs = torch.cat([inputs, torch.zeros(num_out, 2, num_in, dtype=dtype)])
        grads = torch.cat([grads, bias])
    return Gradient(component, (OuterProducts(component, inputs, grads),))


def projection_matrix(projector: Projector, component: Component) -> Tensor:
    """The matrix ``d k`` of a projector on one component: the projected unit vectors."""
    out = torch.zeros(component.size, projector.num_dims, dtype=torch.float64)
    projector.project(basis(component), out)
    return out


def flatten(gradient: Gradient) -> Tensor:
    """A component's gradients, one a row."""
    return torch.cat([value.flatten(1) for value in gradient.materialize().values()], 1)


def best(scores: np.ndarray, k: int) -> np.ndarray:
    """Positions of the ``k`` largest entries of each row; ties go to the earlier one."""
    return np.array([sorted(range(len(row)), key=lambda p: (-row[p], p))[:k] for row in scores])


def trak_scores(queries: np.ndarray, rows: np.ndarray, damping: float) -> np.ndarray:
    """TRAK by a dense inverse in float64."""
    rows, queries = rows.astype(np.float64), queries.astype(np.float64)
    gram = rows.T @ rows / len(rows)
    mean_eigenvalue = np.linalg.eigvalsh(gram).mean()
    return queries @ np.linalg.inv(gram + damping * mean_eigenvalue * np.eye(len(gram))) @ rows.T
