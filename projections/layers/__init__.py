"""Layer rules, one file for each kind of layer."""

from projections.layers import conv, embedding, linear, norm
from projections.layers.base import LayerRule, Part
from projections.layers.registry import RULES

__all__ = ["RULES", "LayerRule", "Part", "conv", "embedding", "linear", "norm"]
