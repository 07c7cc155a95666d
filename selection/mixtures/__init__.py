"""Mixtures over domains: how much of each to train on."""

from selection.mixtures.alignments import (
    Products,
    cosine_alignments,
    mean_norm_alignments,
    plain_alignments,
)
from selection.mixtures.base import Mixture, OnlineMixture
from selection.mixtures.centers import Centers, cluster_centers, source_centers
from selection.mixtures.decks import Deck, MixedDeck, RowDeck
from selection.mixtures.dga import DGA
from selection.mixtures.distributions import OverDistributions, distribution_decks
from selection.mixtures.doge import DoGE
from selection.mixtures.domain_gradients import DomainGradients
from selection.mixtures.doremi import DoReMi
from selection.mixtures.importance import importance_mixture
from selection.mixtures.in_batch import InBatchDGA
from selection.mixtures.mirror import MirrorDescent, MirrorState
from selection.mixtures.odm import ODM
from selection.mixtures.recorded import FixedMixture
from selection.mixtures.regmix import BoostedLosses, LinearLosses, best_mixture, draw_mixtures

__all__ = [
    "DGA",
    "ODM",
    "BoostedLosses",
    "Centers",
    "Deck",
    "DoGE",
    "DoReMi",
    "DomainGradients",
    "FixedMixture",
    "InBatchDGA",
    "LinearLosses",
    "MirrorDescent",
    "MirrorState",
    "MixedDeck",
    "Mixture",
    "OnlineMixture",
    "OverDistributions",
    "Products",
    "RowDeck",
    "best_mixture",
    "cluster_centers",
    "cosine_alignments",
    "distribution_decks",
    "draw_mixtures",
    "importance_mixture",
    "mean_norm_alignments",
    "plain_alignments",
    "source_centers",
]
