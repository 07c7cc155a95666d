"""Many small models trained at once, each on a subset of its own.

Letters: ``m`` models, ``b`` examples of a batch, ``q`` queries.

The weights of all models are stacked, and a step of all of them is one step of
``torch.func.vmap``. Every model has its own start and its own order of examples, unlike those
of `influence.Trainer`.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.func import vmap

from influence import Losses, Recipe


def train_many(
    make: Callable[[], nn.Module],
    losses: Losses,
    data: tuple[Tensor, ...],
    subsets: Sequence[Tensor],
    recipe: Recipe,
    *,
    seed: int,
) -> dict[str, Tensor]:
    """Return the parameters of a model for each subset, stacked by name.

    Args:
        make: Builds a model with a random start.
        losses: The loss of each example.
        data: Tensors with one row an example.
        subsets: Rows that each model sees; of equal size.
        recipe: How it is trained.
        seed: Seed of starts and orders.
    """
    parts = [
        _train_some(
            make, losses, data, subsets[first : first + recipe.at_once], recipe, seed, first
        )
        for first in range(0, len(subsets), recipe.at_once)
    ]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _train_some(
    make: Callable[[], nn.Module],
    losses: Losses,
    data: tuple[Tensor, ...],
    subsets: Sequence[Tensor],
    recipe: Recipe,
    seed: int,
    first: int,
) -> dict[str, Tensor]:
    """Train a few models, the number of the first of which is given."""
    seeds = [seed * 10_000 + first + number for number in range(len(subsets))]
    template, params = _stacked_starts(make, seeds)
    generators = [torch.Generator().manual_seed(own) for own in seeds]
    step = recipe.stepper(params)
    each = vmap(lambda own, batch: losses(template, own, batch).sum())
    for _ in range(recipe.epochs):
        shuffled = torch.stack(
            [
                subset[torch.randperm(len(subset), generator=generator)]
                for subset, generator in zip(subsets, generators, strict=True)
            ]
        )
        for start in range(0, shuffled.shape[1] - recipe.batch_size + 1, recipe.batch_size):
            chosen = shuffled[:, start : start + recipe.batch_size]
            total = each(params, tuple(part[chosen] for part in data)).sum()
            step.zero_grad()
            (total / recipe.batch_size).backward()
            step.step()
    return {name: value.detach() for name, value in params.items()}


def _stacked_starts(
    make: Callable[[], nn.Module], seeds: Sequence[int]
) -> tuple[nn.Module, dict[str, Tensor]]:
    """Return a module, and a random start for each seed stacked by name."""
    modules = []
    for seed in seeds:
        torch.manual_seed(seed)
        modules.append(make())
    starts = {
        name: torch.stack([module.get_parameter(name).detach() for module in modules])
        for name, _ in modules[0].named_parameters()
    }
    return modules[0], {name: start.requires_grad_() for name, start in starts.items()}


def losses_of_many(
    make: Callable[[], nn.Module],
    losses: Losses,
    params: Mapping[str, Tensor],
    data: tuple[Tensor, ...],
) -> Tensor:
    """Return the loss of every query under every model, ``m q``."""
    template = make()
    with torch.no_grad():
        return vmap(lambda own: losses(template, own, data))(dict(params))


def one_model(make: Callable[[], nn.Module], params: Mapping[str, Tensor]) -> nn.Module:
    """Return the first model as a module, ready to be looked at."""
    model = make()
    model.load_state_dict({name: value[0] for name, value in params.items()})
    return model.eval()
