"""Job 1 of the demo: find mislabelled digits by scores of one pass, and prune them.

Real images (scikit-learn's digits), a tenth of whose training labels are made wrong. A small
convolutional network is trained on them for a few epochs, every training example is scored
from one walk over the data, and the network is trained again without the worst of each score.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from sklearn.datasets import load_digits
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from torch.nn import functional

from influence import TRAK
from projections import SJLT, Classification, PassSettings, Scores, index_gradients
from selection import prune

METHODS = ("loss", "el2n", "grad_norm", "self_influence")
SHOWN = "el2n"  # score whose images the report shows
NUM_CLASSES = 10
Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class DigitsSettings:
    """Sizes of the job."""

    num_train: int = 1347
    """Training images; the others of the 1,797 are for the test."""

    flipped: float = 0.1
    """Share of the training labels that are made wrong, and share that is pruned."""

    channels: tuple[int, int] = (16, 32)
    """Channels of the two convolutions."""

    epochs: int = 16
    """Epochs of a training."""

    batch_size: int = 128
    """Images in a step of training."""

    learning_rate: float = 4e-3
    """Of AdamW."""

    score_epochs: tuple[int, ...] = (1, 2, 4, 8, 16)
    """Epochs after which the examples are scored, to see how the moment matters."""

    score_epoch: int = 4
    """The one of them whose scores are used; chosen on seeds that the demo does not use."""

    num_dims: int = 1024
    """Dimensions of the sketch behind self-influence."""

    num_shown: int = 10
    """Images of each kind that the report shows."""


@dataclass(frozen=True)
class Digits:
    """One split of the images, with some training labels made wrong.

    Args:
        images: All training images, ``n 1 8 8``.
        given: Their labels, some of which are wrong.
        true: Their true labels.
        test_images: Test images.
        test_labels: Their labels.
    """

    images: Float[Tensor, "n 1 8 8"]
    given: Int[Tensor, " n"]
    true: Int[Tensor, " n"]
    test_images: Float[Tensor, "m 1 8 8"]
    test_labels: Int[Tensor, " m"]

    @property
    def flipped(self) -> Bool[np.ndarray, " n"]:
        """Which labels are wrong."""
        return (self.given != self.true).numpy()

    def rows(self) -> list[tuple[Tensor, Tensor]]:
        """Return the training set as rows of a dataset."""
        return list(zip(self.images, self.given, strict=True))


@dataclass(frozen=True)
class DigitsResult:
    """What one or more seeds gave.

    Args:
        seeds: The seeds; lists below have one entry for each.
        auc: ROC-AUC of finding the wrong labels, by method.
        precision: Share of wrong labels among the highest tenth, by method.
        accuracy: Test accuracy of the network trained on all data, without the tenth that each
            method would drop, without a random tenth, and without the wrong labels.
        found: For each method, the share of the wrong labels found (mean over seeds) by
            the time a share of the data has been looked at.
        auc_by_epoch: For each method, the mean ROC-AUC by epoch of scoring.
        galleries: Of the first seed, some images by title, with given and true label.
    """

    seeds: list[int]
    auc: dict[str, list[float]] = field(default_factory=dict)
    precision: dict[str, list[float]] = field(default_factory=dict)
    accuracy: dict[str, list[float]] = field(default_factory=dict)
    found: dict[str, list[float]] = field(default_factory=dict)
    auc_by_epoch: dict[str, list[float]] = field(default_factory=dict)
    galleries: dict[str, list[dict[str, Any]]] = field(default_factory=dict)


def run_digits(settings: DigitsSettings, *, seeds: Sequence[int], say: Say) -> DigitsResult:
    """Run the job for each seed.

    Args:
        settings: Sizes.
        seeds: Each decides the split, the wrong labels, the network and the order of training.
        say: Takes lines about progress.
    """
    result = DigitsResult(list(seeds))
    found: dict[str, list[np.ndarray]] = {name: [] for name in METHODS}
    by_epoch: dict[str, list[list[float]]] = {name: [] for name in METHODS}
    for seed in seeds:
        data = split_digits(settings, seed)
        history = score_while_training(data, settings, seed)
        scores = history[settings.score_epoch]
        for name in METHODS:
            values = scores[name].values
            order = np.argsort(-values, kind="stable")
            hits = data.flipped[order]
            _append(result.auc, name, float(roc_auc_score(data.flipped, values)))
            _append(result.precision, name, float(hits[: hits.sum()].mean()))
            found[name].append(hits.cumsum() / hits.sum())
            by_epoch[name].append(
                [float(roc_auc_score(data.flipped, s[name].values)) for s in history.values()]
            )
        for name, kept in arms(data, scores, seed).items():
            _append(result.accuracy, name, train_and_test(data, kept, settings, seed))
        if seed == seeds[0]:
            result.galleries.update(_galleries(data, scores[SHOWN], settings.num_shown))
        best = max(METHODS, key=lambda name: result.auc[name][-1])
        say(
            f"digits, seed {seed}: best ROC-AUC {result.auc[best][-1]:.4f} ({best}); test accuracy "
            f"{result.accuracy['all data'][-1]:.1%} on all data, {result.accuracy[best][-1]:.1%} "
            f"without the worst tenth by {best}, {result.accuracy['random'][-1]:.1%} without a "
            "random tenth"
        )
    for name in METHODS:
        shares = np.linspace(0, 1, 101)
        curve = np.mean(found[name], axis=0)
        places = np.round(shares * len(curve)).astype(int)
        result.found[name] = np.concatenate([[0.0], curve])[places].tolist()
        result.auc_by_epoch[name] = np.mean(by_epoch[name], axis=0).tolist()
    return result


def split_digits(settings: DigitsSettings, seed: int) -> Digits:
    """Split the images at random and make some training labels wrong."""
    bunch: Any = load_digits()
    images = torch.tensor(bunch.images / 16, dtype=torch.float32)[:, None]
    labels = torch.tensor(bunch.target, dtype=torch.int64)
    random = np.random.default_rng(seed)
    order = torch.from_numpy(random.permutation(len(images)))
    train, test = order[: settings.num_train], order[settings.num_train :]
    given = labels[train].clone()
    wrong = random.choice(len(train), round(settings.flipped * len(train)), replace=False)
    given[wrong] += torch.from_numpy(random.integers(1, NUM_CLASSES, len(wrong)))
    given %= NUM_CLASSES
    return Digits(images[train], given, labels[train], images[test], labels[test])


def score_while_training(data: Digits, settings: DigitsSettings, seed: int) -> dict[int, Scores]:
    """Train on all examples and score them after some epochs, by all methods at once."""
    return {
        epoch: score_digits(model, data, settings, seed)
        for epoch, model in training(data, np.arange(len(data.given)), settings, seed)
        if epoch in settings.score_epochs
    }


def score_digits(model: nn.Module, data: Digits, settings: DigitsSettings, seed: int) -> Scores:
    """Score every training example by loss, EL2N, gradient norm and self-influence.

    One forward and backward gives all four: the sketches of the gradients go to a store,
    in whose kernel self-influence is then a product of small matrices.
    """
    with TemporaryDirectory() as folder:
        store = index_gradients(
            Classification(model),
            data.rows(),
            SJLT(num_dims=settings.num_dims, seed=seed),
            path=folder,
            settings=PassSettings(batch_size=128),
            statistics=("loss", "el2n"),
        )
        columns = {name: store.column(name) for name in METHODS if name in store.column_names}
        columns["self_influence"] = TRAK().fit(store).self_scores()
        return Scores(store.ids, columns, provenance={"model": store.manifest["model"]})


def arms(data: Digits, scores: Scores, seed: int) -> dict[str, Int[np.ndarray, " m"]]:
    """Return which examples each training uses."""
    everything = np.arange(len(data.given))
    keep = 1 - data.flipped.mean()
    random = np.random.default_rng((seed, 1)).permutation(everything)
    pruned = {name: prune(scores[name], keep=keep, drop="highest").ids for name in METHODS}
    return {
        "all data": everything,
        **pruned,
        "random": np.sort(random[: round(keep * len(everything))]),
        "oracle": everything[~data.flipped],
    }


def train_and_test(
    data: Digits, kept: Int[np.ndarray, " m"], settings: DigitsSettings, seed: int
) -> float:
    """Return the test accuracy of a network trained on some of the examples."""
    *_, (_, model) = training(data, kept, settings, seed)
    with torch.no_grad():
        return float((model(data.test_images).argmax(1) == data.test_labels).float().mean())


def training(
    data: Digits, kept: Int[np.ndarray, " m"], settings: DigitsSettings, seed: int
) -> Iterator[tuple[int, nn.Module]]:
    """Train a network and yield it, in evaluation mode, after each epoch."""
    images, labels = data.images[kept], data.given[kept]
    model = build_network(settings.channels, seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, fused=True)
    generator = torch.Generator().manual_seed(seed)
    for epoch in range(1, settings.epochs + 1):
        order = torch.randperm(len(labels), generator=generator)
        model.train()
        for batch in order.split(settings.batch_size):
            optimizer.zero_grad()
            functional.cross_entropy(model(images[batch]), labels[batch]).backward()
            optimizer.step()
        yield epoch, model.eval()


def build_network(channels: tuple[int, int], seed: int) -> nn.Sequential:
    """Return a network of two convolutions with group normalisation, and one linear layer."""
    first, second = channels
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, first, 3, padding=1),
            nn.GroupNorm(4, first),
            nn.ReLU(),
            nn.Conv2d(first, second, 3, stride=2, padding=1),
            nn.GroupNorm(4, second),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(second * 16, NUM_CLASSES),
        )


def _galleries(data: Digits, scores: Scores, count: int) -> dict[str, list[dict[str, Any]]]:
    """Return images that one score finds suspicious, rightly and wrongly, and some it misses."""
    values, wrong = scores.values, data.flipped
    order = np.argsort(-values, kind="stable")
    highest, rest = np.split(order, [wrong.sum()])

    def describe(row: int) -> dict[str, Any]:
        return {
            "id": row,
            "pixels": (data.images[row, 0] * 16).int().tolist(),
            "given": int(data.given[row]),
            "true": int(data.true[row]),
            "score": float(values[row]),
        }

    chosen = {
        "Most suspicious of all": order,
        "False alarms: in the highest tenth, but labelled rightly": highest[~wrong[highest]],
        "Missed: labelled wrongly, but below the highest tenth": rest[wrong[rest]],
    }
    return {title: [describe(int(row)) for row in rows[:count]] for title, rows in chosen.items()}


def _append(lists: dict[str, list[float]], key: str, value: float) -> None:
    """Append to the list of a key."""
    lists.setdefault(key, []).append(value)
