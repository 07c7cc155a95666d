"""A small causal language model, trained from scratch in seconds for the demo."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM

from gradsift.corpus import Corpus, Passage

EVALUATED = 32  # passages in a batch whose loss is measured


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """Sizes of the model and of its training."""

    hidden_size: int = 96
    """Width of the model."""

    num_layers: int = 3
    """Transformer blocks."""

    num_heads: int = 4
    """Attention heads."""

    steps: int = 300
    """Steps of training."""

    batch_size: int = 8
    """Passages in a step."""

    learning_rate: float = 3e-3
    """Highest learning rate, of AdamW with one cycle."""


def build_model(settings: ModelSettings, corpus: Corpus, *, seed: int) -> LlamaForCausalLM:
    """Return an untrained model for the corpus' vocabulary and length."""
    config = LlamaConfig(
        vocab_size=len(corpus.tokenizer),
        hidden_size=settings.hidden_size,
        intermediate_size=settings.hidden_size * 5 // 2,
        num_hidden_layers=settings.num_layers,
        num_attention_heads=settings.num_heads,
        max_position_embeddings=len(corpus.train[0]["input_ids"]),
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)


def train_model(
    model: LlamaForCausalLM, passages: Sequence[Passage], settings: ModelSettings, *, seed: int
) -> list[float]:
    """Train on passages in random order.

    Args:
        model: Trained in place, and left in evaluation mode.
        passages: What to train on; seen again when all have been.
        settings: Sizes of the training.
        seed: Decides the order.

    Returns:
        The loss of each step, in nats a token.
    """
    optimizer = make_optimizer(model, settings.learning_rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, settings.learning_rate, total_steps=settings.steps, pct_start=0.1
    )
    generator = torch.Generator().manual_seed(seed)
    tokens = stack(passages)
    epochs = -(-settings.steps * settings.batch_size // len(tokens))
    order = torch.cat([torch.randperm(len(tokens), generator=generator) for _ in range(epochs)])
    losses = []
    model.train()
    for batch in order.split(settings.batch_size)[: settings.steps]:
        losses.append(train_step(model, tokens[batch], optimizer))
        schedule.step()
    model.eval()
    return losses


def make_optimizer(model: LlamaForCausalLM, learning_rate: float) -> torch.optim.Optimizer:
    """Return AdamW."""
    return torch.optim.AdamW(
        model.parameters(), lr=learning_rate, betas=(0.9, 0.95), weight_decay=0.01, fused=True
    )


def train_step(
    model: LlamaForCausalLM, tokens: Int[Tensor, "n t"], optimizer: torch.optim.Optimizer
) -> float:
    """Take one step and return the loss before it, in nats a token."""
    loss = token_loss(model, tokens)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()


def mean_loss(model: LlamaForCausalLM, passages: Sequence[Passage]) -> float:
    """Return the mean loss of some passages, in nats a token."""
    batches = stack(passages).split(EVALUATED)
    with torch.no_grad():
        sums = [float(token_loss(model, batch)) * len(batch) for batch in batches]
    return sum(sums) / len(passages)


def token_loss(model: LlamaForCausalLM, tokens: Int[Tensor, "n t"]) -> Tensor:
    """Return the mean loss over all predicted tokens."""
    logits = model(input_ids=tokens, use_cache=False).logits[:, :-1]
    return functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())


def stack(passages: Iterable[Passage]) -> Int[Tensor, "n t"]:
    """Return the tokens of passages, which are equally long."""
    return torch.tensor([passage["input_ids"] for passage in passages])
