"""Similarities without gradients: BM25, TF-IDF and embeddings against their formulas."""

import json
from typing import Any

import numpy as np
import pytest
from test_attribution_methods import cases, perceptron

from influence import (
    BM25,
    TFIDF,
    EmbeddingSimilarity,
    FittedInfluence,
    HiddenSimilarity,
    LabelSigned,
)
from projections import DataError, PassSettings, SentenceEncoder

TEXTS = [
    "the cat sat on the mat",
    "a dog ran after the cat",
    "dogs and cats",
    "the the the",
    "nothing of the kind",
]
QUERIES = ["where is the cat", "the dog and the dog", "unseen words"]


def bm25(k1: float, b: float) -> np.ndarray:
    """The formula in the docstring, word by word."""
    words = [text.split() for text in TEXTS]
    words = [[word for word in text if len(word) > 1] for text in words]
    mean = np.mean([len(text) for text in words])
    out = np.zeros((len(QUERIES), len(TEXTS)))
    for q, query in enumerate(QUERIES):
        for word in query.split():
            with_word = sum(word in text for text in words)
            idf = np.log(1 + (len(words) - with_word + 0.5) / (with_word + 0.5))
            for n, text in enumerate(words):
                f = text.count(word)
                out[q, n] += idf * f / (f + k1 * (1 - b + b * len(text) / mean))
    return out


@pytest.mark.parametrize(("k1", "b"), [(1.5, 0.75), (0.4, 0.0), (2.0, 1.0)])
def test_bm25_is_its_formula(k1: float, b: float) -> None:
    found = BM25(k1=k1, b=b).fit(None, TEXTS).scores(None, QUERIES, TEXTS)
    np.testing.assert_allclose(found.values, bm25(k1, b), rtol=1e-5, atol=1e-6)
    json.dumps(found.provenance)


def tfidf(queries: list[str] = QUERIES) -> np.ndarray:
    """Cosines of vectors of weighted words, word by word."""
    counts = [[word for word in text.split() if len(word) > 1] for text in TEXTS]
    vocabulary = sorted({word for text in counts for word in text})

    def vector(words: list[str]) -> np.ndarray:
        out = np.zeros(len(vocabulary))
        for place, word in enumerate(vocabulary):
            f, n = words.count(word), sum(word in text for text in counts)
            out[place] = (1 + np.log(f)) * (np.log((1 + len(TEXTS)) / (1 + n)) + 1) if f else 0
        return out / max(np.linalg.norm(out), 1e-300)

    rows = np.stack([vector(text) for text in counts])
    return np.stack([vector(query.split()) for query in queries]) @ rows.T


def test_tfidf_is_the_cosine_of_its_vectors() -> None:
    fitted = TFIDF().fit(None, TEXTS)
    found = fitted.scores(None, QUERIES, TEXTS).values
    np.testing.assert_allclose(found, tfidf(), rtol=1e-12, atol=1e-12)
    own = fitted.scores(None, TEXTS, TEXTS).values
    np.testing.assert_allclose(own, own.T)
    np.testing.assert_allclose(np.diag(own), 1)


class Lengths:
    """Stands for a sentence-transformers model: its method `encode` is all that is asked for."""

    def encode(self, texts: list[str], **how: Any) -> np.ndarray:
        assert how == {"convert_to_numpy": True, "show_progress_bar": False}
        return np.array([[len(text), text.count("a"), 1.0] for text in texts])


def embeddings_written_out() -> np.ndarray:
    """Cosines of what `Lengths` makes of texts."""
    how: Any = {"convert_to_numpy": True, "show_progress_bar": False}
    a, b = Lengths().encode(QUERIES, **how), Lengths().encode(TEXTS, **how)
    return a @ b.T / np.outer(np.linalg.norm(a, axis=1), np.linalg.norm(b, axis=1))


def test_embeddings_of_any_encoder_are_compared_by_their_cosine(tmp_path: Any) -> None:
    rows = [{"id": str(n), "text": text} for n, text in enumerate(TEXTS)]
    method = EmbeddingSimilarity(encoder=SentenceEncoder(model=Lengths()), path=tmp_path / "kept")
    fitted = method.fit(None, rows)
    found = fitted.scores(None, QUERIES, rows)
    np.testing.assert_allclose(found.values, embeddings_written_out(), rtol=1e-5)
    assert found.ids.tolist() == ["0", "1", "2", "3", "4"]
    assert isinstance(fitted, FittedInfluence) and (tmp_path / "kept").exists()
    json.dumps(found.provenance)


def test_an_embedding_of_zeros_is_like_nothing() -> None:
    rows = [np.zeros(2), np.ones(2)]
    fitted = EmbeddingSimilarity(encoder=np.stack).fit(None, rows)
    np.testing.assert_allclose(fitted.scores(None, rows, rows).values, [[0, 0], [0, 1]], rtol=1e-6)


def test_impossible_settings_and_rows_are_refused() -> None:
    with pytest.raises(ValueError, match=r"`b` must be in \[0, 1\]\. Got 2"):
        BM25(b=2)
    with pytest.raises(ValueError, match=r"`k1` must be at least 0\. Got -1"):
        BM25(k1=-1)
    with pytest.raises(DataError, match="column 'text'"):
        BM25().fit(None, [{"body": "a"}])
    with pytest.raises(DataError, match=r"the label in the column 'label'.*Name another"):
        LabelSigned(method=TFIDF()).fit(None, [{"text": "a b"}])
    task, train, _ = perceptron()
    with pytest.raises(ValueError, match=r"`layer` must be a layer of the model\. Got 'head'"):
        HiddenSimilarity(layer="head").fit(task, train)


def test_hidden_states_are_means_over_real_tokens_whatever_the_batches() -> None:
    task, data = cases.build("llama-left-padding", 5)
    whole = HiddenSimilarity().fit(task, data)
    alone = HiddenSimilarity().fit(task, data, settings=PassSettings(batch_size=1, shard_size=2))
    assert whole.layer == "lm_head"
    np.testing.assert_allclose(whole.embeddings.rows, alone.embeddings.rows, rtol=1e-4, atol=1e-6)
