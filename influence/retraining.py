"""Many small models trained at once, each on a subset of its own: the truth for attribution.

Letters: ``m`` subsets, ``n`` training examples, ``b`` examples of a batch, ``q`` queries.

The weights of all models are stacked, and a step of all of them is one step of
``torch.func.vmap``. All models of a seed share a start and the order of batches, in which the
loss of an example counts for those models whose subset holds it. So a batch is read once for
all models, subsets may differ in size, and two models of a seed differ by their subsets only:
what removing one example did is not lost in the noise of training. Not handled: layers with
buffers that change in training, such as batch normalisation, and dropout.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int8
from torch import Tensor, nn
from torch.func import vmap

from influence.recipe import Batch, Losses, Recipe
from projections import (
    ConvergenceError,
    UnsupportedLayerError,
    check_at_least,
    check_not_empty,
)


@dataclass(frozen=True)
class Trainer:
    """What is trained: a model, its loss, the data and the recipe.

    Args:
        make: Builds a model with a random start, on PyTorch's own generator.
        losses: The loss of each example, such as `classification_losses`.
        data: Tensors with one row an example.
        recipe: How it is trained.

    Example:
        >>> from influence.recipe import classification_losses
        >>> data = (torch.tensor([[-2.0], [-1.0], [1.0], [2.0]]), torch.tensor([0, 0, 1, 1]))
        >>> recipe = Recipe(learning_rate=0.5, batch_size=2, epochs=20)
        >>> trainer = Trainer(lambda: nn.Linear(1, 2), classification_losses, data, recipe)
        >>> masks = np.array([[1, 1, 1, 0], [1, 0, 1, 1]], dtype=np.int8)
        >>> params = trainer.train(masks, seed=0)
        >>> params["weight"].shape
        torch.Size([2, 2, 1])
        >>> bool((trainer.evaluate(params, data) < 0.1).all())
        True
    """

    make: Callable[[], nn.Module]
    losses: Losses
    data: Batch
    recipe: Recipe

    def train(self, masks: Int8[np.ndarray, "m n"], *, seed: int) -> dict[str, Tensor]:
        """Return the parameters of a model for each subset, stacked by name.

        Args:
            masks: Which examples each model sees, as 0 and 1.
            seed: Seed of the common start and order.

        Raises:
            ConvergenceError: The weights of a model are not finite in the end.
            UnsupportedLayerError: The model has a state beside its weights, or dropout.
            ValueError: Shapes do not fit, or a subset is smaller than a batch.
        """
        self.check(masks)
        parts = [self.train_group(group, masks, seed=seed) for group in self.groups(masks)]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def evaluate(self, params: Mapping[str, Tensor], queries: Batch) -> Float[np.ndarray, "m q"]:
        """Return the loss of every query under every model.

        Args:
            params: What `train` returned.
            queries: Tensors with one row a query.
        """
        template = self.make()
        with torch.no_grad():
            each = vmap(lambda own: self.losses(template, own, queries), chunk_size=8)
            return each(dict(params)).numpy()

    def model(self, params: Mapping[str, Tensor], position: int = 0) -> nn.Module:
        """Return one of the models as a module, in eval mode.

        Args:
            params: What `train` returned.
            position: Which of them.
        """
        model = self.make()
        model.load_state_dict({name: value[position] for name, value in params.items()})
        return model.eval()

    def start(self, seed: int) -> nn.Module:
        """Return the model with the start of a seed; the global generator stays as it was."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self.make()

    def groups(self, masks: Int8[np.ndarray, "m n"]) -> list[Int8[np.ndarray, "g n"]]:
        """Return the subsets whose models are trained at once, group by group."""
        return np.split(masks, range(self.recipe.at_once, len(masks), self.recipe.at_once))

    def train_group(
        self, group: Int8[np.ndarray, "g n"], masks: Int8[np.ndarray, "m n"], *, seed: int
    ) -> dict[str, Tensor]:
        """Train the models of one of the `groups`.

        Args:
            group: Their subsets.
            masks: All subsets, whose mean size sets how many rows are read at a step.
            seed: Seed of the common start and order.

        Raises:
            ConvergenceError: The weights of a model are not finite in the end.
            UnsupportedLayerError: The model has a state beside its weights, or dropout.
        """
        template = self.start(seed)
        refuse_state(template)
        params = {
            name: value.detach().expand(len(group), *value.shape).clone().requires_grad_()
            for name, value in template.named_parameters()
        }
        step = self.recipe.stepper(params)
        each = vmap(self._weighted(template), in_dims=(0, 0, *(None for _ in self.data)))
        weights = torch.from_numpy(group).float()
        for chosen in self._batches(masks, seed):
            parts = (part[chosen] for part in self.data)
            total = each(params, weights[:, chosen], *parts).sum()
            step.zero_grad()
            (total / self.recipe.batch_size).backward()
            step.step()
        self._check_finite(params)
        return {name: value.detach() for name, value in params.items()}

    def _check_finite(self, params: Mapping[str, Tensor]) -> None:
        """Refuse models that have left the numbers."""
        wrong = [name for name, value in params.items() if not bool(value.isfinite().all())]
        if wrong:
            raise ConvergenceError(
                f"trained weights must be finite. Those of {wrong[:5]} are not. Lower "
                f"`learning_rate`, which is {self.recipe.learning_rate:g}."
            )

    def _weighted(self, template: nn.Module) -> Callable[..., Tensor]:
        """Return the loss of one model on a batch, of those examples that it may see."""

        def loss(own: Mapping[str, Tensor], weights: Tensor, *batch: Tensor) -> Tensor:
            return (self.losses(template, own, batch) * weights).sum()

        return loss

    def _batches(self, masks: Int8[np.ndarray, "m n"], seed: int) -> Iterator[Tensor]:
        """Yield the rows of each step; a batch holds so many that a model sees its share."""
        count = masks.shape[1]
        size = min(count, round(self.recipe.batch_size / float(masks.mean())))
        order = torch.Generator().manual_seed(seed)
        for _ in range(self.recipe.epochs):
            shuffled = torch.randperm(count, generator=order)
            for start in range(0, count - size + 1, size):
                yield shuffled[start : start + size]

    def check(self, masks: Int8[np.ndarray, "m n"]) -> None:
        """Refuse subsets of other data, and such that are too small or of unlike size.

        Args:
            masks: Which examples each subset holds.

        Raises:
            ValueError: They are.
        """
        check_not_empty("masks", len(masks))
        count = len(self.data[0])
        if masks.shape[1] != count:
            raise ValueError(
                f"`masks` must have one column for each of {count} examples. Got {masks.shape[1]}."
            )
        if not np.isin(masks, (0, 1)).all():
            raise ValueError("`masks` must hold 0 and 1 only. Got other numbers.")
        sizes = masks.sum(1, dtype=np.int64)
        check_at_least("the size of the smallest subset", int(sizes.min()), self.recipe.batch_size)
        if sizes.max() > 1.1 * sizes.min():
            raise ValueError(
                "subsets that are trained together must be of sizes within a tenth, since they "
                f"share their steps. Got {sizes.min()} to {sizes.max()}. Train them in two calls."
            )


def refuse_state(model: nn.Module) -> None:
    """Refuse what makes a step depend on more than weights and rows.

    Args:
        model: The model that is to be trained.

    Raises:
        UnsupportedLayerError: It has buffers that batches change, or dropout.
    """
    for name, module in model.named_modules():
        drops = isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0
        if drops or getattr(module, "track_running_stats", False):
            raise UnsupportedLayerError(
                "models that are trained together must be without dropout and without running "
                f"statistics. {name!r} is {module}. Leave it out, or set its p to 0 or "
                "track_running_stats to False."
            )
