"""The set-ups of `attribution.py`: data, model, recipe, and what is known of the truth.

Every set-up is a `Trainer` with queries. What is known beside the losses of retrained models
is optional: classes, labels that are wrong, examples that carry a shortcut.
"""

import gzip
import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import retrained
import torch
from code_behind import code_behind
from domain_texts import read_domains
from retrained import LanguageModel, Perceptron, rows_of
from sklearn.datasets import load_digits
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer
from torch import Tensor, nn

from influence import (
    Recipe,
    Trainer,
    classification_losses,
    language_losses,
    random_subsets,
    retrained_losses,
)
from influence.retrained_losses import fingerprint
from projections import CausalLM, Classification, Task

Batch = tuple[Tensor, ...]
RETRAINING = ("influence.retraining", "retrained:Perceptron", "retrained:LanguageModel")
"""The code that retrains models."""
MEAN, SPREAD = 0.1307, 0.3081  # of the pixels of MNIST, as others normalise them
LINEAR_PUBLISHED = {
    "exact influence": "0.80",
    "conjugate gradients": "0.80",
    "TRAK, 50 models": "0.68",
    "TracIn, 10 checkpoints": "0.33",
    "representer points": "0.19",
    "LiSSA": "0.79",
    "Arnoldi": "0.31",
}
PERCEPTRON_PUBLISHED = {
    "conjugate gradients": "0.26",
    "TRAK, 10 models": "0.33",
    "TRAK, 50 models": "0.45",
    "TracIn, 10 checkpoints": "0.14",
    "LiSSA": "0.14",
    "Arnoldi": "0.09",
}


@dataclass(frozen=True, kw_only=True)
class Setup:
    """One problem and how much of it is retrained.

    Args:
        name: What it is asked for by.
        title: What the report calls it.
        trainer: Model, loss, data and recipe.
        queries: Tensors with one row a query.
        as_task: From a trained model to its task.
        num_subsets: Random halves to retrain on; none if 0.
        seeds: Seeds of the halves.
        num_drops: Queries whose best 1 % are removed.
        num_left_out: Examples that are left out one at a time.
        published: LDS that others report, by method.
        published_areas: ROC-AUC for wrong labels that others report, by method.
        labels: Class of each example.
        query_labels: Class of each query.
        wrong: Which labels are wrong.
        carriers: Which examples carry a shortcut; the second half of the queries are the
            first without it.
        texts: Texts of examples and of queries, for methods that need no model.
        own_losses: Retraining in another way, from a folder and a number of seeds to masks and
            losses.
    """

    name: str
    title: str
    trainer: Trainer
    queries: Batch
    as_task: Callable[[nn.Module], Task] = Classification
    num_subsets: int = 0
    seeds: tuple[int, ...] = (101, 102)
    num_drops: int = 0
    num_left_out: int = 0
    published: dict[str, str] = field(default_factory=dict)
    published_areas: dict[str, str] = field(default_factory=dict)
    labels: np.ndarray | None = None
    query_labels: np.ndarray | None = None
    wrong: np.ndarray | None = None
    carriers: np.ndarray | None = None
    texts: tuple[list[str], list[str]] | None = None
    own_losses: Callable[[Path | None, int], tuple[np.ndarray, np.ndarray]] | None = None

    @property
    def num_examples(self) -> int:
        return len(self.trainer.data[0])

    @property
    def train_rows(self) -> list[Any]:
        return rows_of(self.trainer.data)

    @property
    def query_rows(self) -> list[Any]:
        return rows_of(self.queries)

    def outcomes(self, kept: Path | None) -> tuple[np.ndarray, np.ndarray]:
        """Return halves, and the loss of every query under the models of each: ``s m q``."""
        if self.own_losses is not None:
            return self.own_losses(kept, len(self.seeds))
        masks = random_subsets(self.num_examples, self.num_subsets, seed=123)
        folder = self.retrained_folder(kept, "halves", masks, self.queries)
        return masks, retrained_losses(
            self.trainer, masks, self.queries, seeds=self.seeds, kept=folder
        )

    def retrained_folder(
        self, kept: Path | None, name: str, masks: np.ndarray, queries: Batch
    ) -> Path | None:
        """Return where retrained losses are kept: by the problem, and by the code of training."""
        if kept is None:
            return None
        digits = fingerprint(self.trainer, masks, queries)
        return kept / self.name / f"{name}-{digits}-{code_behind(*RETRAINING)}"

    def with_kept_seeds(self, kept: Path) -> "Setup":
        """Return the set-up with those seeds of which all halves are kept; one at the least."""
        if self.own_losses is not None or not self.num_subsets:
            return self
        masks = random_subsets(self.num_examples, self.num_subsets, seed=123)
        folder = self.retrained_folder(kept, "halves", masks, self.queries)
        assert folder is not None
        count = len(self.trainer.groups(masks))
        there = [s for s in self.seeds if len([*folder.glob(f"seed-{s}-group-*.npz")]) == count]
        return replace(self, seeds=tuple(there) or self.seeds[:1])

    def small(self) -> "Setup":
        """Return the set-up at a size at which its numbers mean nothing."""
        recipe = replace(self.trainer.recipe, epochs=1, batch_size=8)
        return replace(
            self,
            trainer=replace(self.trainer, recipe=recipe),
            num_subsets=min(self.num_subsets, 6),
            seeds=self.seeds[:2],
            num_drops=min(self.num_drops, 2),
            num_left_out=min(self.num_left_out, 3),
            own_losses=None,
        )


