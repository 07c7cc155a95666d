"""What an example did to a prediction."""

from influence.base import FittedMetric, Metric
from influence.gradient_dot import GradientCosine, GradientDot
from influence.retrieval import retrieve
from influence.trak import TRAK

__all__ = ["TRAK", "FittedMetric", "GradientCosine", "GradientDot", "Metric", "retrieve"]
