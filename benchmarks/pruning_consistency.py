"""Do scores rank images as their consistency does, as published and as measured here?

The consistency of an image is the probability that networks which did not see it give its
label. Scores are published for MNIST, one number an image, without the images. Their order is
not that of MNIST's own files but that in which TensorFlow Datasets hands MNIST out, which
`served_order` works out. That it is the right one is checked by an easiness that needs no
model: by how much an image is nearer to the mean of its own class than to another's.
"""

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from measuring import spread, table
from pruning_problems import Problem, mnist, training
from pruning_scores import Suspicion, held_out, one_pass
from scipy.stats import spearmanr

from projections import Classification
from selection import LearningHistory

FILE = "mnist-cscores.npy"
COUNT, SMALL = 60_000, 10_000  # images with published scores, and with consistency measured here
EPOCHS = (1, 4)  # after which the scores are read
LEARNT = ("forgetting", "first_learnt")
Cached = Callable[[str, Callable[[], Any]], Any]


def served_order(count: int, split: str = "train") -> Int[np.ndarray, " n"]:
    """Return the place in MNIST's own files of each image, as TensorFlow Datasets serves them.

    It writes the examples of a split sorted by the MD5 of the split's name followed by the
    example's key, read as one large number; the keys of MNIST are the places in its files.

    References:
        tensorflow_datasets/core/hashing.py (the split's name as salt) and core/shuffle.py
        (sorting by hash) of TensorFlow Datasets.
    """
    keys = [hashlib.md5(f"{split}{place}".encode()).digest() for place in range(count)]
    return np.array(sorted(range(count), key=keys.__getitem__))


def published(folder: Path) -> Float[np.ndarray, " n"]:
    """Return the published consistency of each image, in the order of MNIST's own files."""
    values = np.load(folder / FILE)
    found = np.empty_like(values)
    found[served_order(len(values))] = values
    return found


def consistency(folder: Path, seeds: int, cached: Cached) -> list[str]:
    """Return rank correlations with consistency: as published, and as measured here."""
    parts = [f"## Consistency scores\n\nThere are no published scores in {FILE}: none compared."]
    if (folder / FILE).exists():
        checks = cached("cscores/order", lambda: _checks(folder))
        runs = [
            cached(f"cscores/{seed}", lambda seed=seed: _against_published(folder, seed))
            for seed in range(seeds)
        ]
        parts = _published_parts(checks, runs, *_ties(np.load(folder / FILE)))
    own = [cached(f"own/{seed}", lambda seed=seed: _own(folder, seed)) for seed in range(seeds)]
    text = (
        "The same with consistency measured here: the probability of the label under networks that "
        f"did not see the image, from four folds of the first {SMALL:,} images with their own "
        "labels."
    )
    lines = [[name, spread([one[name] for one in own])] for name in own[0]]
    return [*parts, text, table(["score", "Spearman correlation"], lines)]


def _published_parts(
    checks: dict[str, float], runs: list[dict[str, list[float]]], tied: float, best: float
) -> list[str]:
    """Return the check of the order and the table of correlations."""
    head = (
        "## Consistency scores\n\nThe published consistency scores (Jiang et al. 2021) of "
        f"{COUNT:,} images come without the images, in the order in which TensorFlow Datasets "
        "serves MNIST: sorted by the MD5 of `train` followed by the image's place. An easiness "
        "that needs no model shows that this is the order: by how much an image is nearer to the "
        "mean of its own class than to that of the nearest other. Its Spearman correlation is"
    )
    text = (
        f"Spearman correlation of every score with them, {len(runs)} seeds, after some epochs of "
        "training on all images with their own labels. All scores are turned so that larger is "
        "more suspicious, and a consistent image is easy, so that correlations are expected to be "
        f"negative. {tied:.1%} of the images have a consistency of 1 and share a rank, so that an "
        f"order without ties has at most {best:.3f}. Forgetting is counted over as many epochs; "
        "held-out scores are from four folds."
    )
    rows = [
        [name, *(spread([run[name][k] for run in runs]) for k in range(len(EPOCHS)))]
        for name in sorted(runs[0], key=lambda name: mean(run[name][-1] for run in runs))
    ]
    order = table(["order", "correlation"], [[n, f"{value:.3f}"] for n, value in checks.items()])
    return [head, order, text, table(["score", *(f"epoch {epoch}" for epoch in EPOCHS)], rows)]


def _ties(values: np.ndarray) -> tuple[float, float]:
    """Return the share of images with the largest score, and the best correlation even so."""
    best = np.argsort(np.argsort(values, kind="stable"))
    return float((values == values.max()).mean()), _rank_correlation(best, values)


def _checks(folder: Path) -> dict[str, float]:
    """Return how an easiness without a model correlates with the scores in each order."""
    problem = mnist(folder, num_train=COUNT, seed=0)
    rows, labels = problem.inputs, problem.true
    means = torch.stack([rows[labels == c].mean(0) for c in range(problem.num_classes)])
    distances = torch.cdist(rows, means)
    own = distances.gather(1, labels[:, None])[:, 0]
    others = distances.scatter(1, labels[:, None], torch.inf).min(1).values
    margins = (others - own).numpy()
    values = np.load(folder / FILE)
    other = np.empty_like(values)
    other[served_order(COUNT, "test")] = values
    orders = {
        "of the file": values,
        "by the hash with `test`": other,
        "by the hash with `train`": published(folder),
    }
    return {name: _rank_correlation(margins, some) for name, some in orders.items()}


def _against_published(folder: Path, seed: int) -> dict[str, list[float]]:
    """Return the correlation of every score after every epoch that counts."""
    problem, known = _clean(folder, COUNT, seed), published(folder)
    found: dict[str, list[float]] = {}
    history = LearningHistory(np.arange(COUNT))
    for epoch, model in enumerate(training(problem, problem.given, max(EPOCHS), seed), 1):
        with torch.no_grad():
            right = model(problem.inputs).argmax(1) == problem.given
        history.update(np.arange(COUNT), right.numpy())
        if epoch in EPOCHS:
            scores: Suspicion = one_pass(problem, Classification(model), seed)
            scores |= {name: history.scores()[name].values for name in LEARNT}
            scores |= held_out(replace(problem, score_epoch=epoch), seed, None)
            for name, values in scores.items():
                found.setdefault(name, []).append(_rank_correlation(values, known))
    return found


def _own(folder: Path, seed: int) -> dict[str, float]:
    """Return correlations with the probability under networks that did not see an image."""
    problem = _clean(folder, SMALL, seed)
    *_, model = training(problem, problem.given, problem.score_epoch, seed)
    found = one_pass(problem, Classification(model), seed)
    consistent = -held_out(problem, seed, None)["held-out probability"]
    names = ("EL2N", "loss", "GraNd", "self-influence", "weight alignment", "agreement in class")
    return {name: _rank_correlation(found[name], consistent) for name in names}


def _clean(folder: Path, count: int, seed: int) -> Problem:
    """Return images with their own labels."""
    flipped = mnist(folder, num_train=count, seed=seed)
    return replace(flipped, given=flipped.true)


def _rank_correlation(left: np.ndarray, right: np.ndarray) -> float:
    """Return Spearman's correlation."""
    return float(spearmanr(left, right)[0])  # pyright: ignore[reportArgumentType]
