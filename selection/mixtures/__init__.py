"""Mixtures over domains: how much of each to train on."""

from selection.mixtures.base import Mixture, OnlineMixture
from selection.mixtures.mirror import MirrorDescent, MirrorState
from selection.mixtures.recorded import FixedMixture

__all__ = ["FixedMixture", "MirrorDescent", "MirrorState", "Mixture", "OnlineMixture"]
