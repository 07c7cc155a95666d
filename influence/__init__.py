"""What an example did to a prediction."""

from influence.base import FittedMetric, Metric
from influence.curvature import Curvature, FittedCurvature
from influence.damping import AbsoluteDamping, Damping, RelativeDamping, recipe_damping
from influence.diagonal import Diagonal, Identity
from influence.ekfac import EKFAC, KFAC
from influence.gradient_dot import GradientCosine, GradientDot
from influence.kfac_math import LayerCurvature, Rotation
from influence.retrieval import retrieve
from influence.trak import TRAK

__all__ = [
    "EKFAC",
    "KFAC",
    "TRAK",
    "AbsoluteDamping",
    "Curvature",
    "Damping",
    "Diagonal",
    "FittedCurvature",
    "FittedMetric",
    "GradientCosine",
    "GradientDot",
    "Identity",
    "LayerCurvature",
    "Metric",
    "RelativeDamping",
    "Rotation",
    "recipe_damping",
    "retrieve",
]
