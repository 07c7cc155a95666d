"""Regression with a squared error.

Letters: ``n`` examples.
"""

from math import sqrt
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from projections.errors import DataError
from projections.labels import Labels, uniforms
from projections.task import Task


class Regression(Task):
    """Half the squared error of each example, summed over the outputs.

    This is the negative log-likelihood of a Gaussian of unit variance.

    Args:
        model: Maps inputs to predictions with the shape of the targets.

    Example:
        >>> import torch
        >>> task = Regression(torch.nn.Identity())
        >>> task.losses((torch.tensor([[3.0], [1.0]]), torch.tensor([[1.0], [1.0]])))
        tensor([2., 0.])
    """

    def fisher_losses(
        self, batch: Any, labels: Labels, ids: np.ndarray
    ) -> list[Float[Tensor, " n"]]:
        """Return losses under Gaussian targets of unit variance, or each output by itself.

        The expectation of ``g g^T`` over targets is ``J^T J``, so the exact Fisher needs
        one backward pass an output.
        """
        if labels.kind == "data":
            return [self.losses(batch)]
        predictions = self.model(batch[0]).flatten(1)
        if labels.kind == "exact":
            return list(predictions.unbind(1))
        draws = uniforms(labels, ids, predictions.shape[1], predictions.device)
        noise = [torch.special.ndtri(draw).to(predictions.dtype) for draw in draws]
        return [(predictions * e).sum(1) / sqrt(len(noise)) for e in noise]

    def losses(self, batch: Any) -> Float[Tensor, " n"]:
        """Return half the squared error of each example."""
        inputs, targets = batch
        predictions = self.model(inputs)
        if predictions.shape != targets.shape:
            raise DataError(
                "predictions and targets must have the same shape, or they would broadcast. Got "
                f"{tuple(predictions.shape)} and {tuple(targets.shape)}. Reshape the targets."
            )
        return (predictions - targets).square().flatten(1).sum(1) / 2
