"""Which rows to keep by one score, and why each of the others is not."""

from selection.pruning.budgets import keep_budget, keep_quotas, select_within
from selection.pruning.ends import prune
from selection.pruning.gumbel import keep_by_chance
from selection.pruning.strata import keep_covering, keep_stratified
from selection.pruning.threshold import keep_between
from selection.pruning.window import keep_window

__all__ = [
    "keep_between",
    "keep_budget",
    "keep_by_chance",
    "keep_covering",
    "keep_quotas",
    "keep_stratified",
    "keep_window",
    "prune",
    "select_within",
]
