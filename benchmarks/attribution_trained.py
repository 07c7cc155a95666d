"""A set-up with its model, and the states of training that methods ask for."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from attribution_setups import Setup
from torch import Tensor

from influence import ModelCheckpoint, copy_state, random_subsets
from projections import PassSettings, Task, read_adam_state

DEFAULT = "default"


@dataclass(frozen=True)
class Fit:
    """What a method fitted.

    Args:
        fitted: By the name of the damping, the default first.
        bytes_kept: What answers further queries, in bytes, without the model itself.
        trainings: Models that were trained beside the one that is asked about.
        most_queries: Queries that are asked, where more would take too long.
    """

    fitted: Mapping[str, Any]
    bytes_kept: int
    trainings: int = 0
    most_queries: int | None = None


@dataclass(frozen=True)
class Trained:
    """A set-up with its model, and what several methods share.

    Args:
        setup: The set-up.
        folder: For indexes.
        tiny: Whether this is a test.
    """

    setup: Setup
    folder: Path
    tiny: bool = False

    @cached_property
    def whole(self) -> np.ndarray:
        return np.ones((1, self.setup.num_examples), dtype=np.int8)

    @cached_property
    def model(self) -> torch.nn.Module:
        """The model of all examples."""
        return self.setup.trainer.model(self.setup.trainer.train(self.whole, seed=0))

    @cached_property
    def task(self) -> Task:
        return self.setup.as_task(self.model)

    @cached_property
    def reading(self) -> PassSettings:
        return PassSettings(batch_size=256, max_tokens=8192)

    @cached_property
    def train(self) -> list[Any]:
        return self.setup.train_rows

    def checkpoints(self, count: int) -> list[ModelCheckpoint]:
        """Return states along the run: it is run anew to each, from one start in one order."""
        recipe = self.setup.trainer.recipe
        ends = sorted({max(1, round(recipe.epochs * (k + 1) / count)) for k in range(count)})
        found = []
        for end in ends:
            trainer = replace(self.setup.trainer, recipe=replace(recipe, epochs=end))
            params = trainer.train(self.whole, seed=0)
            found.append(state(params, 0, recipe.learning_rate))
        return found

    def warm_up(self, count: int) -> list[ModelCheckpoint]:
        """Return states of a short run of Adam, an epoch each, with its moments."""
        trainer = self.setup.trainer
        model = trainer.start(0)
        adam = torch.optim.Adam(model.named_parameters(), lr=1e-3)
        order, found = torch.Generator().manual_seed(0), []
        for _ in range(count):
            for rows in torch.randperm(len(self.train), generator=order).split(64):
                batch = tuple(part[rows] for part in trainer.data)
                adam.zero_grad()
                trainer.losses(model, dict(model.named_parameters()), batch).mean().backward()
                adam.step()
            moments = read_adam_state(adam.state_dict(), model)
            found.append(ModelCheckpoint(state=copy_state(model), learning_rate=1e-3, adam=moments))
        return found

    def halves(self, count: int) -> list[ModelCheckpoint]:
        """Return models of random halves, as TRAK averages over."""
        masks = random_subsets(self.setup.num_examples, count, seed=999)
        params = self.setup.trainer.train(masks, seed=5)
        return [state(params, position, 1.0) for position in range(count)]


def state(params: Mapping[str, Tensor], position: int, rate: float) -> ModelCheckpoint:
    return ModelCheckpoint(
        state={name: value[position].clone() for name, value in params.items()},
        learning_rate=rate,
    )


def num_params(trained: Trained) -> int:
    return sum(parameter.numel() for parameter in trained.model.parameters())


def width(trained: Trained, wanted: int) -> int:
    """Return how many dimensions a sketch has: never more than there are parameters."""
    return min(64 if trained.tiny else wanted, num_params(trained))