def mnist_parts(data: Path, num_train: int, num_queries: int) -> tuple[Batch, Batch]:
    """Return the first images of MNIST, normalised."""
    files = np.load(data / "mnist" / "mnist.npz")
    parts = []
    for part, count in (("train", num_train), ("test", num_queries)):
        pixels = torch.from_numpy(files[f"x_{part}"][:count].reshape(count, -1)).float() / 255
        labels = torch.from_numpy(files[f"y_{part}"][:count]).long()
        parts.append(((pixels - MEAN) / SPREAD, labels))
    return parts[0], parts[1]


def digit_parts(num_train: int, num_queries: int) -> tuple[Batch, Batch]:
    """Return the small images that scikit-learn ships, for tests."""
    pixels, labels = load_digits(return_X_y=True)
    inputs, targets = torch.tensor(pixels / 16, dtype=torch.float32), torch.tensor(labels)
    train, queries = slice(num_train), slice(num_train, num_train + num_queries)
    return (inputs[train], targets[train]), (inputs[queries], targets[queries])


def images(data: Path | None, num_train: int, num_queries: int) -> tuple[Batch, Batch]:
    if data is None:
        return digit_parts(min(num_train, 64), min(num_queries, 12))
    return mnist_parts(data, num_train, num_queries)


def softmax_regression(batch: Batch) -> Callable[[], nn.Module]:
    """Return what builds a linear model for such inputs."""
    return lambda: nn.Sequential(nn.Linear(batch[0].shape[1], 10))


def perceptron(batch: Batch) -> Callable[[], nn.Module]:
    """Return what builds the perceptron that others use, for such inputs."""
    return lambda: Perceptron(batch[0].shape[1], 128, 64, 10)


LINEAR = Recipe(learning_rate=0.01, momentum=0.0, epochs=20)
PERCEPTRON = Recipe(learning_rate=0.01, momentum=0.9, epochs=50, at_once=25)


def mnist_lr(data: Path | None) -> Setup:
    train, queries = images(data, 5000, 500)
    return Setup(
        name="mnist_lr",
        title="MNIST, logistic regression, 5,000 and 500",
        trainer=Trainer(softmax_regression(train), classification_losses, train, LINEAR),
        queries=queries,
        num_subsets=100,
        seeds=(101, 102),
        num_drops=20,
        num_left_out=50,
        published=LINEAR_PUBLISHED,
        labels=train[1].numpy(),
        query_labels=queries[1].numpy(),
    )


