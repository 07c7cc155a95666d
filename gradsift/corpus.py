"""Text of several domains that every Python ships: its library's packages and its manual.

Files are cut into passages of equal length in tokens; some of each domain are held out.
"""

import sysconfig
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from projections import DataError

MANUAL = "manual"
Passage = Mapping[str, Any]
"""Id, ``input_ids``, text, domain and module."""


@dataclass(frozen=True, kw_only=True)
class CorpusSettings:
    """Sizes of the corpus."""

    packages: tuple[str, ...] = (
        "asyncio",
        "email",
        "http",
        "importlib",
        "logging",
        "multiprocessing",
        "unittest",
        "xml",
    )
    """Packages of the standard library that are domains, beside the manual."""

    vocab_size: int = 2048
    """Tokens of the byte-pair vocabulary."""

    length: int = 96
    """Tokens of a passage."""

    num_train: int = 120
    """Training passages of each domain."""

    num_held_out: int = 24
    """Held-out passages of each domain."""


@dataclass(frozen=True)
class Corpus:
    """Passages and the tokenizer that made them.

    Args:
        tokenizer: The tokenizer.
        train: Training passages.
        held_out: Held-out passages, in random order within each domain.
        domains: Names of the domains.
    """

    tokenizer: PreTrainedTokenizerFast
    train: list[Passage]
    held_out: list[Passage]
    domains: list[str]

    def of_domain(self, domain: str, *, held_out: bool = False) -> list[Passage]:
        """Return the passages of one domain."""
        passages = self.held_out if held_out else self.train
        return [passage for passage in passages if passage["domain"] == domain]


def build_corpus(settings: CorpusSettings, *, seed: int) -> Corpus:
    """Read the texts, train a tokenizer on them, cut and split them.

    Args:
        settings: Sizes.
        seed: Chooses the passages of each domain.

    Raises:
        DataError: This Python ships fewer than two of the domains.
    """
    documents = {domain: dict(_documents(domain)) for domain in (MANUAL, *settings.packages)}
    texts = [text for files in documents.values() for text in files.values()]
    tokenizer = train_tokenizer(texts, settings)
    random = np.random.default_rng(seed)
    train: list[Passage] = []
    held_out: list[Passage] = []
    domains = []
    for domain, files in documents.items():
        passages = [
            {**passage, "domain": domain, "module": module}
            for module, text in files.items()
            for passage in _cut(tokenizer, module, text, settings.length)
        ]
        if len(passages) < settings.num_train + settings.num_held_out:
            continue  # this Python has no such package, or little of it
        order = random.permutation(len(passages))
        held_out.extend(passages[i] for i in order[: settings.num_held_out])
        chosen = order[settings.num_held_out :][: settings.num_train]
        train.extend(passages[i] for i in sorted(chosen))
        domains.append(domain)
    if len(domains) < 2:
        raise DataError(
            "this Python must ship at least two packages with enough text for the demo, of "
            f"{', '.join(documents)}. It has {domains}. Install its full standard "
            "library, or use fewer passages a domain."
        )
    return Corpus(tokenizer, train, held_out, domains)


def train_tokenizer(texts: list[str], settings: CorpusSettings) -> PreTrainedTokenizerFast:
    """Train a byte-level byte-pair tokenizer."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=settings.vocab_size, show_progress=False, initial_alphabet=alphabet
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def _documents(domain: str) -> Iterator[tuple[str, str]]:
    """Yield name and text of each file of a domain, in the order of the names."""
    if domain == MANUAL:
        for name, text in sorted(topics.items()):
            yield f"manual/{name}", text
        return
    root = Path(sysconfig.get_path("stdlib"))
    for path in sorted((root / domain).rglob("*.py")):
        yield path.relative_to(root).as_posix(), path.read_text(encoding="utf-8", errors="replace")


def _cut(
    tokenizer: PreTrainedTokenizerFast, module: str, text: str, length: int
) -> Iterator[dict[str, Any]]:
    """Yield the passages of one file; a shorter rest is left out."""
    encoding = tokenizer.backend_tokenizer.encode(text)
    tokens, offsets = encoding.ids, encoding.offsets
    for number, start in enumerate(range(0, len(tokens) - length + 1, length)):
        (first, _), (_, last) = offsets[start], offsets[start + length - 1]
        ids = tokens[start : start + length]
        yield {"id": f"{module}:{number}", "input_ids": ids, "text": text[first:last]}
