"""The exact alignment of each domain: a separate batch, forward and backward for each.

Letters: ``m`` domains.

One gradient is kept (the target's), whatever the number of domains. Gradients are those of
the mean loss a token, with dropout off, and leave the ``grad`` of parameters alone. Under
`torch.distributed`, domains are dealt out to the ranks and only ``3 m`` numbers travel.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, distributed, nn

from projections import Task, check_at_least, find_components, to_device
from selection.mixtures.alignments import Products
from selection.mixtures.decks import Deck, as_decks, as_target
from selection.ranks import num_ranks, sum_over_ranks

Gradients = tuple[Tensor, ...]


class DomainGradients:
    """Products of the gradients of domains with that of a target, from fresh batches.

    Args:
        task: The model, and what its loss means.
        domains: Rows of each domain, or a deck that draws them.
        target: Rows of the target; without them the target is the sum of all domains.
        batch_size: Rows of each domain, and of the target, at a time.
        layers: Patterns of the components whose gradients count; default: all.
        seed: Decides which rows are drawn.
    """

    def __init__(
        self,
        task: Task,
        domains: Mapping[str, Any],
        target: Any | None,
        *,
        batch_size: int,
        layers: str | Sequence[str] | None = None,
        seed: int,
    ) -> None:
        """Find the parameters."""
        check_at_least("batch_size", batch_size, 1)
        self.task = task
        self.batch_size = batch_size
        self._decks = as_decks(domains, seed=seed)
        self._target = None if target is None else as_target(target, seed=seed)
        self._parameters = chosen_parameters(task.model, layers)

    def products(self, number: int) -> Products:
        """Return the products on batches number ``number`` of each domain and the target."""
        with evaluating(self.task.model):
            target = self._target_gradient(number)
            found = np.zeros((3, len(self._decks)))
            own_rank = distributed.get_rank() if num_ranks() > 1 else 0
            for place, deck in enumerate(self._decks.values()):
                if place % num_ranks() == own_rank:
                    own = self._gradient([deck], number)
                    found[:, place] = inner(own, target), inner(own, own), 1
        dots, sq_norms, known = sum_over_ranks(torch.as_tensor(found)).numpy()
        return Products(dots, sq_norms, inner(target, target), known > 0)

    def _target_gradient(self, number: int) -> Gradients:
        """Return the gradient of the target, the same on all ranks."""
        if self._target is not None:
            return self._gradient([self._target], number)
        return self._gradient(list(self._decks.values()), number)

    def _gradient(self, decks: Sequence[Deck], number: int) -> Gradients:
        """Return the sum over decks of the gradient of the mean loss a token of one batch."""
        total = [torch.zeros_like(parameter) for parameter in self._parameters]
        for deck in decks:
            rows = deck.draw(number * self.batch_size, self.batch_size)
            found = mean_gradient(self.task, rows, self._parameters)
            total = [kept + part for kept, part in zip(total, found, strict=True)]
        return tuple(total)


def mean_loss(task: Task, batch: Any) -> Tensor:
    """Return the mean loss a token (an example, where a task knows no tokens)."""
    with torch.enable_grad():
        statistics = task.statistics(batch)
        losses = statistics["loss"]
        counted = statistics["num_tokens"].sum() if "num_tokens" in statistics else len(losses)
        return losses.sum() / counted


def mean_gradient(task: Task, rows: Sequence[Any], parameters: Sequence[nn.Parameter]) -> Gradients:
    """Return the gradient of the mean loss of some rows."""
    loss = mean_loss(task, to_device(task.collate(task.encode(rows)), task.device))
    found = torch.autograd.grad(loss, list(parameters), allow_unused=True)
    pairs = zip(found, parameters, strict=True)
    return tuple(torch.zeros_like(at) if grad is None else grad for grad, at in pairs)


def inner(left: Gradients, right: Gradients) -> float:
    """Return the inner product, with the sum over parameters in float64."""
    pairs = zip(left, right, strict=True)
    return float(sum(torch.dot(a.flatten(), b.flatten()).double() for a, b in pairs))


def chosen_parameters(
    model: nn.Module, layers: str | Sequence[str] | None
) -> tuple[nn.Parameter, ...]:
    """Return the trainable parameters of the components that match a pattern."""
    if layers is None:
        return tuple(parameter for parameter in model.parameters() if parameter.requires_grad)
    components = find_components(model, layers).components.values()
    names = [parameter.name for component in components for parameter in component.parameters]
    own = dict(model.named_parameters(remove_duplicate=False))
    return tuple(own[name] for name in names)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Turn dropout off for a while, and leave each module as it was."""
    were = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in were.items():
            module.training = training


@contextmanager
def kept_grads(model: nn.Module) -> Iterator[None]:
    """Put what parameters have in ``grad`` aside for a while."""
    kept = [(parameter, parameter.grad) for parameter in model.parameters()]
    for parameter, _ in kept:
        parameter.grad = None
    try:
        yield
    finally:
        for parameter, grad in kept:
            parameter.grad = grad