def mnist_mlp(data: Path | None) -> Setup:
    """Return the perceptron; its halves have starts and orders of their own."""
    train, queries = images(data, 5000, 500)
    if data is not None:  # as `influence_index.py` trains it, without normalisation
        train, queries = ((part[0] * SPREAD + MEAN, part[1]) for part in (train, queries))

    def own_losses(kept: Path | None, num_seeds: int) -> tuple[np.ndarray, np.ndarray]:
        assert data is not None
        code = code_behind("retrained:retrain", "retrained:mnist")
        file = None if kept is None else kept / f"mnist-{code}.npz"
        problem = retrained.mnist(data / "mnist" / "mnist.npz")
        found = retrained.retrain(problem, num_subsets=100, num_seeds=num_seeds, kept=file)
        return found.masks, found.losses

    return Setup(
        name="mnist_mlp",
        title="MNIST, perceptron of 109,386 parameters, 5,000 and 500",
        trainer=Trainer(perceptron(train), classification_losses, train, PERCEPTRON),
        queries=queries,
        num_subsets=100,
        seeds=(101, 102, 103),
        num_drops=10,
        num_left_out=25,
        published=PERCEPTRON_PUBLISHED,
        labels=train[1].numpy(),
        query_labels=queries[1].numpy(),
        own_losses=own_losses,
    )


