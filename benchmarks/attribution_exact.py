"""The damped inverse of the whole Hessian of a softmax regression, with nothing left out.

Letters: ``n`` examples, ``i`` inputs with a trailing one, ``o`` classes.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from projections import Scores, Task


@dataclass(frozen=True)
class ExactInfluence:
    """The damped inverse of a Hessian, on gradients as they are."""

    hessian: Tensor
    damping: float

    @cached_property
    def factor(self) -> Tensor:
        damped = self.hessian + self.damping * torch.eye(len(self.hessian), dtype=torch.float64)
        return torch.linalg.cholesky(damped)

    def scores(self, task: Task, queries: Any, data: Any, *, settings: Any = None) -> Scores:
        rows, asked = (softmax_gradients(task, part) for part in (data, queries))
        values = (rows @ torch.cholesky_solve(asked.mT, self.factor)).mT.numpy()
        return Scores(np.arange(len(data)), {"influence": values}, np.arange(len(queries)))

    def self_influence(self, task: Task, data: Any, *, settings: Any = None) -> Scores:
        rows = softmax_gradients(task, data)
        solved = torch.linalg.solve_triangular(self.factor, rows.mT, upper=False)
        return Scores(np.arange(len(data)), {"self_influence": solved.square().sum(0).numpy()})


def softmax_inputs(task: Task, rows: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Return inputs with a trailing one, probabilities and labels of a softmax regression."""
    inputs = torch.stack([row[0] for row in rows])
    labels = torch.tensor([row[1] for row in rows])
    with torch.no_grad():
        probabilities = task.model(inputs).double().softmax(-1)
    wide = torch.cat([inputs, torch.ones(len(inputs), 1)], 1).double()
    return wide, probabilities, labels


def softmax_gradients(task: Task, rows: Any) -> Tensor:
    """Return the gradient of each loss, ``n (o i)``."""
    inputs, probabilities, labels = softmax_inputs(task, rows)
    errors = probabilities - torch.nn.functional.one_hot(labels, probabilities.shape[1])
    return (errors[:, :, None] * inputs[:, None, :]).flatten(1)


def softmax_hessian(inputs: Tensor, probabilities: Tensor) -> Tensor:
    """Return the Hessian of the mean loss of a softmax regression, ``(o i) (o i)``."""
    num, outs = probabilities.shape
    size = inputs.shape[1]
    whole = inputs.new_zeros(outs, size, outs, size)
    for one in range(outs):
        for other in range(one + 1):
            weights = probabilities[:, one] * (float(one == other) - probabilities[:, other])
            block = (inputs * weights[:, None]).mT @ inputs / num
            whole[one, :, other], whole[other, :, one] = block, block.mT
    return whole.reshape(outs * size, outs * size)
