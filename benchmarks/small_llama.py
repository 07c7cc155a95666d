"""A small Llama with random weights, and what one training step over it costs."""

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM


def build_model(quick: bool, *, hidden: int = 384, num_layers: int = 4) -> LlamaForCausalLM:
    """Return a model with random weights: ten million of them unless said otherwise.

    Args:
        quick: Whether a model for tests will do.
        hidden: Width, a multiple of 6 heads.
        num_layers: Number of layers.
    """
    torch.manual_seed(0)
    vocabulary = 4096
    if quick:
        hidden, num_layers, vocabulary = 36, 2, 64
    config = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=8 * hidden // 3,
        num_hidden_layers=num_layers,
        num_attention_heads=6,
        num_key_value_heads=6,
        vocab_size=vocabulary,
        tie_word_embeddings=False,
    )
    return LlamaForCausalLM(config).eval()


def train_batches(model: LlamaForCausalLM, tokens: Tensor, batch_size: int) -> None:
    """Compute the gradient of every batch, on the model's device."""
    for batch in tokens.to(model.device).split(batch_size):
        model.zero_grad()
        model(input_ids=batch, labels=batch, use_cache=False).loss.backward()
    model.zero_grad()
    wait(model.device)


def wait(device: torch.device) -> None:
    """Wait until a device has done its work."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def count_operations(model: LlamaForCausalLM, length: int) -> int:
    """Return the floating-point operations of the products of one example.

    Each weight is used in three products (output, gradient of the input, gradient of the
    weight) of 2 operations an entry and token; attention in three times two products of
    queries with keys and of their weights with values, counted without the causal mask.
    """
    linear = sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Linear))
    config = model.config
    attention = config.num_hidden_layers * config.hidden_size * length
    return 3 * length * 2 * (linear + 2 * attention)
