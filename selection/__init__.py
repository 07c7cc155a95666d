"""Which examples to train on, and how much."""

from selection.base import Selection
from selection.prune import prune

__all__ = ["Selection", "prune"]
