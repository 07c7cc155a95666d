"""How small models are trained: step size, optimizer, batches, and the loss of each example.

Letters: ``b`` examples of a batch.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call

from projections import check_at_least, check_one_of

Batch = tuple[Tensor, ...]
Losses = Callable[[nn.Module, Mapping[str, Tensor], Batch], Tensor]
"""From a module, its parameters and a batch to one loss an example."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How each of many small models is trained.

    Args:
        learning_rate: Step size, constant.
        optimizer: ``"sgd"`` or ``"adam"``.
        momentum: Momentum of ``"sgd"``.
        batch_size: Examples of its subset that a model sees at a step, on average.
        epochs: Walks over the data.
        at_once: Models trained at once; fewer where their activations leave the cache.
    """

    learning_rate: float = 0.01
    optimizer: str = "sgd"
    momentum: float = 0.9
    batch_size: int = 64
    epochs: int = 50
    at_once: int = 100

    def __post_init__(self) -> None:
        """Check the arguments."""
        check_one_of("optimizer", self.optimizer, ("sgd", "adam"))
        check_at_least("learning_rate", self.learning_rate, 0)
        for name in ("batch_size", "epochs", "at_once"):
            check_at_least(name, getattr(self, name), 1)

    def num_steps(self, num_examples: int) -> int:
        """Return the number of steps over a subset of this many examples."""
        return num_examples // self.batch_size * self.epochs

    def stepper(self, params: Mapping[str, Tensor]) -> torch.optim.Optimizer:
        """Return the optimizer, which treats every entry alike and so every model."""
        if self.optimizer == "sgd":
            return torch.optim.SGD(params.values(), lr=self.learning_rate, momentum=self.momentum)
        return torch.optim.Adam(params.values(), lr=self.learning_rate)


def classification_losses(
    module: nn.Module, params: Mapping[str, Tensor], batch: Batch
) -> Float[Tensor, " b"]:
    """Return the cross-entropy of each example of a batch of inputs and labels."""
    inputs, labels = batch
    logits = functional_call(module, dict(params), (inputs,))
    return nn.functional.cross_entropy(logits, labels, reduction="none")


def language_losses(
    module: nn.Module, params: Mapping[str, Tensor], batch: Batch
) -> Float[Tensor, " b"]:
    """Return the cross-entropy of each sequence of a batch of tokens, summed over its tokens."""
    (tokens,) = batch
    logits = functional_call(module, dict(params), (tokens,)).logits[:, :-1]
    losses = nn.functional.cross_entropy(
        logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="none"
    )
    return losses.view(len(tokens), -1).sum(1)
