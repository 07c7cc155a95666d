"""What an example did to a prediction."""

from influence.base import FittedMetric, Metric
from influence.curvature import Curvature, FittedCurvature
from influence.damping import (
    AbsoluteDamping,
    Damping,
    RelativeDamping,
    noise_floor,
    recipe_damping,
)
from influence.diagonal import Diagonal, Identity
from influence.eigen_index import EigenProjector, choose_coordinates
from influence.ekfac import EKFAC, KFAC
from influence.gradient_dot import GradientCosine, GradientDot
from influence.influence_index import InfluenceIndex, build_index
from influence.kfac_math import LayerCurvature, Rotation
from influence.lds import LDS, linear_datamodeling_score
from influence.lexical import Candidates, lexical_candidates
from influence.pairwise import SelfInfluence
from influence.plan import Plan, make_plan
from influence.retrieval import retrieve, retrieve_rows
from influence.trak import TRAK

__all__ = [
    "EKFAC",
    "KFAC",
    "LDS",
    "TRAK",
    "AbsoluteDamping",
    "Candidates",
    "Curvature",
    "Damping",
    "Diagonal",
    "EigenProjector",
    "FittedCurvature",
    "FittedMetric",
    "GradientCosine",
    "GradientDot",
    "Identity",
    "InfluenceIndex",
    "LayerCurvature",
    "Metric",
    "Plan",
    "RelativeDamping",
    "Rotation",
    "SelfInfluence",
    "build_index",
    "choose_coordinates",
    "lexical_candidates",
    "linear_datamodeling_score",
    "make_plan",
    "noise_floor",
    "recipe_damping",
    "retrieve",
    "retrieve_rows",
]
