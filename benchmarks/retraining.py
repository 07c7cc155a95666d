"""Many small perceptrons trained at once, each on a subset of its own."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Recipe:
    """How a perceptron is trained, by SGD with momentum."""

    widths: tuple[int, ...] = (784, 128, 64, 10)
    learning_rate: float = 0.01
    momentum: float = 0.9
    batch_size: int = 64
    epochs: int = 50


def perceptron(recipe: Recipe) -> nn.Sequential:
    """Return a perceptron with ReLU between its layers."""
    layers: list[nn.Module] = []
    for number, (num_in, num_out) in enumerate(zip(recipe.widths, recipe.widths[1:], strict=False)):
        layers += [nn.ReLU()] * (number > 0) + [nn.Linear(num_in, num_out)]
    return nn.Sequential(*layers)


def train_many(
    inputs: Tensor, labels: Tensor, subsets: Sequence[Tensor], recipe: Recipe, *, seed: int
) -> list[tuple[Tensor, Tensor]]:
    """Return weights and biases, one layer an entry, of a model for each subset.

    Subsets must be of equal size; every model has its own start and its own order.
    """
    generator = torch.Generator().manual_seed(seed)
    count, size = len(subsets), len(subsets[0])
    params: list[Tensor] = []
    for num_in, num_out in zip(recipe.widths, recipe.widths[1:], strict=False):
        bound = num_in**-0.5
        for shape in ((count, num_in, num_out), (count, 1, num_out)):
            start = (torch.rand(shape, generator=generator) * 2 - 1) * bound
            params.append(start.requires_grad_())
    optimizer = torch.optim.SGD(params, lr=recipe.learning_rate, momentum=recipe.momentum)
    rows = torch.stack(list(subsets))
    for _ in range(recipe.epochs):
        order = torch.rand(count, size, generator=generator).argsort(1)
        shuffled = rows.gather(1, order)
        for start in range(0, size - recipe.batch_size + 1, recipe.batch_size):
            batch = shuffled[:, start : start + recipe.batch_size]
            logits = forward_many(params, inputs[batch])
            loss = nn.functional.cross_entropy(
                logits.flatten(0, 1), labels[batch].flatten(), reduction="sum"
            )
            optimizer.zero_grad()
            (loss / recipe.batch_size).backward()
            optimizer.step()
    return [
        (weight.detach(), bias.detach())
        for weight, bias in zip(params[::2], params[1::2], strict=True)
    ]


def forward_many(params: Sequence[Tensor], inputs: Tensor) -> Tensor:
    """Return logits of every model, ``m n c``."""
    hidden = inputs
    for layer in range(0, len(params), 2):
        hidden = torch.baddbmm(params[layer + 1], hidden, params[layer])
        if layer < len(params) - 2:
            hidden = hidden.relu()
    return hidden


def losses_of_many(
    models: Sequence[tuple[Tensor, Tensor]], inputs: Tensor, labels: Tensor
) -> Tensor:
    """Return the loss of every input under every model, ``m q``."""
    params = [part for layer in models for part in layer]
    count = len(params[0])
    logits = forward_many(params, inputs.expand(count, *inputs.shape))
    losses = nn.functional.cross_entropy(
        logits.flatten(0, 1), labels.repeat(count), reduction="none"
    )
    return losses.view(count, -1)


def one_model(models: Sequence[tuple[Tensor, Tensor]], recipe: Recipe) -> nn.Sequential:
    """Return the first model as a module."""
    model = perceptron(recipe)
    linears = [module for module in model if isinstance(module, nn.Linear)]
    with torch.no_grad():
        for linear, (weight, bias) in zip(linears, models, strict=True):
            linear.weight.copy_(weight[0].T)
            linear.bias.copy_(bias[0, 0])
    return model.eval()
