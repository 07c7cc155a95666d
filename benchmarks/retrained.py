"""The set-ups whose retraining is measured: data, model, recipe, and what retraining did.

What retraining did is kept in a file, since it takes most of the time and no method
changes it. Sizes are such that a set-up takes minutes on one core.
"""

# pyright: reportCallIssue=false, reportArgumentType=false
# NOTE: arguments are unpacked from lists, and what is kept goes by this code: only comments
# may change without hours of retraining.

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from retraining import losses_of_many, one_model, train_many
from sklearn.datasets import load_digits
from torch import Tensor, nn
from transformers.modeling_outputs import CausalLMOutput

from gradsift.corpus import CorpusSettings, build_corpus
from influence import (
    Estimate,
    Losses,
    Recipe,
    classification_losses,
    language_losses,
    lds_ceiling,
    linear_datamodeling_score,
)
from projections import CausalLM, Classification, Task


@dataclass(frozen=True)
class Problem:
    """Data, model and recipe.

    Args:
        name: What the tables call it.
        train: Tensors with one row an example.
        queries: The same for queries.
        make: Builds a model with a random start.
        losses: The loss of each example.
        recipe: How it is trained.
        as_task: From a trained model to its task.
    """

    name: str
    train: tuple[Tensor, ...]
    queries: tuple[Tensor, ...]
    make: Callable[[], nn.Module]
    losses: Losses
    recipe: Recipe
    as_task: Callable[[nn.Module], Task]


@dataclass(frozen=True)
class Retrained:
    """A problem, one model trained on all of it, and what retraining on halves did.

    Args:
        problem: The problem.
        model: The model.
        masks: Which examples each subset holds, ``m n``.
        losses: Loss of each query under each retrained model, by seed: ``s m q``.
    """

    problem: Problem
    model: nn.Module
    masks: np.ndarray
    losses: np.ndarray

    @property
    def task(self) -> Task:
        """The task of the model."""
        return self.problem.as_task(self.model)

    @property
    def train(self) -> list[Any]:
        """The training rows as the task reads them."""
        return rows_of(self.problem.train)

    @property
    def queries(self) -> list[Any]:
        """The queries."""
        return rows_of(self.problem.queries)

    def lds(self, scores: np.ndarray) -> Estimate:
        """Return how well summed scores predict retraining."""
        return linear_datamodeling_score(self.masks, scores, self.losses.mean(0))

    @property
    def ceiling(self) -> float:
        """The best that any score can reach; not a number for one seed."""
        return lds_ceiling(self.losses).mean if len(self.losses) > 1 else float("nan")


def rows_of(part: tuple[Tensor, ...]) -> list[Any]:
    """Return rows as a task reads them."""
    if len(part) == 1:
        return [{"input_ids": row} for row in part[0].tolist()]
    return list(zip(part[0], part[1].tolist(), strict=True))


class Perceptron(nn.Sequential):
    """Linear layers with ReLU between them."""

    def __init__(self, *widths: int) -> None:
        layers: list[nn.Module] = []
        for number, (num_in, num_out) in enumerate(pairwise(widths)):
            layers += [nn.ReLU()] * (number > 0) + [nn.Linear(num_in, num_out)]
        super().__init__(*layers)


