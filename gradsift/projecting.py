"""Projections as the commands name them, and Adam's state as trainers save it."""

from collections.abc import Callable, Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Literal, cast

import torch
import transformers
from torch import nn

from projections import (
    SJLT,
    SRHT,
    AdamScaled,
    AdamState,
    Component,
    DataError,
    Gaussian,
    PassSettings,
    Projector,
    Rademacher,
    TensorSketch,
    find_components,
    random_kronecker,
    read_adam_state,
)

ProjectionName = Literal["sjlt", "srht", "tensorsketch", "two-sided", "rademacher", "gaussian"]

# From number of dimensions, seed, model and the settings of the pass.
Maker = Callable[[int, int, nn.Module, PassSettings], Projector]
MAKERS: dict[ProjectionName, Maker] = {
    "sjlt": lambda k, seed, model, settings: SJLT(num_dims=k, seed=seed),
    "srht": lambda k, seed, model, settings: SRHT(num_dims=k, seed=seed),
    "tensorsketch": lambda k, seed, model, settings: TensorSketch(num_dims=k, seed=seed),
    "two-sided": lambda k, seed, model, settings: random_kronecker(
        components_of(model, settings), num_dims=k, seed=seed
    ),
    "rademacher": lambda k, seed, model, settings: Rademacher(num_dims=k, seed=seed),
    "gaussian": lambda k, seed, model, settings: Gaussian(num_dims=k, seed=seed),
}


def make_projector(
    name: ProjectionName,
    model: nn.Module,
    *,
    num_dims: int,
    seed: int,
    settings: PassSettings | None = None,
    optimizer_state: Path | None = None,
) -> Projector:
    """Return the projection of this name for a model.

    Args:
        name: One of `ProjectionName`.
        model: The model whose gradients it is for.
        num_dims: Number of dimensions; the most, for two-sided projections.
        seed: Seed of the map.
        settings: With the layers that a pass looks at, and how.
        optimizer_state: A file with the state of Adam, whose scaling then comes first.
    """
    projector = MAKERS[name](num_dims, seed, model, settings or PassSettings())
    if optimizer_state is None:
        return projector
    return AdamScaled(projector=projector, state=load_adam_state(optimizer_state, model))


def components_of(model: nn.Module, settings: PassSettings) -> list[Component]:
    """Return the components that a pass with these settings looks at."""
    layout = find_components(model, settings.layers, kinds=settings.kinds, heads=settings.heads)
    return list(layout.components.values())


def load_adam_state(path: Path, model: nn.Module) -> AdamState:
    """Return the moments in a file such as the ``optimizer.pt`` of a Hugging Face trainer.

    Args:
        path: A state dict that `torch.save` wrote.
        model: The model that was trained.

    Raises:
        DataError: It cannot be read, or which parameter is which cannot be told.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, UnpicklingError, EOFError) as error:
        raise DataError(
            f"`optimizer-state` must be a state dict that `torch.save` wrote. {path} cannot be "
            f"read: {error}"
        ) from error
    if not isinstance(state, Mapping) or "param_groups" not in state:
        raise DataError(
            f"`optimizer-state` must be what `optimizer.state_dict()` returns. {path} is not."
        )
    groups = state["param_groups"]
    if all(group.get("param_names") for group in groups):
        return read_adam_state(state, model)
    return read_adam_state(state, model, names=trainer_order(model, groups))


def trainer_order(model: nn.Module, groups: list[Mapping[str, Any]]) -> list[str]:
    """Return the names of trainable parameters in the order in which trainers give them.

    One group: as in ``model.named_parameters()``. Two: first those with weight decay, by
    the rule of the installed Hugging Face trainer.

    Args:
        model: The model.
        groups: The groups of the optimizer's state.

    Raises:
        DataError: The groups are of other sizes.
    """
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    parts = [names]
    if len(groups) == 2:
        rule: Any = transformers.Trainer.get_decay_parameter_names
        decayed = set(rule(cast(Any, None), model))
        parts = [
            [name for name in names if name in decayed],
            [name for name in names if name not in decayed],
        ]
    sizes = [len(group["params"]) for group in groups]
    if sizes != list(map(len, parts)):
        raise DataError(
            "the optimizer's state must name its parameters, or have those of the model in the "
            f"order of a Hugging Face trainer, in groups of {list(map(len, parts))}. It has "
            f"groups of {sizes}. Make the optimizer from `model.named_parameters()`."
        )
    return [name for part in parts for name in part]
