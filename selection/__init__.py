"""Which examples to train on, and how much."""

from selection.base import Selection
from selection.chosen_rows import check_format, row_writer, write_chosen
from selection.clusters import Clusters, KMeans
from selection.dedup import SemanticDedup
from selection.dsir import DSIR, FittedDSIR
from selection.dsir_report import DrawReport, report_draw
from selection.example_losses import (
    causal_losses,
    causal_token_losses,
    classification_losses,
    regression_losses,
    token_losses,
)
from selection.facility_location import FacilityLocation
from selection.gio import GIO
from selection.gio_path import GIOPath
from selection.greedy import Pick
from selection.group_dro import GroupDRO
from selection.history import History
from selection.k_center import KCenter
from selection.loss_curves import (
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
from selection.loss_weights import ExampleWeights, LossReweighter
from selection.mixtures import (
    DGA,
    ODM,
    BoostedLosses,
    Centers,
    Deck,
    DoGE,
    DomainGradients,
    DoReMi,
    FixedMixture,
    InBatchDGA,
    LinearLosses,
    MirrorDescent,
    MirrorState,
    MixedDeck,
    Mixture,
    OnlineMixture,
    OverDistributions,
    Products,
    RowDeck,
    best_mixture,
    cluster_centers,
    cosine_alignments,
    distribution_decks,
    draw_mixtures,
    importance_mixture,
    mean_norm_alignments,
    plain_alignments,
    source_centers,
)
from selection.neighbours import NeighbourGraph
from selection.ngrams import HashedNgrams
from selection.norm_sampling import RunningNorms, norm_probabilities
from selection.pruning import prune
from selection.resampling import Draw, resample
from selection.reweighting import Reweighting
from selection.running_reweighting import RunningReweighting
from selection.samplers import (
    DrawBatchSampler,
    Draws,
    DrawSampler,
    MixtureDraws,
    MixtureStream,
    SelectionDraws,
    WeightedDraws,
)
from selection.starts import RandomStart, UniformStart
from selection.stopping import (
    DataShare,
    Increase,
    MinDifference,
    MinDivergence,
    Restarts,
    SequentialIncreases,
    Step,
    StoppingRule,
)
from selection.temperatures import (
    ConstantTemperature,
    CosineTemperature,
    EffectiveSampleSize,
    StepTemperature,
)

__all__ = [
    "DGA",
    "DSIR",
    "GIO",
    "ODM",
    "BoostedLosses",
    "Centers",
    "Clusters",
    "ConstantTemperature",
    "CosineTemperature",
    "DataShare",
    "Deck",
    "DoGE",
    "DoReMi",
    "DomainGradients",
    "Draw",
    "DrawBatchSampler",
    "DrawReport",
    "DrawSampler",
    "Draws",
    "EffectiveSampleSize",
    "ExampleWeights",
    "FacilityLocation",
    "FencedRange",
    "FittedDSIR",
    "FixedMixture",
    "GIOPath",
    "GroupDRO",
    "HashedNgrams",
    "History",
    "InBatchDGA",
    "Increase",
    "KCenter",
    "KMeans",
    "LinearLosses",
    "LossReweighter",
    "MinDifference",
    "MinDivergence",
    "MirrorDescent",
    "MirrorState",
    "MixedDeck",
    "Mixture",
    "MixtureDraws",
    "MixtureStream",
    "NeighbourGraph",
    "OnlineMixture",
    "OverDistributions",
    "Pick",
    "Products",
    "QuantileRange",
    "RandomStart",
    "Restarts",
    "Reweighting",
    "RowDeck",
    "RunningNorms",
    "RunningReweighting",
    "Selection",
    "SelectionDraws",
    "SemanticDedup",
    "SequentialIncreases",
    "Step",
    "StepTemperature",
    "StoppingRule",
    "UniformStart",
    "WeightedDraws",
    "best_mixture",
    "causal_losses",
    "causal_token_losses",
    "check_format",
    "classification_losses",
    "cluster_centers",
    "cosine_alignments",
    "distribution_decks",
    "draw_mixtures",
    "extremes",
    "full_range",
    "importance_mixture",
    "kl_dro",
    "linupper",
    "mean_norm_alignments",
    "norm_probabilities",
    "plain_alignments",
    "prune",
    "quadratic",
    "regression_losses",
    "report_draw",
    "resample",
    "row_writer",
    "source_centers",
    "token_losses",
    "uniform",
    "upper",
    "write_chosen",
]
