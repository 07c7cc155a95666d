"""The table of rules that layers register in."""

from projections.layers.base import Rules

RULES = Rules()
