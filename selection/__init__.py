"""Which examples to train on, and how much."""

from selection.base import Selection
from selection.pruning import prune

__all__ = ["Selection", "prune"]