def flipped(setup: Setup, name: str, title: str, *, trak: str) -> Setup:
    """Return a set-up with a tenth of its labels moved to another class."""
    inputs, labels = setup.trainer.data
    random = np.random.default_rng(7)
    count = len(labels)
    wrong = np.zeros(count, dtype=bool)
    wrong[random.permutation(count)[: max(2, count // 10)]] = True
    moved = (labels.numpy() + random.integers(1, 10, count) * wrong) % 10
    data = (inputs, torch.from_numpy(moved))
    return Setup(
        name=name,
        title=title,
        trainer=replace(setup.trainer, data=data),
        queries=tuple(part[:10] for part in setup.queries),
        published_areas={"TRAK, 10 models": trak},
        wrong=wrong,
    )


def mnist_lr_noise(data: Path | None) -> Setup:
    train, queries = images(data, 1000, 10)
    trainer = Trainer(softmax_regression(train), classification_losses, train, LINEAR)
    plain = Setup(name="", title="", trainer=trainer, queries=queries)
    title = "MNIST, logistic regression, 1,000, a tenth of labels wrong"
    return flipped(plain, "mnist_lr_noise", title, trak="0.98")


def mnist_mlp_noise(data: Path | None) -> Setup:
    train, queries = images(data, 1000, 10)
    trainer = Trainer(perceptron(train), classification_losses, train, PERCEPTRON)
    plain = Setup(name="", title="", trainer=trainer, queries=queries)
    title = "MNIST, perceptron, 1,000, a tenth of labels wrong"
    return flipped(plain, "mnist_mlp_noise", title, trak="0.99")


def patched(inputs: Tensor) -> Tensor:
    """Return images with a white square in a corner."""
    side = round(inputs.shape[1] ** 0.5)
    found = inputs.clone().view(-1, side, side)
    found[:, 1:5, 1:5] = (1 - MEAN) / SPREAD
    return found.view(len(inputs), -1)


def mnist_shortcut(data: Path | None) -> Setup:
    """Return images of which some carry a patch and the label 0; queries are asked for it."""
    (inputs, labels), (asked, truth) = images(data, 2000, 200)
    random = np.random.default_rng(3)
    others = np.flatnonzero(labels.numpy() != 0)
    chosen = random.permutation(others)[: max(4, len(inputs) // 40)]
    carriers = np.zeros(len(inputs), dtype=bool)
    carriers[chosen] = True
    inputs, labels = inputs.clone(), labels.clone()
    inputs[chosen], labels[chosen] = patched(inputs[chosen]), 0
    plain = asked[truth != 0][:50]
    both = torch.cat([patched(plain), plain])
    return Setup(
        name="mnist_shortcut",
        title="MNIST, perceptron, 2,000, of which 50 carry a patch and the label 0",
        trainer=Trainer(perceptron((inputs,)), classification_losses, (inputs, labels), PERCEPTRON),
        queries=(both, torch.zeros(len(both), dtype=torch.int64)),
        carriers=carriers,
    )


def read_rows(path: Path) -> list[dict[str, Any]]:
    with gzip.open(path, "rt") as file:
        return [json.loads(line) for line in file]


def trec_weak(data: Path | None) -> Setup:
    """Return questions by kind, with the labels that hand-written rules give."""
    if data is None:
        texts = [f"{word} is number {n}" for n in range(20) for word in ("who", "where", "when")]
        rows = [
            {"text": t, "label": str(n % 3), "weak_label": str(n % 3 if n % 7 else 0)}
            for n, t in enumerate(texts)
        ]
        asked = rows[:6]
    else:
        found = read_rows(data / "trec_weak" / "train.jsonl.gz")
        rows = [row for row in found if row["weak_label"] is not None]
        asked = read_rows(data / "trec_weak" / "test.jsonl.gz")[:200]
    names = sorted({row["label"] for row in rows})
    words = TfidfVectorizer(sublinear_tf=True, ngram_range=(1, 2), min_df=2)
    wide = words.fit_transform([row["text"] for row in rows])
    width = min(128, wide.shape[1] - 1)  # pyright: ignore
    narrow = TruncatedSVD(width, random_state=0).fit(wide)

    def batch(part: list[dict[str, Any]], column: str) -> Batch:
        vectors = narrow.transform(words.transform([row["text"] for row in part]))
        labels = [names.index(row[column]) for row in part]
        return torch.tensor(vectors * 5, dtype=torch.float32), torch.tensor(labels)

    train, queries = batch(rows, "weak_label"), batch(asked, "label")
    gold = np.array([names.index(row["label"]) for row in rows])
    return Setup(
        name="trec_weak",
        title=f"TREC with the labels of rules, {len(rows):,} and {len(asked)}",
        trainer=Trainer(
            lambda: Perceptron(width, 32, len(names)),
            classification_losses,
            train,
            Recipe(learning_rate=0.02, epochs=20, at_once=20),
        ),
        queries=queries,
        num_subsets=60,
        num_drops=10,
        labels=train[1].numpy(),
        query_labels=queries[1].numpy(),
        wrong=gold != train[1].numpy(),
        texts=([row["text"] for row in rows], [row["text"] for row in asked]),
    )


def lm_domains(data: Path | None) -> Setup:
    """Return a small language model on twelve kinds of text."""
    folder = None if data is None else data / "lm_domains"
    sizes = (40, 4) if data is not None else (3, 1)
    texts = read_domains(
        folder, length=48, num_train=sizes[0], num_held_out=sizes[1], vocabulary=384
    )
    names = list(texts.train)

    def batch(parts: Any) -> tuple[Tensor, np.ndarray]:
        kinds = np.concatenate([np.full(len(parts[name]), i) for i, name in enumerate(names)])
        return torch.cat([parts[name] for name in names]), kinds

    (train, kinds), (held, asked) = batch(texts.train), batch(texts.held_out)
    return Setup(
        name="lm_domains",
        title=f"Language model on {len(names)} kinds of text, {len(train)} and {len(held)}",
        trainer=Trainer(
            lambda: LanguageModel(texts.vocabulary, 48, width=32, depth=1),
            language_losses,
            (train,),
            Recipe(learning_rate=5e-3, optimizer="adam", batch_size=24, epochs=8, at_once=5),
        ),
        queries=(held,),
        as_task=CausalLM,
        num_subsets=40,
        seeds=(101, 102, 103),
        num_drops=4,
        num_left_out=20,
        labels=kinds,
        query_labels=asked,
        texts=(words_of(train), words_of(held)),
    )


def words_of(rows: Tensor) -> list[str]:
    """Return tokens as words, so that methods of texts may count them."""
    return [" ".join(f"token{token}" for token in row) for row in rows.tolist()]


SETUPS: dict[str, Callable[[Path | None], Setup]] = {
    "mnist_lr": mnist_lr,
    "mnist_mlp": mnist_mlp,
    "mnist_lr_noise": mnist_lr_noise,
    "mnist_mlp_noise": mnist_mlp_noise,
    "mnist_shortcut": mnist_shortcut,
    "trec_weak": trec_weak,
    "lm_domains": lm_domains,
}
