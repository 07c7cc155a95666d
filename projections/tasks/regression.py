"""Regression with a squared error.

Letters: ``n`` examples.
"""

from typing import Any

from jaxtyping import Float
from torch import Tensor

from projections.errors import DataError
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
