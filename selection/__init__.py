"""Which examples to train on, and how much."""

from selection.alignment import AlignmentStep, cosine_alignments, mean_norm_alignments
from selection.base import Selection
from selection.mixtures import (
    FixedMixture,
    MirrorDescent,
    MirrorState,
    Mixture,
    OnlineMixture,
)
from selection.pruning import prune

__all__ = [
    "AlignmentStep",
    "FixedMixture",
    "MirrorDescent",
    "MirrorState",
    "Mixture",
    "OnlineMixture",
    "Selection",
    "cosine_alignments",
    "mean_norm_alignments",
    "prune",
]
