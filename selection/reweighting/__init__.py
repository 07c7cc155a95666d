"""Weights over examples and groups while a model trains."""

from selection.reweighting.example_losses import (
    causal_losses,
    causal_token_losses,
    classification_losses,
    regression_losses,
    token_losses,
)
from selection.reweighting.group_dro import (
    GroupDRO,
)
from selection.reweighting.loss_curves import (
    FencedRange,
    QuantileRange,
    extremes,
    full_range,
    kl_dro,
    linupper,
    quadratic,
    uniform,
    upper,
)
from selection.reweighting.loss_weights import (
    ExampleWeights,
    LossReweighter,
)
from selection.reweighting.norm_sampling import (
    RunningNorms,
    norm_probabilities,
)
from selection.reweighting.running import (
    Reweighting,
)
from selection.reweighting.running_losses import (
    RunningReweighting,
)
from selection.reweighting.temperatures import (
    ConstantTemperature,
    CosineTemperature,
    EffectiveSampleSize,
    StepTemperature,
)

__all__ = [
    "ConstantTemperature",
    "CosineTemperature",
    "EffectiveSampleSize",
    "ExampleWeights",
    "FencedRange",
    "GroupDRO",
    "LossReweighter",
    "QuantileRange",
    "Reweighting",
    "RunningNorms",
    "RunningReweighting",
    "StepTemperature",
    "causal_losses",
    "causal_token_losses",
    "classification_losses",
    "extremes",
    "full_range",
    "kl_dro",
    "linupper",
    "norm_probabilities",
    "quadratic",
    "regression_losses",
    "token_losses",
    "uniform",
    "upper",
]
