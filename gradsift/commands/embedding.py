"""Where the commands that compare rows get an embedding of each from."""

import json
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

import numpy as np
import transformers

from gradsift.clusters import dataset_on_ray, join_cluster
from gradsift.models import pick_device
from projections import (
    ON_RAY,
    ColumnEncoder,
    DataError,
    Embeddings,
    Encoder,
    GradientStore,
    HiddenStates,
    Rows,
    SentenceEncoder,
    TfidfSVD,
    as_embeddings,
    check_at_least,
    describe,
    embed,
)

EncoderName = Literal["tfidf", "column", "npy", "store", "sentence-transformers", "hidden-states"]
NAMED = ("column", "npy", "store", "sentence-transformers", "hidden-states")


@dataclass(frozen=True, kw_only=True)
class EmbeddingSource:
    """How rows become vectors."""

    encoder: EncoderName = "tfidf"
    """tfidf: words, compressed, no model needed; column: vectors that the data holds; npy: a
    matrix in a file, in the order of the data; store: gradients indexed by `gradsift index`;
    sentence-transformers: such a model; hidden-states: the mean hidden state of any other."""

    embeddings: str | None = None
    """The column, the .npy file, the folder of the index, or the model's folder or name."""

    text_column: str = "text"
    """The column with the text."""

    num_dims: int = 128
    """Dimensions of tfidf."""

    max_length: int = 512
    """Tokens after which hidden-states cuts a text."""

    batch_size: int = 64
    """Rows that are embedded at a time."""

    device: str = "auto"
    """Where models compute; "auto" takes a GPU if there is one."""

    ray: str | None = None
    """Address of a Ray cluster that encodes and compares rows, such as auto, or local for one on
    this machine. The choice is the same."""

    cache: Path | None = None
    """Folder that keeps the embeddings for later runs; else they go when the run has ended."""


EMBEDDING = EmbeddingSource()


@dataclass(frozen=True)
class Corpus:
    """One dataset that is to be embedded.

    Args:
        name: What its vectors are kept under.
        data: The rows.
        embeddings: Its own .npy file or index, where the encoder reads such.
    """

    name: str
    data: Any
    embeddings: str | None = None


def embed_all(
    source: EmbeddingSource, corpora: Sequence[Corpus], *, out: Path, seed: int
) -> list[Embeddings]:
    """Return the embeddings of some datasets by one encoder.

    Args:
        source: How.
        corpora: The datasets.
        out: The command's output; unfinished work is kept beside it.
        seed: Seed of what is random in an encoder.

    Raises:
        DataError: A file or a column does not hold one vector a row.
        ValueError: It is not said which model, file or column.
    """
    check_at_least("batch_size", source.batch_size, 1)
    if source.encoder in NAMED and source.embeddings is None:
        raise ValueError(
            f"`--embeddings` must be given with `--encoder {source.encoder}`, and says which."
        )
    if source.ray is not None and source.cache is not None:
        raise ValueError("`--cache` must be left out with `--ray`, which keeps no shards.")
    if source.encoder in ("npy", "store"):
        found = [_read(source, corpus) for corpus in corpora]
        return found if source.ray is None else _by_cluster(found, source.ray)
    encoder = _encoder(source, corpora, seed)
    if source.ray is not None:
        given = [dataset_on_ray(corpus.data, source.ray) for corpus in corpora]
        return [embed(data, encoder, batch_size=source.batch_size) for data in given]
    key = sha256(json.dumps(describe(encoder), sort_keys=True).encode()).hexdigest()[:8]
    folder = source.cache or work_folder(out)
    return [
        embed(
            corpus.data,
            encoder,
            path=folder / f"{corpus.name}-{key}",  # other encoders are kept beside it
            batch_size=source.batch_size,
        )
        for corpus in corpora
    ]


def _by_cluster(found: list[Embeddings], address: str) -> list[Embeddings]:
    """Return embeddings that a cluster compares."""
    join_cluster(address)
    return [replace(one, workers=ON_RAY) for one in found]


def work_folder(out: Path) -> Path:
    """Return where unfinished work for an output is kept."""
    return out.with_name(out.name + ".work")


def remove_work(out: Path) -> None:
    """Remove what was kept for a run that has ended."""
    with suppress(FileNotFoundError):
        shutil.rmtree(work_folder(out))


def _encoder(source: EmbeddingSource, corpora: Sequence[Corpus], seed: int) -> Encoder:
    """Return the encoder of this name."""
    name, column = source.embeddings or "", source.text_column
    if source.encoder == "tfidf":
        rows = [row for corpus in corpora for row in corpus.data]
        return TfidfSVD(num_dims=source.num_dims, text_column=column, seed=seed).fit(rows)
    if source.encoder == "column":
        return ColumnEncoder(column=name)
    if source.encoder == "sentence-transformers":
        return SentenceEncoder(
            model=name, text_column=column, device=str(pick_device(source.device))
        )
    try:
        model = transformers.AutoModel.from_pretrained(name)
        tokenizer = transformers.AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise DataError(
            f"`--embeddings` must be a folder or a name of a Hugging Face model and its "
            f"tokenizer. {name!r} cannot be loaded: {error}"
        ) from error
    return HiddenStates(
        model=model.to(pick_device(source.device)).eval(),
        tokenizer=tokenizer,
        text_column=column,
        max_length=source.max_length,
    )


def _read(source: EmbeddingSource, corpus: Corpus) -> Embeddings:
    """Return vectors that are on disk already."""
    path, ids = Path(corpus.embeddings or source.embeddings or ""), Rows(corpus.data).ids
    if source.encoder == "npy":
        try:
            rows = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise DataError(
                f"{path} must be a .npy file with one vector a row, and cannot be read: {error}"
            ) from error
        if len(rows) != len(ids):
            raise DataError(
                f"{path} must have one vector for each of the {len(ids):,} rows of the "
                f"{corpus.name} data. It has {len(rows):,}."
            )
        return Embeddings(np.asarray(rows), ids, {"embeddings": str(path)})
    inner = path / "store"
    found = as_embeddings(GradientStore.open(inner if inner.exists() else path))
    if not np.array_equal(found.ids, ids):
        raise DataError(
            f"{path} must be a store of the {corpus.name} data. Its ids differ. Index this data."
        )
    return found
