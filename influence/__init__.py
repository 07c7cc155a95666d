"""What an example did to a prediction."""

from influence.arnoldi import Arnoldi
from influence.astra import ASTRA
from influence.base import FittedInfluence, FittedMetric, Metric
from influence.bm25 import BM25, FittedBM25
from influence.checkpoints import ModelCheckpoint, copy_state
from influence.components import (
    Accuracy,
    Agreement,
    Budget,
    ChosenComponents,
    ComponentPath,
    ComponentProducts,
    Objective,
    SourceQuestions,
    beginnings,
    choose_components,
    component_costs,
    component_products,
    search_backward,
    search_beam,
    search_forward,
    source_questions,
    split_queries,
)
from influence.conjugate_gradients import ConjugateGradients
from influence.curvature import Curvature, FittedCurvature
from influence.damping import (
    AbsoluteDamping,
    Damping,
    RelativeDamping,
    noise_floor,
    recipe_damping,
)
from influence.datainf import DataInf, FittedDataInf
from influence.detection import (
    class_detection,
    mislabel_detection,
    recall_of_members,
    shortcut_detection,
    subset_detection,
)
from influence.diagonal import Diagonal, Identity
from influence.eigen_index import EigenProjector, choose_coordinates
from influence.ekfac import EKFAC, KFAC
from influence.embedding_similarity import EmbeddingSimilarity, FittedEmbeddingSimilarity
from influence.estimates import Estimate
from influence.gauss_newton import GaussNewton
from influence.gradient_dot import GradientCosine, GradientDot
from influence.hessian import Hessian
from influence.hidden_similarity import FittedHiddenSimilarity, HiddenSimilarity
from influence.implicit_differentiation import hypergradients
from influence.influence_index import InfluenceIndex, build_index
from influence.inverse import FittedInverse, Inverse
from influence.kfac_math import LayerCurvature, Rotation
from influence.label_signed import FittedLabelSigned, LabelSigned
from influence.layer_shapes import LayerShape, ModelShape, shape_of_language_model
from influence.lds import (
    error_over_subsets,
    lds_ceiling,
    linear_datamodeling_score,
    random_subsets,
)
from influence.leave_one_out import FittedLeaveOneOut
from influence.less import LESS, FittedLESS, FittedRowCosine, RowCosine
from influence.lexical import Candidates, lexical_candidates
from influence.lissa import LiSSA
from influence.logistic_leave_one_out import LogisticLeaveOneOut
from influence.metagradients import FittedMetagradients, Metagradients
from influence.mfac import MFAC, FittedMFAC, FittedMFACRows, MFACRows
from influence.neumann import Neumann
from influence.nystroem import Nystroem
from influence.pairwise import SelfInfluence
from influence.plan import Plan, Stage, make_plan, plan_shapes, show_bytes
from influence.preconditioners import CurvaturePreconditioner, NoPreconditioner, Preconditioner
from influence.principal import BasisName, PrincipalProjector
from influence.products import Matrix, MeanMatrix, Products, SymmetricMatrix
from influence.recipe import Losses, Recipe, classification_losses, language_losses
from influence.relatif import FittedRelatIF, ParameterRelatIF, RelatIF
from influence.removal import (
    leave_one_out,
    leave_one_out_correlation,
    quantile_drop,
    without_top,
)
from influence.representer import FittedRepresenterPoints, RepresenterPoints
from influence.retrained_losses import retrained_losses
from influence.retraining import Trainer
from influence.retrieval import retrieve, retrieve_rows
from influence.ridge_leave_one_out import RidgeLeaveOneOut
from influence.row_influence import FittedRowInfluence, RowInfluence
from influence.solver import PreparedSolver, Solution, Solver
from influence.source import SOURCE, FittedSOURCE, Segment
from influence.tfidf import TFIDF, FittedTFIDF
from influence.tracin import FittedTracIn, TracIn
from influence.tracin_last_layer import FittedLastLayerTracIn, LastLayerTracIn
from influence.trackstar import FittedTrackStar, TrackStar
from influence.trak import TRAK
from influence.trak_ensemble import FittedTRAKEnsemble, TRAKEnsemble
from influence.woodbury import DualInverse, GradientWindow
from influence.work import Product, Work, forward_and_backward, sketched_gradients