class Convolutional(nn.Sequential):
    """Two convolutions and two linear layers for images of 8 by 8."""

    def __init__(self) -> None:
        super().__init__(
            nn.Unflatten(1, (1, 8, 8)),
            nn.Conv2d(1, 8, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(8, 16, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(256, 32),
            nn.ReLU(),
            nn.Linear(32, 10),
        )


class Block(nn.Module):
    """Attention and a perceptron, each after a norm and beside a shortcut."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, hidden: Tensor) -> Tensor:
        """Return the hidden states after the block."""
        n, t, width = hidden.shape
        parts = self.qkv(self.norms[0](hidden)).view(n, t, 3, self.num_heads, -1)
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        logits = query @ key.mT / query.shape[-1] ** 0.5
        future = torch.ones(t, t, dtype=torch.bool).triu(1)
        weights = logits.masked_fill(future, float("-inf")).softmax(-1)
        hidden = hidden + self.out((weights @ value).transpose(1, 2).reshape(n, t, width))
        return hidden + self.down(nn.functional.gelu(self.up(self.norms[1](hidden))))


class LanguageModel(nn.Module):
    """A small causal transformer of plain operations, which ``vmap`` can stack."""

    def __init__(self, vocabulary: int, length: int, width: int = 48, depth: int = 2) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(length, width)
        self.blocks = nn.ModuleList([Block(width, 4) for _ in range(depth)])
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> CausalLMOutput:
        """Return the logits of the next token; all rows must be of full length."""
        places = torch.arange(input_ids.shape[1]).expand(input_ids.shape)
        hidden = self.tokens(input_ids) + self.positions(places)
        for block in self.blocks:
            hidden = block(hidden)
        return CausalLMOutput(logits=self.head(self.norm(hidden)))


def digits(make: Callable[[], nn.Module], name: str, recipe: Recipe) -> Problem:
    """Return a problem on the digits of scikit-learn: 1,200 and 300."""
    images, labels = load_digits(return_X_y=True)
    inputs, targets = torch.tensor(images / 16, dtype=torch.float32), torch.tensor(labels)
    order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(5))
    train, queries = order[:1200], order[1200:1500]
    return Problem(
        f"{name} on digits, 1,200 and 300",
        (inputs[train], targets[train]),
        (inputs[queries], targets[queries]),
        make,
        classification_losses,
        recipe,
        Classification,
    )


def mnist(path: Path) -> Problem:
    """Return the perceptron of 109,386 parameters on 5,000 images of an ``mnist.npz``."""
    files = np.load(path)
    parts = []
    for part, count in (("train", 5000), ("test", 500)):
        flat = torch.from_numpy(files[f"x_{part}"][:count].reshape(count, -1)).float() / 255
        parts.append((flat, torch.from_numpy(files[f"y_{part}"][:count]).long()))
    return Problem(
        "perceptron on MNIST, 5,000 and 500",
        *parts,
        lambda: Perceptron(784, 128, 64, 10),
        classification_losses,
        Recipe(),
        Classification,
    )


def language() -> Problem:
    """Return a small language model on the text that every Python ships."""
    settings = CorpusSettings(vocab_size=512, length=48, num_train=100, num_held_out=10)
    corpus = build_corpus(settings, seed=0)
    train, queries = (
        torch.tensor([passage["input_ids"] for passage in part])
        for part in (corpus.train, corpus.held_out)
    )
    return Problem(
        f"language model on {len(corpus.domains)} domains of text, {len(train)} and {len(queries)}",
        (train,),
        (queries,),
        lambda: LanguageModel(len(corpus.tokenizer), settings.length),
        language_losses,
        Recipe(learning_rate=3e-3, optimizer="adam", batch_size=30, epochs=6, at_once=5),
        CausalLM,
    )


PROBLEMS: dict[str, Callable[[], Problem]] = {
    "digits": lambda: digits(
        lambda: Perceptron(64, 64, 32, 10), "perceptron", Recipe(learning_rate=0.02, epochs=40)
    ),
    "convolutional": lambda: digits(
        Convolutional, "convolutional network", Recipe(learning_rate=0.02, epochs=20)
    ),
    "language": language,
}


def retrain(
    problem: Problem, *, num_subsets: int, num_seeds: int, kept: Path | None = None
) -> Retrained:
    """Train the model and those on halves, or read what an earlier run found.

    Args:
        problem: What to train.
        num_subsets: Number of random halves.
        num_seeds: Models for each half, averaged to lessen the noise of training.
        kept: File that keeps losses and weights; written after each seed.
    """
    size = len(problem.train[0])
    generator = torch.Generator().manual_seed(123)
    subsets = [torch.randperm(size, generator=generator)[: size // 2] for _ in range(num_subsets)]
    masks = np.zeros((num_subsets, size), dtype=np.int8)
    for row, subset in enumerate(subsets):
        masks[row, subset.numpy()] = 1
    parts = (problem.make, problem.losses)
    found: list[np.ndarray] = []
    if kept is not None and kept.exists():
        file = np.load(kept)
        found = list(file["losses"][:num_seeds])
        weights = {name: torch.from_numpy(file[name]) for name in file.files if name != "losses"}
    else:
        everything = [torch.arange(size)]
        weights = train_many(*parts, problem.train, everything, problem.recipe, seed=0)
    for seed in range(len(found), num_seeds):
        many = train_many(*parts, problem.train, subsets, problem.recipe, seed=100 + seed)
        found.append(losses_of_many(*parts, many, problem.queries).numpy())
        if kept is not None:
            arrays = {name: value.numpy() for name, value in weights.items()}
            np.savez(kept, losses=np.stack(found), **arrays)
    return Retrained(problem, one_model(problem.make, weights), masks, np.stack(found))


def quick(problem: Problem) -> Problem:
    """Return the problem with a recipe that is over at once, for tests."""
    return replace(problem, recipe=replace(problem.recipe, epochs=1))
