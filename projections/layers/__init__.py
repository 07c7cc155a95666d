"""Layer rules, one file for each kind of layer."""

from projections.layers import (
    attention,
    conv,
    embedding,
    embedding_bag,
    linear,
    lora_embedding,
    norm,
    rms_norm,
)
from projections.layers.base import (
    Call,
    CallRule,
    CallTerms,
    LayerRule,
    Part,
    Use,
    in_full_precision,
)
from projections.layers.registry import RULES

__all__ = [
    "RULES",
    "Call",
    "CallRule",
    "CallTerms",
    "LayerRule",
    "Part",
    "Use",
    "attention",
    "conv",
    "embedding",
    "embedding_bag",
    "in_full_precision",
    "linear",
    "lora_embedding",
    "norm",
    "rms_norm",
]
