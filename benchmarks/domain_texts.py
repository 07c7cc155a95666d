"""Texts of several domains as token sequences of one length, and a small model for them."""

import gzip
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

GENERATED = 8  # domains that are made up where no data is given, for tests


@dataclass(frozen=True)
class DomainTexts:
    """Sequences by domain.

    Args:
        train: Sequences to train on, ``n t``, by the name of the domain.
        held_out: Sequences of other documents.
        vocabulary: Number of tokens.
    """

    train: Mapping[str, Tensor]
    held_out: Mapping[str, Tensor]
    vocabulary: int


def read_domains(
    folder: Path | None, *, length: int, num_train: int, num_held_out: int, vocabulary: int
) -> DomainTexts:
    """Read every ``*.jsonl.gz`` of a folder as a domain, cut into sequences.

    The last documents of each are held out. The tokenizer is fitted to the others.
    """
    texts = _generated() if folder is None else _read(folder, length * max(num_train, 64) * 8)
    train = {name: part[: -max(len(part) // 10, 1)] for name, part in texts.items()}
    held = {name: part[-max(len(part) // 10, 1) :] for name, part in texts.items()}
    tokenizer = byte_pairs((text for part in train.values() for text in part), vocabulary)

    def cut(part: Sequence[str], count: int) -> Tensor:
        ids = [token for text in part for token in tokenizer.encode(text).ids]
        return torch.tensor(ids[: len(ids) // length * length]).view(-1, length)[:count]

    return DomainTexts(
        {name: cut(part, num_train) for name, part in train.items()},
        {name: cut(part, num_held_out) for name, part in held.items()},
        tokenizer.get_vocab_size(),
    )


def byte_pairs(texts: Iterable[str], vocabulary: int) -> Tokenizer:
    """Return a byte-level BPE tokenizer that was fitted to texts."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def small_llama(
    vocabulary: int,
    length: int,
    *,
    width: int,
    layers: int,
    seed: int,
    inner_width: int | None = None,
) -> LlamaForCausalLM:
    """Return an untrained model; ``inner_width`` is that of its MLPs, 11/4 of ``width``."""
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=inner_width or width * 11 // 4,
        num_hidden_layers=layers,
        num_attention_heads=4,
        max_position_embeddings=length,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)


def _read(folder: Path, num_characters: int) -> dict[str, list[str]]:
    """Return documents by domain, up to a number of characters each."""
    found = {}
    for path in sorted(folder.glob("*.jsonl.gz")):
        documents, size = [], 0
        with gzip.open(path, "rt") as lines:
            for line in lines:
                documents.append(json.loads(line)["text"])
                size += len(documents[-1])
                if size > num_characters:
                    break
        found[path.name.removesuffix(".jsonl.gz")] = documents
    if not found:
        raise FileNotFoundError(f"{folder} must hold domains as *.jsonl.gz. It has none.")
    return found


def _generated() -> dict[str, list[str]]:
    """Return counting in different bases, for a run without data."""
    return {
        f"base {base}": [
            " ".join(f"{number % base} {number // base}" for number in range(start, start + 60))
            for start in range(0, 1200, 60)
        ]
        for base in range(2, 2 + GENERATED)
    }
