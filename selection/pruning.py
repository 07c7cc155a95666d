"""Pruning: keep a share of the rows by one score."""

from typing import Literal

import numpy as np

from projections import NonFiniteError, Scores, check_between, check_one_of
from selection.base import Selection

ENDS = ("lowest", "highest")


def prune(
    scores: Scores, *, keep: float, drop: Literal["lowest", "highest"] = "lowest"
) -> Selection:
    """Keep a share of the rows and drop those at one end of a score.

    Args:
        scores: One score an example.
        keep: The share of rows to keep, in ``[0, 1]``; the number is rounded to the nearest.
        drop: Which end to drop. Influence scores are larger for more helpful examples, so
            their lowest go; of a loss, a norm or a self-influence the highest are the
            likely label errors.

    Returns:
        The kept rows in the order of the scores' rows, all with weight 1. Ties are kept in
        that order.

    Raises:
        NonFiniteError: A score is not finite.
        ValueError: The share is out of range, or the scores are of pairs.

    Example:
        >>> scores = Scores(np.arange(4), {"loss": np.array([0.1, 5.0, 0.3, 0.2])})
        >>> kept = prune(scores, keep=0.75, drop="highest")
        >>> kept.ids, kept.rejected
        (array([0, 2, 3]), {1: 'loss 5 is among the highest 1 of 4'})

    References:
        Paul et al., Deep learning on a data diet (NeurIPS 2021), arXiv:2107.07075.
    """
    check_between("keep", keep, 0, 1, "a share of the rows")
    check_one_of("drop", drop, ENDS)
    values = np.asarray(scores.values, dtype=np.float64)
    if values.ndim != 1:
        raise ValueError(
            f"`scores` must hold one number an example. Got the shape {values.shape}. Average over "
            "the queries first."
        )
    bad = ~np.isfinite(values)
    if bad.any():
        raise NonFiniteError(
            f"every score must be finite. Those of the ids {scores.ids[bad][:10].tolist()} are not."
        )
    num_kept = round(keep * len(values))
    signed = values if drop == "lowest" else -values
    order = np.argsort(-signed, kind="stable")
    kept, dropped = np.sort(order[:num_kept]), order[num_kept:]
    (name,) = scores.names
    ids = scores.ids.tolist()
    rejected = {
        ids[row]: f"{name} {values[row]:.4g} is among the {drop} {len(dropped)} of {len(values)}"
        for row in sorted(dropped.tolist())
    }
    provenance = {**scores.provenance, "prune": {"score": name, "keep": keep, "drop": drop}}
    return Selection(scores.ids[kept], np.ones(num_kept), rejected, provenance)
