"""Losses of examples and of tokens from the output of a model, for trainers.

Letters: ``n`` examples, ``t`` tokens, ``v`` words or classes.

Entries without a label (-100) do not count; an example without any has the loss 0 and is
marked. All in float32 at least, with the gradient.
"""

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

IGNORED = -100
Losses = tuple[Float[Tensor, "..."], Bool[Tensor, "..."]]
"""Losses, and which of them count."""


def causal_losses(logits: Float[Tensor, "n t v"], labels: Int[Tensor, "n t"]) -> Losses:
    """Return the mean loss over the tokens of each text, ``n``, and which texts have any.

    The logits at a token are compared with the label of the next.

    Example:
        >>> logits = torch.zeros(2, 3, 4)
        >>> labels = torch.tensor([[0, 1, 2], [0, -100, -100]])
        >>> losses, counted = causal_losses(logits, labels)
        >>> losses.exp(), counted
        (tensor([4., 1.]), tensor([ True, False]))
    """
    losses, counted = causal_token_losses(logits, labels)
    lengths = counted.sum(1)
    return losses.sum(1) / lengths.clamp(min=1), lengths > 0


def causal_token_losses(logits: Float[Tensor, "n t v"], labels: Int[Tensor, "n t"]) -> Losses:
    """Return the loss of each token but the first, ``n t-1``, and which of them count."""
    targets = labels[:, 1:]
    return token_losses(logits[:, :-1], targets)


def token_losses(logits: Float[Tensor, "n t v"], labels: Int[Tensor, "n t"]) -> Losses:
    """Return the loss of each position against its own label, and which of them count."""
    losses = functional.cross_entropy(
        at_least_float32(logits).flatten(0, 1),
        labels.flatten(),
        ignore_index=IGNORED,
        reduction="none",
    )
    return losses.view(labels.shape), labels != IGNORED


def classification_losses(logits: Float[Tensor, "n v"], labels: Int[Tensor, " n"]) -> Losses:
    """Return the cross-entropy of each example, and which of them have a label.

    Example:
        >>> losses, _ = classification_losses(torch.zeros(1, 2), torch.tensor([1]))
        >>> losses.exp()
        tensor([2.])
    """
    losses = functional.cross_entropy(
        at_least_float32(logits), labels, ignore_index=IGNORED, reduction="none"
    )
    return losses, labels != IGNORED


def regression_losses(predictions: Float[Tensor, "n *k"], labels: Float[Tensor, "n *k"]) -> Losses:
    """Return the squared error of each example, mean over its outputs."""
    errors = (at_least_float32(predictions) - labels).square().flatten(1).mean(1)
    return errors, torch.ones_like(errors, dtype=torch.bool)


def logits_of(outputs: Any) -> Tensor:
    """Return the logits of a model's output: its attribute, its entry, or itself."""
    if isinstance(outputs, Tensor):
        return outputs
    found = outputs["logits"] if isinstance(outputs, dict) else getattr(outputs, "logits", None)
    if found is None:
        raise TypeError(
            "the model must return logits, or an output with `logits`. "
            f"Got {type(outputs).__name__}."
        )
    return found


def at_least_float32(values: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Return half precision as float32, and anything else as it is."""
    return values.float() if values.dtype.itemsize < torch.float32.itemsize else values
