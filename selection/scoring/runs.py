"""Scores of several seeds or checkpoints: their mean, and how far they agree.

Letters: ``r`` runs, ``n`` examples.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.stats import rankdata

from projections import DataError, Scores, check_at_least, check_between


@dataclass(frozen=True)
class RunAgreement:
    """How far runs agree about one score.

    Args:
        name: The score.
        rank_correlation: Mean Spearman correlation over pairs of runs; NaN where a run gives
            every row the same.
        lowest_rank_correlation: The least of any pair.
        top_overlap: Mean share, over pairs, of the highest rows of one run that are among the
            highest of the other.
        top: The share of rows that counts as highest.
    """

    name: str
    rank_correlation: float
    lowest_rank_correlation: float
    top_overlap: float
    top: float


def average_runs(runs: Sequence[Scores]) -> Scores:
    """Return the mean of each score over runs, and its spread as ``NAME_spread``.

    EL2N and GraNd are defined as such means; a single run is a noisy one. The spread is the
    standard deviation over runs: a row on which seeds disagree has no score worth acting on.

    Args:
        runs: Scores of the same rows by the same methods, one element a seed or checkpoint.

    Raises:
        DataError: Rows or columns differ.
        ValueError: There are fewer than two runs.

    Example:
        >>> runs = [Scores(np.arange(2), {"el2n": np.array([0.0, x])}) for x in (1.0, 3.0)]
        >>> both = average_runs(runs)
        >>> both["el2n"].values, both["el2n_spread"].values.round(3)
        (array([0., 2.]), array([0.   , 1.414]))

    References:
        Paul et al., Deep learning on a data diet (NeurIPS 2021), arXiv:2107.07075, Sec. 2.
    """
    check_same_rows(runs)
    columns = {}
    for name in runs[0].names:
        values = _stacked(runs, name)
        columns[name] = values.mean(axis=0)
        columns[f"{name}_spread"] = values.std(axis=0, ddof=1)
    note = {"runs": [dict(scores.provenance) for scores in runs]}
    return Scores(runs[0].ids, columns, provenance=note)


def compare_runs(runs: Sequence[Scores], *, top: float = 0.1) -> list[RunAgreement]:
    """Return how far runs agree about each score.

    Args:
        runs: As for `average_runs`.
        top: The share of rows that counts as highest, in ``(0, 1]``.

    Raises:
        DataError: Rows or columns differ.
        ValueError: There are fewer than two runs, or the share is out of range.

    Example:
        >>> losses = [np.array([1.0, 2.0, 3.0, 4.0]), np.array([1.0, 3.0, 2.0, 4.0])]
        >>> runs = [Scores(np.arange(4), {"loss": loss}) for loss in losses]
        >>> compare_runs(runs, top=0.25)[0].rank_correlation
        0.8
    """
    check_same_rows(runs)
    check_between("top", top, 0, 1, "a share of the rows")
    pairs = [(a, b) for a in range(len(runs)) for b in range(a)]
    count = max(1, round(top * len(runs[0])))
    found = []
    for name in runs[0].names:
        values = _stacked(runs, name)
        ranks = np.stack([rankdata(row) for row in values])
        correlations = [_correlation(ranks[a], ranks[b]) for a, b in pairs]
        highest = [set(np.argsort(-row, kind="stable")[:count].tolist()) for row in values]
        overlap = np.mean([len(highest[a] & highest[b]) / count for a, b in pairs])
        mean, least = float(np.mean(correlations)), float(np.min(correlations))
        found.append(RunAgreement(name, round(mean, 12), round(least, 12), float(overlap), top))
    return found


def check_same_rows(runs: Sequence[Scores]) -> None:
    """Refuse runs that are fewer than two, or about different rows or scores.

    Raises:
        DataError: Rows or columns differ.
        ValueError: There are fewer than two.
    """
    check_at_least("len(runs)", len(runs), 2)
    for scores in runs:
        if not np.array_equal(scores.ids, runs[0].ids) or scores.names != runs[0].names:
            raise DataError(
                "runs must score the same ids, in the same order, by the same methods. Got "
                f"{runs[0].names} of {len(runs[0])} rows and {scores.names} of {len(scores)}. "
                "Compute all on one dataset."
            )


def _stacked(runs: Sequence[Scores], name: str) -> Float[np.ndarray, "r n"]:
    """Return one score of all runs."""
    return np.stack([np.asarray(scores.columns[name], np.float64) for scores in runs])


def _correlation(one: Float[np.ndarray, " n"], other: Float[np.ndarray, " n"]) -> float:
    """Return the correlation of two rankings; NaN where one has no order."""
    one, other = one - one.mean(), other - other.mean()
    lengths = float(np.sqrt((one @ one) * (other @ other)))
    return float(one @ other) / lengths if lengths > 0 else float("nan")
