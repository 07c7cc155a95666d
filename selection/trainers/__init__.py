"""Glue for the `Trainer` of Hugging Face; not imported by `selection` itself, which stays light."""

from selection.trainers.drawn_rows import DrawsMixin
from selection.trainers.state_callback import StateCallback
from selection.trainers.weighted_loss import ReweightingMixin

__all__ = ["DrawsMixin", "ReweightingMixin", "StateCallback"]
