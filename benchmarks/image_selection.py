"""A quarter of the images, chosen without labels: how good is a classifier trained on it?

Images are embedded by the principal components of their pixels. The target of GIO is the
data itself, as in the published experiment on images. Every choice trains the same
perceptron for the same number of steps. Without `--data` the digits of scikit-learn stand
in for MNIST.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from measuring import options, parse, publish, table
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from torch import nn
from torch.nn import functional

from projections import Embeddings
from selection import GIO, DataShare, FacilityLocation, KCenter, NeighbourGraph

SHARE = 0.25
DIMS = 50
CENTROIDS = 1000
HIDDEN, BATCH, RATE = 128, 64, 1e-3
Choose = Callable[[Embeddings, int, int], np.ndarray]


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--data", type=Path, help="mnist.npz; digits of scikit-learn without it")
    parser.add_argument("--steps", type=int, default=1_500)
    chosen = parse(parser)
    if chosen.quick:
        chosen.steps, chosen.rounds = 30, 2
    rows, labels, test, test_labels = load(chosen.data)
    dims = min(DIMS, rows.shape[1] - 1)
    reduced = PCA(dims, random_state=0).fit_transform(rows).astype(np.float32)
    embeddings, count = Embeddings(reduced), round(SHARE * len(rows))
    lines = [
        line(name, choose, chosen, embeddings, count, (rows, labels, test, test_labels))
        for name, choose in CHOICES.items()
    ]
    kind = "MNIST" if chosen.data else "digits"
    notes = (
        f"{count:,} of {len(rows):,} images ({kind}), embedded in {dims} principal components; "
        f"{chosen.rounds} seeds of the choice and of the perceptron ({HIDDEN} hidden units, "
        f"{chosen.steps:,} steps of {BATCH}). Accuracy on {len(test):,} test images: mean, and "
        "standard error over the seeds. Rarest class: its share of the choice, where a tenth is "
        "even."
    )
    head = ["chosen by", "accuracy, %", "standard error", "rarest class, %", "seconds to choose"]
    publish("A quarter of the images", [notes, table(head, lines)], chosen.out)


def load(path: Path | None) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return images as vectors in [0, 1] and labels, for training and for testing."""
    if path is None:
        data: Any = load_digits()
        rows, labels = (data.data / 16).astype(np.float32), data.target
        return rows[:1200], labels[:1200], rows[1200:], labels[1200:]
    with np.load(path / "mnist.npz" if path.is_dir() else path) as arrays:
        images = [arrays[name].reshape(-1, 784) / np.float32(255) for name in ("x_train", "x_test")]
        return images[0], arrays["y_train"], images[1], arrays["y_test"]


def gio(estimate: Any) -> Choose:
    """Return a choice by GIO, with the data for its own target."""

    def choose(rows: Embeddings, count: int, seed: int) -> np.ndarray:
        settings = GIO(
            estimate=estimate,
            num_centroids=min(CENTROIDS, len(rows) // 4),
            stop=DataShare(1.0),
            seed=seed,
        )
        return settings.fit(rows, rows).select(num_selected=count).ids

    return choose


def by(selector: Any) -> Choose:
    """Return a choice by a selector that draws nothing, and so chooses once for all seeds."""
    known: dict[int, np.ndarray] = {}

    def choose(rows: Embeddings, count: int, seed: int) -> np.ndarray:
        if count not in known:
            known[count] = selector.select(rows, num_selected=count).ids
        return known[count]

    return choose


CHOICES: dict[str, Choose] = {
    "all": lambda rows, count, seed: rows.ids,
    "random": lambda rows, count, seed: np.random.default_rng(seed).choice(
        len(rows), count, replace=False
    ),
    "GIO, published": gio("published"),
    "GIO, nearest-discarded": gio("nearest-discarded"),
    "GIO, coverage": gio("coverage"),
    "GIO, knn": gio("knn"),
    "k-centre": by(KCenter()),
    "facility location": by(
        FacilityLocation(graph=NeighbourGraph(num_neighbours=16, similarity="euclidean", seed=0))
    ),
}


def line(
    name: str,
    choose: Choose,
    chosen: argparse.Namespace,
    embeddings: Embeddings,
    count: int,
    data: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray],
) -> list[str]:
    """Return the line of one way to choose."""
    rows, labels, test, test_labels = data
    accuracies, rarest, seconds = [], [], []
    for seed in range(chosen.rounds):
        began = perf_counter()
        picks = np.sort(choose(embeddings, count, seed))
        seconds.append(perf_counter() - began)
        rarest.append(np.bincount(labels[picks], minlength=10).min() / len(picks))
        accuracies.append(train(rows[picks], labels[picks], test, test_labels, seed, chosen.steps))
    error = np.std(accuracies, ddof=1) / len(accuracies) ** 0.5
    return [
        name,
        f"{100 * np.mean(accuracies):.2f}",
        f"{100 * error:.2f}",
        f"{100 * np.mean(rarest):.1f}",
        f"{np.mean(seconds):.1f}",
    ]


def train(
    rows: np.ndarray,
    labels: np.ndarray,
    test: np.ndarray,
    test_labels: np.ndarray,
    seed: int,
    steps: int,
) -> float:
    """Return the test accuracy of a perceptron that is trained on some rows."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(rows.shape[1], HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 10))
    optimizer = torch.optim.Adam(model.parameters(), RATE)
    inputs, wanted = torch.from_numpy(rows), torch.from_numpy(labels).long()
    for step in range(steps):
        if step * BATCH % len(rows) < BATCH:
            order = torch.randperm(len(rows))
        here = order[(step * BATCH % len(rows)) :][:BATCH]
        optimizer.zero_grad()
        functional.cross_entropy(model(inputs[here]), wanted[here]).backward()
        optimizer.step()
    with torch.no_grad():
        found = model(torch.from_numpy(test)).argmax(1).numpy()
    return float((found == test_labels).mean())


if __name__ == "__main__":
    main()
