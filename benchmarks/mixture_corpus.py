"""Text in domains and a small language model, for the benchmarks of mixtures.

Domains are k-means clusters of documents of all sources together, as in the paper: nothing
but the text says what a document is about. Without a folder of ``*.jsonl.gz`` (one source
a file, a field ``text``), sources are made up, which is enough to see that a benchmark runs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from domain_texts import byte_pairs, small_llama
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.preprocessing import normalize
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional
from transformers import LlamaForCausalLM

from projections import Embeddings, read_dataset
from selection import Centers, KMeans, cluster_centers

VOCABULARY = 1024
LENGTH = 64  # tokens of a passage
MOST_PASSAGES = 4  # of a document
NUM_TEST = 64  # passages of the target that measure its perplexity
Row = dict[str, list[int]]


@dataclass(frozen=True)
class Corpus:
    """Passages of equal length.

    Args:
        domains: Training passages by cluster.
        target: Passages of the few held-out documents that say what the target is.
        test: Other passages of the target's source.
        others: Held-out passages of the other sources.
        histogram: Share of the target's documents in each cluster.
        centers: The clusters.
    """

    domains: dict[str, list[Row]]
    target: list[Row]
    test: list[Row]
    others: list[Row]
    target_vectors: np.ndarray
    centers: Centers


def read_sources(folder: Path | None, seed: int) -> dict[str, list[str]]:
    """Return the documents of each source, in random order."""
    if folder is None:
        return _made_up(seed)
    random = np.random.default_rng(seed)
    sources = {}
    for file in sorted(folder.glob("*.jsonl.gz")):
        texts = read_dataset(str(file))["text"]
        sources[file.name.partition(".")[0]] = [texts[i] for i in random.permutation(len(texts))]
    return sources


def build_corpus(
    sources: dict[str, list[str]],
    target: str,
    *,
    num_target: int,
    num_generic: int,
    num_domains: int,
    seed: int,
    length: int = LENGTH,
) -> Corpus:
    """Cluster the generic documents and cut all documents into passages.

    Args:
        sources: Documents by source.
        target: The source to specialise to; its generic documents are among the rest.
        num_target: Documents that say what the target is.
        num_generic: Most documents of each source to train on.
        num_domains: Number of clusters.
        seed: Decides the clusters.
        length: Tokens of a passage.
    """
    held = {name: texts[:150] for name, texts in sources.items()}
    generic = [text for texts in sources.values() for text in texts[150 : 150 + num_generic]]
    encoder = byte_pairs([text[:2000] for text in generic[::2]], VOCABULARY)
    shown = [text for text in held[target] if passages(encoder, [text], length)][:num_target]
    words = TfidfVectorizer(max_features=20_000, sublinear_tf=True).fit(generic)
    rows: Any = words.transform(generic)
    squeezed = TruncatedSVD(min(64, rows.shape[1] - 1), random_state=seed).fit(rows)
    vectors: Any = normalize(squeezed.transform(rows))
    clusters = KMeans(num_clusters=num_domains, spherical=True, seed=seed)
    centers = cluster_centers(clusters.fit(Embeddings(vectors)), unit_length=True)
    places = centers.nearest(vectors)
    found = {
        name: passages(encoder, [generic[at] for at in np.flatnonzero(places == place)], length)
        for place, name in enumerate(centers.names)
    }
    kept = [place for place, name in enumerate(centers.names) if found[name]]
    names = tuple(centers.names[place] for place in kept)
    others = [text for name, texts in held.items() if name != target for text in texts[:20]]
    return Corpus(
        {name: found[name] for name in names},
        passages(encoder, shown, length),
        passages(encoder, held[target][50:], length)[:NUM_TEST],
        passages(encoder, others, length)[: 2 * NUM_TEST],
        squeezed.transform(words.transform(shown)),
        Centers(names, centers.points[kept], unit_length=True),
    )


def passages(tokenizer: Tokenizer, texts: Sequence[str], length: int) -> list[Row]:
    """Cut documents into passages; what is shorter than one is left out."""
    rows = []
    for encoding in tokenizer.encode_batch([text[:4000] for text in texts]):
        ids = encoding.ids
        ends = range(length, min(len(ids), MOST_PASSAGES * length) + 1, length)
        rows += [{"input_ids": ids[end - length : end]} for end in ends]
    return rows


def build_model(*, width: int, depth: int, seed: int, length: int = LENGTH) -> LlamaForCausalLM:
    """Return an untrained model."""
    inner = width * 5 // 2
    return small_llama(VOCABULARY, length, width=width, layers=depth, seed=seed, inner_width=inner)


def stack(rows: Sequence[Row]) -> Tensor:
    """Return the tokens of passages."""
    return torch.tensor([row["input_ids"] for row in rows])


def mean_loss(model: nn.Module, tokens: Tensor) -> Tensor:
    """Return the mean loss a token."""
    logits = model(input_ids=tokens, use_cache=False).logits[:, :-1]
    return functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())


@torch.no_grad()
def perplexity(model: nn.Module, rows: Sequence[Row]) -> float:
    """Return the perplexity of passages, with dropout off."""
    was = model.training
    model.eval()
    losses: list[Any] = [mean_loss(model, part) * len(part) for part in stack(rows).split(32)]
    model.train(was)
    return float(torch.exp(torch.stack(losses).sum() / len(rows)))


def _made_up(seed: int) -> dict[str, list[str]]:
    """Return sources with words of their own."""
    random = np.random.default_rng(seed)
    sources = {}
    for number in range(4):
        words = [f"w{number}{'abcdefgh'[place % 8]}{place}" for place in range(30)]
        sources[f"source{number}"] = [" ".join(random.choice(words, 60)) for _ in range(200)]
    return sources
