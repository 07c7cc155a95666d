"""From weights and mixtures to the rows of a batch: samplers and streams for PyTorch."""

from selection.samplers.base import Draws
from selection.samplers.mixed import MixtureDraws
from selection.samplers.selected import SelectionDraws
from selection.samplers.stream import MixtureStream
from selection.samplers.torch_samplers import DrawBatchSampler, DrawSampler
from selection.samplers.weighted import WeightedDraws

__all__ = [
    "DrawBatchSampler",
    "DrawSampler",
    "Draws",
    "MixtureDraws",
    "MixtureStream",
    "SelectionDraws",
    "WeightedDraws",
]
