"""Products with the Gauss-Newton matrix, by way of the Fisher matrix that it equals.

Letters: ``n`` examples, ``d`` parameters, ``c`` losses of an example under other labels.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from influence.ekfac import FISHERS, FisherName, pick_labels
from influence.products import Linearize, Multiply, Products, products, pull_back
from projections import Labels, PassSettings, Task, check_at_least, check_one_of


@dataclass(frozen=True, kw_only=True)
class GaussNewton:
    r"""The matrix :math:`G = \frac1n \sum_n \sum_c g_{nc} g_{nc}^\top`, never indefinite.

    For cross-entropies and squared errors the Fisher matrix under the model's own labels is
    the Gauss-Newton matrix :math:`J^\top H_{out} J`. All labels of a batch share a forward
    and three backwards, so that many cost little more than one.

    Args:
        fisher: Labels, as in `EKFAC`: ``"exact"``, ``"sampled"``, ``"empirical"`` or ``"auto"``.
        num_label_samples: Number of draws for each example.
        seed: Seed of the drawn labels; the draws depend on it and on the row's id.

    Example:
        >>> from projections import Classification
        >>> model = torch.nn.Linear(2, 3, bias=False)
        >>> _ = torch.nn.init.zeros_(model.weight)
        >>> matrix = GaussNewton(seed=0).of(Classification(model), [(torch.tensor([1.0, 2.0]), 0)])
        >>> products = matrix.apply(torch.eye(6))
        >>> round(float(products.trace()), 4)  # (1 - 1/3) times the squared input
        3.3333

    References:
        Schraudolph, Fast curvature matrix-vector products (Neural Computation 2002). Martens,
        New insights and perspectives on the natural gradient method (JMLR 2020),
        arXiv:1412.1193, Sec. 9.
    """

    fisher: FisherName = "auto"
    num_label_samples: int = 1
    seed: int

    def __post_init__(self) -> None:
        """Check the arguments."""
        check_one_of("fisher", self.fisher, FISHERS)
        check_at_least("num_label_samples", self.num_label_samples, 1)

    def of(self, task: Task, data: Any, *, settings: PassSettings | None = None) -> Products:
        """Return the matrix over some data.

        Args:
            task: The model and its loss.
            data: The training data.
            settings: Layers and batching.
        """
        labels = pick_labels(
            self.fisher,
            task,
            num_samples=self.num_label_samples,
            seed=self.seed,
            purpose="gauss-newton",
        )
        return products(task, data, settings, linearize=linearizer(labels))


def linearizer(labels: Labels) -> Linearize:
    """Return how a batch is multiplied under some labels."""

    def linearize(task: Task, batch: Any, ids: np.ndarray, parameters: list[Any]) -> Multiply:
        losses = torch.stack(task.fisher_losses(batch, labels, ids))
        weights = torch.zeros_like(losses, requires_grad=True)
        found = torch.autograd.grad(
            losses, parameters, weights, create_graph=True, allow_unused=True
        )
        used = [position for position, grad in enumerate(found) if grad is not None]
        pulled = [grad for grad in found if grad is not None]

        def multiply(directions: list[Tensor]) -> Any:
            # J^T w is linear in w, so its derivative along a direction is J times it.
            chosen = [directions[position] for position in used]
            (slopes,) = pull_back(pulled, [weights], chosen)
            # A loss that depends on no parameter has no slopes.
            if slopes is None:
                return [None] * len(parameters)
            return pull_back([losses], parameters, [slopes])

        return multiply

    return linearize