__all__ = [
    "ASTRA",
    "BM25",
    "EKFAC",
    "KFAC",
    "LESS",
    "MFAC",
    "SOURCE",
    "TFIDF",
    "TRAK",
    "AbsoluteDamping",
    "Accuracy",
    "Agreement",
    "Arnoldi",
    "BasisName",
    "Budget",
    "Candidates",
    "ChosenComponents",
    "ComponentPath",
    "ComponentProducts",
    "ConjugateGradients",
    "Curvature",
    "CurvaturePreconditioner",
    "Damping",
    "DataInf",
    "Diagonal",
    "DualInverse",
    "EigenProjector",
    "EmbeddingSimilarity",
    "Estimate",
    "FittedBM25",
    "FittedCurvature",
    "FittedDataInf",
    "FittedEmbeddingSimilarity",
    "FittedHiddenSimilarity",
    "FittedInfluence",
    "FittedInverse",
    "FittedLESS",
    "FittedLabelSigned",
    "FittedLastLayerTracIn",
    "FittedLeaveOneOut",
    "FittedMFAC",
    "FittedMFACRows",
    "FittedMetagradients",
    "FittedMetric",
    "FittedRelatIF",
    "FittedRepresenterPoints",
    "FittedRowCosine",
    "FittedRowInfluence",
    "FittedSOURCE",
    "FittedTFIDF",
    "FittedTRAKEnsemble",
    "FittedTracIn",
    "FittedTrackStar",
    "GaussNewton",
    "GradientCosine",
    "GradientDot",
    "GradientWindow",
    "Hessian",
    "HiddenSimilarity",
    "Identity",
    "InfluenceIndex",
    "Inverse",
    "LabelSigned",
    "LastLayerTracIn",
    "LayerCurvature",
    "LayerShape",
    "LiSSA",
    "LogisticLeaveOneOut",
    "Losses",
    "MFACRows",
    "Matrix",
    "MeanMatrix",
    "Metagradients",
    "Metric",
    "ModelCheckpoint",
    "ModelShape",
    "Neumann",
    "NoPreconditioner",
    "Nystroem",
    "Objective",
    "ParameterRelatIF",
    "Plan",
    "Preconditioner",
    "PreparedSolver",
    "PrincipalProjector",
    "Product",
    "Products",
    "Recipe",
    "RelatIF",
    "RelativeDamping",
    "RepresenterPoints",
    "RidgeLeaveOneOut",
    "Rotation",
    "RowCosine",
    "RowInfluence",
    "Segment",
    "SelfInfluence",
    "Solution",
    "Solver",
    "SourceQuestions",
    "Stage",
    "SymmetricMatrix",
    "TRAKEnsemble",
    "TracIn",
    "TrackStar",
    "Trainer",
    "Work",
    "beginnings",
    "build_index",
    "choose_components",
    "choose_coordinates",
    "class_detection",
    "classification_losses",
    "component_costs",
    "component_products",
    "copy_state",
    "error_over_subsets",
    "forward_and_backward",
    "hypergradients",
    "language_losses",
    "lds_ceiling",
    "leave_one_out",
    "leave_one_out_correlation",
    "lexical_candidates",
    "linear_datamodeling_score",
    "make_plan",
    "mislabel_detection",
    "noise_floor",
    "plan_shapes",
    "quantile_drop",
    "random_subsets",
    "recall_of_members",
    "recipe_damping",
    "retrained_losses",
    "retrieve",
    "retrieve_rows",
    "search_backward",
    "search_beam",
    "search_forward",
    "shape_of_language_model",
    "shortcut_detection",
    "show_bytes",
    "sketched_gradients",
    "source_questions",
    "split_queries",
    "subset_detection",
    "without_top",
]
