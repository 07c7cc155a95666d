"""Scores of examples that need more than one look: runs, folds, neighbours, groups."""

from selection.scoring.grand import UntrainedWarning, guess_statistics, score_grand, untrained
from selection.scoring.held_out import Folds, memorisation, score_held_out
from selection.scoring.learning import LearningHistory
from selection.scoring.nearness import NearestRows, find_nearest, score_cluster_distance
from selection.scoring.row_agreement import score_agreement
from selection.scoring.runs import RunAgreement, average_runs, compare_runs

__all__ = [
    "Folds",
    "LearningHistory",
    "NearestRows",
    "RunAgreement",
    "UntrainedWarning",
    "average_runs",
    "compare_runs",
    "find_nearest",
    "guess_statistics",
    "memorisation",
    "score_agreement",
    "score_cluster_distance",
    "score_grand",
    "score_held_out",
    "untrained",
]
