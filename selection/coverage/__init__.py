"""Rows that represent all others: facility location, k-centre, deduplication."""

from selection.coverage.dedup import (
    SemanticDedup,
)
from selection.coverage.facility_location import (
    FacilityLocation,
)
from selection.coverage.k_center import (
    KCenter,
)
from selection.coverage.neighbours import (
    NeighbourGraph,
)

__all__ = [
    "FacilityLocation",
    "KCenter",
    "NeighbourGraph",
    "SemanticDedup",
]
