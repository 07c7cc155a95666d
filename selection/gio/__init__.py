"""GIO: rows that bring a set near a target."""

from selection.gio.greedy import (
    Pick,
)
from selection.gio.path import (
    GIOPath,
)
from selection.gio.selector import (
    GIO,
)
from selection.gio.starts import (
    RandomStart,
    UniformStart,
)
from selection.gio.stopping import (
    DataShare,
    Increase,
    MinDifference,
    MinDivergence,
    Restarts,
    SequentialIncreases,
    Step,
    StoppingRule,
)

__all__ = [
    "GIO",
    "DataShare",
    "GIOPath",
    "Increase",
    "MinDifference",
    "MinDivergence",
    "Pick",
    "RandomStart",
    "Restarts",
    "SequentialIncreases",
    "Step",
    "StoppingRule",
    "UniformStart",
]
