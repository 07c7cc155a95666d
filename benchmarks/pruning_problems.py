"""Data with labels that are wrong and known to be: flipped digits, and questions labelled by rules.

Letters: ``n`` training examples, ``d`` inputs, ``c`` classes.
"""

import gzip
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA, TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer
from torch import Tensor, nn
from torch.nn import functional

FLIPPED = 0.1
HIDDEN, BATCH, RATE = 64, 64, 1e-3
DIMS = 50  # of the embeddings that k-centre sees


@dataclass(frozen=True)
class Problem:
    """One training set with wrong labels, and a test set without.

    Args:
        name: What it is.
        inputs: Training inputs, ``n d``.
        given: Their labels, some of them wrong.
        true: Their true labels.
        test_inputs: Test inputs.
        test_labels: Their true labels.
        embeddings: Training inputs in few dimensions.
        epochs: Epochs of the training that scores are read from.
        score_epoch: The epoch after which a pass scores the examples.
        steps: Steps of a training on what is kept.
    """

    name: str
    inputs: Float[Tensor, "n d"]
    given: Int[Tensor, " n"]
    true: Int[Tensor, " n"]
    test_inputs: Float[Tensor, "m d"]
    test_labels: Int[Tensor, " m"]
    embeddings: Float[np.ndarray, "n k"]
    epochs: int
    score_epoch: int
    steps: int

    def __len__(self) -> int:
        return len(self.given)

    @property
    def wrong(self) -> Bool[np.ndarray, " n"]:
        return (self.given != self.true).numpy()

    @property
    def num_classes(self) -> int:
        return int(self.true.max()) + 1

    def rows(self) -> list[tuple[Tensor, Tensor]]:
        return list(zip(self.inputs, self.given, strict=True))

    def network(self) -> nn.Sequential:
        """Return a perceptron with a random start."""
        first = nn.Linear(self.inputs.shape[1], HIDDEN)
        return nn.Sequential(first, nn.ReLU(), nn.Linear(HIDDEN, self.num_classes))


def mnist(folder: Path, *, num_train: int, seed: int) -> Problem:
    """Return the first images of MNIST in 14 by 14 pixels, a tenth of whose labels is flipped."""
    with np.load(folder / "mnist.npz") as arrays:
        images, labels = arrays["x_train"][:num_train], arrays["y_train"][:num_train]
        test, test_labels = arrays["x_test"], arrays["y_test"]
    parts = (_halved(images), labels, _halved(test), test_labels)
    return _flipped("MNIST", *parts, seed, epochs=10, steps=625)


def _halved(images: np.ndarray) -> Float[np.ndarray, "n 14 14"]:
    """Return the means of every two by two pixels."""
    return images.reshape(len(images), 14, 2, 14, 2).mean((2, 4))


def digits(*, num_train: int, steps: int, seed: int) -> Problem:
    """Return digits of scikit-learn with flipped labels, where there is no other data."""
    found: Any = load_digits()
    images, labels = 16 * found.images, found.target
    train, test = slice(num_train), slice(num_train, num_train + 300)
    parts = (images[train], labels[train], images[test], labels[test])
    return _flipped("digits", *parts, seed, epochs=3, steps=steps)


def _flipped(
    name: str,
    images: np.ndarray,
    labels: np.ndarray,
    test: np.ndarray,
    test_labels: np.ndarray,
    seed: int,
    *,
    epochs: int,
    steps: int,
) -> Problem:
    """Flip labels to another class, evenly."""
    random = np.random.default_rng(seed)
    wrong = random.choice(len(labels), round(FLIPPED * len(labels)), replace=False)
    given = labels.astype(np.int64)
    given[wrong] = (given[wrong] + random.integers(1, 10, len(wrong))) % 10
    rows = images.reshape(len(images), -1).astype(np.float32) / 255
    dims = min(DIMS, rows.shape[1] - 1)
    return Problem(
        name,
        torch.from_numpy(rows),
        torch.from_numpy(given),
        torch.from_numpy(labels.astype(np.int64)),
        torch.from_numpy(test.reshape(len(test), -1).astype(np.float32) / 255),
        torch.from_numpy(test_labels.astype(np.int64)),
        PCA(dims, random_state=0).fit_transform(rows).astype(np.float32),
        epochs=epochs,
        score_epoch=max(1, epochs * 3 // 10),
        steps=steps,
    )


def trec(folder: Path) -> Problem:
    """Return questions with the labels of hand-written rules, those that no rule fits left out."""
    rows = [row for row in _read(folder / "train.jsonl.gz") if row["weak_label"] is not None]
    test = _read(folder / "test.jsonl.gz")
    names = sorted({row["label"] for row in rows})
    vectorizer = TfidfVectorizer(ngram_range=(1, 2), min_df=2, max_features=500, sublinear_tf=True)
    sparse: Any = vectorizer.fit_transform([row["text"] for row in rows])
    held_out: Any = vectorizer.transform([row["text"] for row in test])

    def numbers(some: Sequence[dict[str, Any]], column: str) -> Tensor:
        return torch.tensor([names.index(row[column]) for row in some])

    return Problem(
        "TREC",
        torch.from_numpy(sparse.toarray().astype(np.float32)),
        numbers(rows, "weak_label"),
        numbers(rows, "label"),
        torch.from_numpy(held_out.toarray().astype(np.float32)),
        numbers(test, "label"),
        TruncatedSVD(DIMS, random_state=0).fit_transform(sparse).astype(np.float32),
        epochs=20,
        score_epoch=6,
        steps=400,
    )


def training(
    problem: Problem, labels: Int[Tensor, " n"], epochs: int, seed: int
) -> Iterator[nn.Module]:
    """Train on all rows and yield the network after each epoch."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = problem.network()
    optimizer = torch.optim.Adam(model.parameters(), RATE, fused=True)
    order = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        for batch in torch.randperm(len(labels), generator=order).split(BATCH):
            optimizer.zero_grad()
            functional.cross_entropy(model(problem.inputs[batch]), labels[batch]).backward()
            optimizer.step()
        yield model.eval()


def _read(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a file."""
    with gzip.open(path, "rt") as lines:
        return [json.loads(line) for line in lines]
