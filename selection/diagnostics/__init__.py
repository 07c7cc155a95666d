"""What gradients say about a dataset: coherence, opposition, outliers, dimensions, repeats."""

from selection.diagnostics.coherence import Coherence, layer_slices, measure_coherence
from selection.diagnostics.layer_coherence import CoherenceByLayer
from selection.diagnostics.moments import RowMoments, measure_moments
from selection.diagnostics.opposing import (
    LossChanges,
    OpposingGroups,
    compare_losses,
    find_opposing,
    oppose_along,
)
from selection.diagnostics.outliers import ClassOutliers, find_class_outliers
from selection.diagnostics.repeats import (
    RepeatReport,
    Repeats,
    find_near_repeats,
    find_repeats,
)
from selection.diagnostics.spectrum import (
    Spectrum,
    SubspaceHistory,
    follow_subspace,
    measure_spectrum,
)

__all__ = [
    "ClassOutliers",
    "Coherence",
    "CoherenceByLayer",
    "LossChanges",
    "OpposingGroups",
    "RepeatReport",
    "Repeats",
    "RowMoments",
    "Spectrum",
    "SubspaceHistory",
    "compare_losses",
    "find_class_outliers",
    "find_near_repeats",
    "find_opposing",
    "find_repeats",
    "follow_subspace",
    "layer_slices",
    "measure_coherence",
    "measure_moments",
    "measure_spectrum",
    "oppose_along",
]
