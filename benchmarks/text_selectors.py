"""Ways to choose texts for a target, all behind one signature.

Each takes what there is to choose from and returns ids, best first, at least as many as fill a
budget or all it would choose. A new method is a function here and a line in ``METHODS``.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import bm25s
import numpy as np
from sklearn.feature_extraction.text import HashingVectorizer
from sklearn.linear_model import LogisticRegression

from projections import TfidfSVD
from selection import DSIR, GIO, DataShare, HashedNgrams, Increase

NUM_DIMS = 64  # of embeddings
NUM_CENTROIDS = 500
NUM_QUERIES = 100  # target texts that are asked for by BM25


@dataclass(frozen=True)
class Question:
    """What is chosen from, and for what.

    Args:
        raw: Mappings with ``id`` and ``text``.
        target: Texts like those that are wanted.
        seed: Seed of what is random.
    """

    raw: Sequence[Mapping[str, Any]]
    target: Sequence[str]
    seed: int

    @cached_property
    def ids(self) -> np.ndarray:
        """The ids of the raw rows."""
        return np.array([row["id"] for row in self.raw])

    @cached_property
    def embeddings(self) -> tuple[np.ndarray, np.ndarray]:
        """Unit TF-IDF + SVD embeddings of raw rows and targets, fitted to the raw rows."""
        encoder = TfidfSVD(num_dims=NUM_DIMS, seed=self.seed).fit(list(self.raw))
        parts = encoder([row["text"] for row in self.raw]), encoder(list(self.target))
        rows, wanted = (
            part / np.maximum(np.linalg.norm(part, axis=1, keepdims=True), 1e-12) for part in parts
        )
        return rows, wanted

    def ordered(self, scores: np.ndarray) -> np.ndarray:
        """Return the ids by score, largest first."""
        return self.ids[np.argsort(-scores, kind="stable")]


Method = Callable[[Question], np.ndarray]


def at_random(asked: Question) -> np.ndarray:
    """Return all ids in random order."""
    return np.random.default_rng(asked.seed).permutation(asked.ids)


def dsir(**settings: Any) -> Method:
    """Return DSIR with these settings; ``temperature`` is that of the draw."""
    temperature = settings.pop("temperature", 1.0)

    def choose(asked: Question) -> np.ndarray:
        raw = list(asked.raw)
        fitted = DSIR(min_length=20, seed=asked.seed, **settings).fit(raw, list(asked.target))
        return fitted.select(raw, num_selected=len(raw), temperature=temperature).ids

    return choose


def bm25(asked: Question) -> np.ndarray:
    """Order by the mean BM25 score for texts of the target."""
    random = np.random.default_rng(asked.seed)
    number = min(NUM_QUERIES, len(asked.target))
    words = bm25s.tokenize([row["text"] for row in asked.raw], show_progress=False)
    index = bm25s.BM25()
    index.index(words, show_progress=False)
    picked: list[int] = random.choice(len(asked.target), number, replace=False).tolist()
    texts = [asked.target[n] for n in picked]
    queries: Any = bm25s.tokenize(texts, return_ids=False, show_progress=False)
    scores = np.mean([index.get_scores(sorted(set(query))) for query in queries], axis=0)
    return asked.ordered(scores)


def classifier(asked: Question) -> np.ndarray:
    """Order by a linear classifier of hashed words and pairs: target against random rows."""
    features = HashingVectorizer(ngram_range=(1, 2), n_features=2**18, alternate_sign=False)
    random = np.random.default_rng(asked.seed)
    number = min(len(asked.raw), 2 * len(asked.target))
    others = random.choice(len(asked.raw), number, replace=False)
    known = [*asked.target, *(asked.raw[n]["text"] for n in others)]
    labels = np.arange(len(known)) < len(asked.target)
    model = LogisticRegression(C=100.0, max_iter=1000)
    model.fit(features.transform(known), labels)
    texts = [row["text"] for row in asked.raw]
    return asked.ordered(model.decision_function(features.transform(texts)))


def similarity(asked: Question) -> np.ndarray:
    """Order by the cosine with the mean embedding of the target."""
    rows, wanted = asked.embeddings
    return asked.ordered(rows @ wanted.mean(0))


def gio(estimate: Any, stop: Any = None) -> Method:
    """Return GIO with this estimate of the divergence."""

    def choose(asked: Question) -> np.ndarray:
        rows, wanted = asked.embeddings
        number = min(NUM_CENTROIDS, len(wanted) // 2)
        path = GIO(
            estimate=estimate, num_centroids=number, stop=stop or Increase(), seed=asked.seed
        ).fit(rows, wanted)
        return asked.ids[path.select(num_selected=len(rows)).positions(rows)]

    return choose


METHODS: dict[str, Method] = {
    "random": at_random,
    "DSIR": dsir(),
    "DSIR, smoothing 1": dsir(smoothing=1.0),
    "DSIR, smoothing 1, mean, temperature 0": dsir(smoothing=1.0, length="mean", temperature=0.0),
    "DSIR, unigrams": dsir(ngrams=HashedNgrams(order=1), smoothing=1.0),
    "GIO, knn": gio("knn"),
    "GIO, published": gio("published"),
    "GIO, published, no stop": gio("published", DataShare(1.0)),
    "GIO, coverage": gio("coverage"),
    "GIO, nearest-discarded": gio("nearest-discarded"),
    "BM25": bm25,
    "linear classifier": classifier,
    "TF-IDF + SVD cosine": similarity,
}
"""Methods by the name of their row."""
