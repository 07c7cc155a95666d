"""DSIR: importance resampling of text towards a target."""

from selection.dsir.estimator import (
    DSIR,
    FittedDSIR,
)
from selection.dsir.ngrams import (
    HashedNgrams,
)
from selection.dsir.report import (
    DrawReport,
    report_draw,
)
from selection.dsir.resampling import (
    Draw,
    resample,
)

__all__ = [
    "DSIR",
    "Draw",
    "DrawReport",
    "FittedDSIR",
    "HashedNgrams",
    "report_draw",
    "resample",
]
