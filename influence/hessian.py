"""Products with the Hessian of the mean loss, by differentiating twice.

Letters: ``d`` parameters.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from influence.products import Multiply, Products, products, pull_back
from projections import PassSettings, Task


@dataclass(frozen=True, kw_only=True)
class Hessian:
    r"""The second derivative :math:`H = \frac1n \sum_n \nabla^2 \ell_n` of the mean loss.

    Away from a minimum it has negative eigenvalues, and then needs a damping above the
    smallest; `GaussNewton` has none.

    Example:
        >>> from projections import Regression
        >>> task = Regression(torch.nn.Linear(2, 1, bias=False))
        >>> data = [(torch.tensor([1.0, 2.0]), torch.tensor([0.0]))]
        >>> Hessian().of(task, data).apply(torch.eye(2))
        tensor([[1., 2.],
                [2., 4.]])

    References:
        Pearlmutter, Fast exact multiplication by the Hessian (Neural Computation 1994).
    """

    def of(self, task: Task, data: Any, *, settings: PassSettings | None = None) -> Products:
        """Return the Hessian over some data.

        Args:
            task: The model and its loss.
            data: The training data.
            settings: Layers and batching.
        """
        return products(task, data, settings, linearize=linearize)


def linearize(task: Task, batch: Any, ids: np.ndarray, parameters: list[Any]) -> Multiply:
    """Return products with the sum of the Hessians of a batch."""
    loss = task.losses(batch).sum()
    found = torch.autograd.grad(loss, parameters, create_graph=True, allow_unused=True)
    used = [position for position, grad in enumerate(found) if grad is not None]
    grads = [grad for grad in found if grad is not None]

    def multiply(directions: list[Tensor]) -> Any:
        return pull_back(grads, parameters, [directions[position] for position in used])

    return multiply
