"""Which examples to train on, and how much."""

from selection.alignment import AlignmentStep, cosine_alignments, mean_norm_alignments
from selection.base import Selection
from selection.pruning import prune

__all__ = ["AlignmentStep", "Selection", "cosine_alignments", "mean_norm_alignments", "prune"]
