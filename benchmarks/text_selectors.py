"""Ways to choose texts for a target, all behind one signature.

Each takes the raw rows (mappings with ``id`` and ``text``), texts of the target, a budget of
tokens and a seed, and returns ids, best first, at least as many as fill the budget or all it
would choose. A new method is a function here and a line in ``METHODS``.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import bm25s
import numpy as np
from sklearn.feature_extraction.text import HashingVectorizer
from sklearn.linear_model import LogisticRegression

from projections import TfidfSVD
from selection import DSIR, GIO, HashedNgrams

Rows = Sequence[Mapping[str, Any]]
Method = Callable[[Rows, Sequence[str], int, int], np.ndarray]
NUM_DIMS = 64  # of embeddings
NUM_CENTROIDS = 500
NUM_QUERIES = 100  # target texts that are asked for by BM25


def at_random(raw: Rows, target: Sequence[str], budget: int, seed: int) -> np.ndarray:
    """Return all ids in random order."""
    return np.random.default_rng(seed).permutation(ids_of(raw))


def dsir(**settings: Any) -> Method:
    """Return DSIR with these settings; ``temperature`` is that of the draw."""
    temperature = settings.pop("temperature", 1.0)

    def choose(raw: Rows, target: Sequence[str], budget: int, seed: int) -> np.ndarray:
        fitted = DSIR(min_length=20, seed=seed, **settings).fit(list(raw), list(target))
        return fitted.select(list(raw), num_selected=len(raw), temperature=temperature).ids

    return choose


def bm25(raw: Rows, target: Sequence[str], budget: int, seed: int) -> np.ndarray:
    """Order by the mean BM25 score for texts of the target."""
    random = np.random.default_rng(seed)
    asked = random.choice(len(target), min(NUM_QUERIES, len(target)), replace=False)
    words = bm25s.tokenize([row["text"] for row in raw], show_progress=False)
    index = bm25s.BM25()
    index.index(words, show_progress=False)
    queries = bm25s.tokenize([target[n] for n in asked], return_ids=False, show_progress=False)
    scores = np.mean([index.get_scores(sorted(set(query))) for query in queries], axis=0)
    return ids_of(raw)[np.argsort(-scores, kind="stable")]


def classifier(raw: Rows, target: Sequence[str], budget: int, seed: int) -> np.ndarray:
    """Order by a linear classifier of hashed words and pairs: target against random rows."""
    features = HashingVectorizer(ngram_range=(1, 2), n_features=2**18, alternate_sign=False)
    random = np.random.default_rng(seed)
    others = random.choice(len(raw), min(len(raw), 2 * len(target)), replace=False)
    known = [*target, *(raw[n]["text"] for n in others)]
    labels = np.arange(len(known)) < len(target)
    model = LogisticRegression(C=100.0, max_iter=1000)
    model.fit(features.transform(known), labels)
    scores = model.decision_function(features.transform([row["text"] for row in raw]))
    return ids_of(raw)[np.argsort(-scores, kind="stable")]


def embeddings(raw: Rows, target: Sequence[str], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return unit TF-IDF + SVD embeddings of raw rows and targets, fitted to the raw rows."""
    encoder = TfidfSVD(num_dims=NUM_DIMS, seed=seed).fit(list(raw))
    parts = encoder([row["text"] for row in raw]), encoder(list(target))
    found = [
        part / np.maximum(np.linalg.norm(part, axis=1, keepdims=True), 1e-12) for part in parts
    ]
    return found[0], found[1]


def similarity(raw: Rows, target: Sequence[str], budget: int, seed: int) -> np.ndarray:
    """Order by the cosine with the mean embedding of the target."""
    rows, wanted = embeddings(raw, target, seed)
    return ids_of(raw)[np.argsort(-(rows @ wanted.mean(0)), kind="stable")]


def gio(estimate: Any) -> Method:
    """Return GIO with this estimate of the divergence."""

    def choose(raw: Rows, target: Sequence[str], budget: int, seed: int) -> np.ndarray:
        rows, wanted = embeddings(raw, target, seed)
        number = min(NUM_CENTROIDS, len(wanted) // 2)
        path = GIO(estimate=estimate, num_centroids=number, seed=seed).fit(rows, wanted)
        chosen = path.select(num_selected=len(raw))
        return ids_of(raw)[chosen.positions(rows)]

    return choose


METHODS: dict[str, Method] = {
    "random": at_random,
    "DSIR": dsir(),
    "DSIR, smoothing 1": dsir(smoothing=1.0),
    "DSIR, smoothing 1, mean, temperature 0": dsir(smoothing=1.0, length="mean", temperature=0.0),
    "DSIR, unigrams": dsir(ngrams=HashedNgrams(order=1), smoothing=1.0),
    "GIO, knn": gio("knn"),
    "GIO, published": gio("published"),
    "GIO, coverage": gio("coverage"),
    "GIO, nearest-discarded": gio("nearest-discarded"),
    "BM25": bm25,
    "linear classifier": classifier,
    "TF-IDF + SVD cosine": similarity,
}
"""Methods by the name of their row."""


def ids_of(raw: Rows) -> np.ndarray:
    """Return the ids of rows."""
    return np.array([row["id"] for row in raw])


def _unit(rows: np.ndarray) -> np.ndarray:
    """Return rows of length one."""
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
