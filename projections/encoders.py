"""Encoders: functions from rows to embeddings, ready-made.

Letters: ``n`` rows, ``t`` tokens, ``d`` dimensions, ``v`` words.

Each is a function of one row alone, so batches and shards change nothing. A row is a text,
or a mapping with a text column.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import nn

from projections.checks import check_at_least, require
from projections.errors import DataError
from projections.fingerprint import fingerprint_model
from projections.tasks.classification import missing_column

INSTALL_SENTENCES = "pip install sentence-transformers"


@dataclass(frozen=True, kw_only=True)
class ColumnEncoder:
    """Embeddings that rows hold already, in a column of lists of numbers.

    Args:
        column: Name of the column.

    Example:
        >>> ColumnEncoder(column="v")([{"v": [1.0, 2.0]}])
        array([[1., 2.]], dtype=float32)
    """

    column: str

    def __call__(self, rows: Sequence[Any]) -> Float[np.ndarray, "n d"]:
        """Return the vectors.

        Raises:
            DataError: A row has none, or one of another length.
        """
        vectors = [_field(row, self.column) for row in rows]
        for row, vector in zip(rows, vectors, strict=True):
            length = len(vector) if hasattr(vector, "__len__") else None
            if length is None or isinstance(vector, str) or length != len(vectors[0]):
                raise DataError(
                    f"column {self.column!r} must hold a list of numbers of the same length in "
                    f"every row. Got {vector!r:.80} in {row!r:.120}."
                )
        return np.asarray(vectors, dtype=np.float32)


@dataclass(frozen=True, kw_only=True)
class SentenceEncoder:
    """Embeddings of texts by a `sentence-transformers` model.

    Args:
        model: A loaded ``SentenceTransformer``, or the name or folder of one.
        text_column: Name of the column with the text.
        device: Where one that is loaded by name computes; where there is a GPU unless given.

    Raises:
        ImportError: A name is given and the package is not installed.
        DataError: There is no such model.
    """

    model: Any
    text_column: str = "text"
    device: str | None = None

    def __call__(self, rows: Sequence[Any]) -> Float[np.ndarray, "n d"]:
        """Return the vectors."""
        found = self._loaded.encode(
            texts_of(rows, self.text_column), convert_to_numpy=True, show_progress_bar=False
        )
        return np.asarray(found, dtype=np.float32)

    @cached_property
    def _loaded(self) -> Any:
        """The model itself."""
        if not isinstance(self.model, str):
            return self.model
        sentences = require("sentence_transformers", INSTALL_SENTENCES)
        try:
            return sentences.SentenceTransformer(self.model, device=self.device)
        except (OSError, ValueError) as error:
            raise DataError(
                f"`model` must be a folder or a name of a sentence-transformers model. "
                f"{self.model!r} cannot be loaded: {error}"
            ) from error

    def describe(self) -> dict[str, Any]:
        """Return what tells this encoder from another."""
        loaded = self._loaded
        name = fingerprint_model(loaded) if isinstance(loaded, nn.Module) else repr(self.model)
        return {"kind": "SentenceEncoder", "model": name, "text_column": self.text_column}


@dataclass(frozen=True, kw_only=True)
class HiddenStates:
    """The mean hidden state of a Hugging Face model over the tokens of a text.

    Args:
        model: A model that can return ``hidden_states``, in evaluation mode.
        tokenizer: Its tokenizer.
        layer: Which hidden state; -1 is the last, 0 the embeddings.
        text_column: Name of the column with the text.
        max_length: Number of tokens after which a text is cut.
    """

    model: nn.Module
    tokenizer: Any
    layer: int = -1
    text_column: str = "text"
    max_length: int = 512

    def __post_init__(self) -> None:
        """Refuse a model that would answer differently every time."""
        check_at_least("max_length", self.max_length, 1)
        if self.model.training:
            raise ValueError(
                "`model` must be in evaluation mode, since dropout would change its embeddings. "
                "Call `model.eval()`."
            )

    @torch.no_grad()
    def __call__(self, rows: Sequence[Any]) -> Float[np.ndarray, "n d"]:
        """Return the vectors.

        Raises:
            DataError: A row has no text, or its text no tokens.
        """
        texts = texts_of(rows, self.text_column)
        encoded = [
            self.tokenizer(text, truncation=True, max_length=self.max_length)["input_ids"]
            for text in texts
        ]
        if empty := [text for text, ids in zip(texts, encoded, strict=True) if not ids]:
            raise DataError(f"every text must have a token. {empty[0]!r} has none.")
        device = next(self.model.parameters()).device
        ids = torch.zeros(len(encoded), max(map(len, encoded)), dtype=torch.int64)
        mask = torch.zeros_like(ids)
        for row, tokens in enumerate(encoded):
            ids[row, : len(tokens)] = torch.as_tensor(tokens)
            mask[row, : len(tokens)] = 1
        output = self.model(
            input_ids=ids.to(device), attention_mask=mask.to(device), output_hidden_states=True
        )
        states = output.hidden_states[self.layer].float()
        weights = mask.to(device, torch.float32)[:, :, None]
        return ((states * weights).sum(1) / weights.sum(1)).cpu().numpy()

    def describe(self) -> dict[str, Any]:
        """Return what tells this encoder from another."""
        return {
            "kind": "HiddenStates",
            "model": fingerprint_model(self.model),
            "layer": self.layer,
            "text_column": self.text_column,
            "max_length": self.max_length,
        }


@dataclass(frozen=True, kw_only=True)
class TfidfSVD:
    """Words of a text, weighted by rarity and compressed by a singular value decomposition.

    Needs no model. Words that occur in one text only are left out.

    Args:
        num_dims: Number ``d`` of dimensions, at most the number of words less one.
        max_words: Number ``v`` of words that count, the most frequent ones.
        text_column: Name of the column with the text.
        seed: Seed of the randomised decomposition.

    Example:
        >>> texts = ["a cat sat", "a cat ran", "dogs ran far", "dogs sat far"]
        >>> TfidfSVD(num_dims=2, seed=0).fit(texts)(texts[:1]).shape
        (1, 2)

    References:
        Deerwester et al., Indexing by latent semantic analysis (JASIS 1990).
    """

    num_dims: int = 128
    max_words: int = 50_000
    text_column: str = "text"
    seed: int

    def fit(self, rows: Sequence[Any]) -> "FittedTfidfSVD":
        """Learn words, their rarity and the decomposition.

        Args:
            rows: Texts, or rows with a text column; for several datasets, those of all.

        Raises:
            DataError: A row has no text.
            ValueError: The texts have too few words for so many dimensions.
        """
        text = require("sklearn.feature_extraction.text", "pip install scikit-learn")
        linear = require("sklearn.decomposition", "pip install scikit-learn")
        words = text.TfidfVectorizer(
            sublinear_tf=True, min_df=2, max_features=self.max_words, dtype=np.float32
        )
        texts = texts_of(rows, self.text_column)
        try:
            counts = words.fit_transform(texts)
        except ValueError as error:
            raise ValueError(
                f"the texts must share words. Of {len(texts)} texts no two share one: {error}"
            ) from error
        if counts.shape[1] <= self.num_dims:
            raise ValueError(
                f"`num_dims` must be less than the number of words that two texts share, "
                f"{counts.shape[1]}. Got {self.num_dims}."
            )
        svd = linear.TruncatedSVD(self.num_dims, random_state=self.seed).fit(counts)
        return FittedTfidfSVD(words, svd.components_.astype(np.float32), self)


@dataclass(frozen=True)
class FittedTfidfSVD:
    """An encoder made by `TfidfSVD.fit`.

    Args:
        words: The fitted vectoriser.
        components: The directions that are kept, ``d v``.
        settings: What it was fitted with.
    """

    words: Any
    components: Float[np.ndarray, "d v"]
    settings: TfidfSVD

    def __call__(self, rows: Sequence[Any]) -> Float[np.ndarray, "n d"]:
        """Return the vectors; a text without known words gets zeros."""
        counts = self.words.transform(texts_of(rows, self.settings.text_column))
        return np.asarray(counts @ self.components.T, dtype=np.float32)

    def describe(self) -> dict[str, Any]:
        """Return what tells this encoder from another."""
        digest = sha256(np.ascontiguousarray(self.components).tobytes())
        digest.update(" ".join(self.words.get_feature_names_out()).encode())
        return {
            "kind": "TfidfSVD",
            "num_dims": len(self.components),
            "text_column": self.settings.text_column,
            "fitted": digest.hexdigest()[:16],
        }


def texts_of(rows: Sequence[Any], column: str) -> list[str]:
    """Return the text of each row.

    Raises:
        DataError: A row has no such column, or it holds no text.
    """
    return [_text(row, column) for row in rows]


def _text(row: Any, column: str) -> str:
    """Return the text of one row."""
    value = row if isinstance(row, str) else _field(row, column)
    if not isinstance(value, str):
        raise DataError(f"column {column!r} must hold text. Got {value!r:.80} in {row!r:.120}.")
    return value


def _field(row: Any, column: str) -> Any:
    """Return one field of a row."""
    if not isinstance(row, Mapping):
        raise DataError(
            f"rows must be mappings with the column {column!r}. Got {type(row).__name__}."
        )
    if column not in row:
        raise DataError(missing_column(column, row))
    return row[column]
