"""A task: a model, and what the loss of one example means.

Letters: ``n`` examples in a batch.

The loss of an example is a **sum** over its tokens and never a mean over its batch, so
that the gradient of the sum of all losses holds each example's own gradient, unmixed.
"""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.data import default_collate

from projections.labels import Labels


class Task:
    """Base of all tasks: subclass it and write `losses`.

    The methods above `losses` turn rows of a dataset into batches and fit any dataset that
    torch's own collation fits; the ones below have defaults too.

    Args:
        model: The model in evaluation mode. Parameters that do not require gradients are
            left out of every gradient.

    Example:
        >>> class Quadratic(Task):
        ...     def losses(self, batch):
        ...         return self.model(batch).square().sum(-1)
        >>> Quadratic(nn.Linear(2, 1)).losses(torch.zeros(3, 2)).shape
        torch.Size([3])
    """

    def __init__(self, model: nn.Module) -> None:
        """Keep the model; nothing about it is changed."""
        self.model = model
        # What a pass has compared with single examples, and the layout that came of it.
        self.checked: dict[Hashable, Any] = {}

    def encode(self, rows: Sequence[Any]) -> list[Any]:
        """Turn rows into examples, for instance text into tokens."""
        return list(rows)

    def size(self, example: Any) -> int:
        """Return the length of an example, by which batches are packed."""
        return 1

    def collate(self, examples: Sequence[Any]) -> Any:
        """Stack examples into a batch: a tensor, or a tuple or mapping of tensors.

        Lists of numbers, as rows of a `datasets.Dataset` have them, become tensors first.
        """
        return default_collate([_with_tensors(example) for example in examples])

    def num_examples(self, batch: Any) -> int:
        """Return the number ``n`` of examples in a batch."""
        return len(_first_tensor(batch))

    def token_mask(self, batch: Any) -> Tensor | None:
        """Return which positions are real and which are padding, as ``n t`` of 0 and 1."""
        return None

    def losses(self, batch: Any) -> Float[Tensor, " n"]:
        """Return the loss of each example, summed over its tokens."""
        raise TypeError(f"{type(self).__name__} must define `losses(batch)`. It does not.")

    def statistics(self, batch: Any) -> dict[str, Float[Tensor, " n"]]:
        """Return numbers per example from one forward, ``"loss"`` (with its graph) among them."""
        return {"loss": self.losses(batch)}

    def fisher_losses(
        self, batch: Any, labels: Labels, ids: np.ndarray
    ) -> list[Float[Tensor, " n"]]:
        """Return losses under other labels than the data's, from one forward.

        The outer products of their gradients sum to the Fisher matrix of each example.

        Args:
            batch: The batch, whose labels only say which positions count.
            labels: Where labels come from.
            ids: Ids of the rows, which with the seed decide what is drawn.
        """
        if labels.kind == "data":
            return [self.losses(batch)]
        raise TypeError(
            f"{type(self).__name__} must define `fisher_losses` to draw labels from the model. Use "
            "fisher='empirical', which takes the labels of the data, or define it."
        )

    @property
    def num_labels(self) -> int | None:
        """Number of possible labels of an example, where that is small and known."""
        return None

    def measurements(self, batch: Any) -> Float[Tensor, " n"]:
        """Return what a query asks about; the loss unless a subclass says otherwise."""
        return self.losses(batch)

    @property
    def device(self) -> torch.device:
        """The device of the model."""
        tensor = next(self.model.parameters(), None)
        return torch.device("cpu") if tensor is None else tensor.device


class QueryTask(Task):
    """The same task with its measurement in place of its loss.

    Args:
        task: The task whose `measurements` become the losses.
    """

    def __init__(self, task: Task) -> None:
        """Borrow the model and the batching of ``task``."""
        super().__init__(task.model)
        self.checked = task.checked
        self.encode = task.encode
        self.size = task.size
        self.collate = task.collate
        self.num_examples = task.num_examples
        self.token_mask = task.token_mask
        self.losses = task.measurements


def _with_tensors(example: Any) -> Any:
    """Return an example with its lists of numbers as tensors; fractions in torch's default."""
    if isinstance(example, Mapping):
        return {key: _with_tensors(value) for key, value in example.items()}
    if isinstance(example, tuple):
        return tuple(_with_tensors(value) for value in example)
    if isinstance(example, list):
        return torch.tensor(example)
    if isinstance(example, float):
        return torch.tensor(example)
    return example


def to_device(batch: Any, device: torch.device) -> Any:
    """Return the batch with every tensor on ``device``."""
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, Mapping):
        return {key: to_device(value, device) for key, value in batch.items()}
    if isinstance(batch, tuple | list):
        return type(batch)(to_device(value, device) for value in batch)
    return batch


def _first_tensor(batch: Any) -> Tensor:
    """Return the first tensor of a batch."""
    if isinstance(batch, Tensor):
        return batch
    values = batch.values() if isinstance(batch, Mapping) else batch
    for value in values:
        if isinstance(value, Tensor):
            return value
    raise TypeError(
        "a batch must be a tensor, or a tuple or mapping with at least one tensor. Got "
        f"{type(batch).__name__}. Override `num_examples` for other kinds."
    )
