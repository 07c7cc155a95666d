"""Keep a share of the rows, and drop those at one end of a score.

Letters: ``n`` rows.
"""

from projections import Scores
from selection.base import Selection
from selection.pruning.values import EndName, read_values


def prune(scores: Scores, *, keep: float, drop: EndName = "lowest") -> Selection:
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
        >>> import numpy as np
        >>> scores = Scores(np.arange(4), {"loss": np.array([0.1, 5.0, 0.3, 0.2])})
        >>> kept = prune(scores, keep=0.75, drop="highest")
        >>> kept.ids, kept.rejected
        (array([0, 2, 3]), {1: 'loss 5 is among the highest 1 of 4'})

    References:
        Paul et al., Deep learning on a data diet (NeurIPS 2021), arXiv:2107.07075.
    """
    found = read_values(scores)
    num_kept = found.count(keep)
    end = f"is among the {drop} {len(found) - num_kept} of {len(found)}"
    return found.select(
        found.best_first(drop)[:num_kept],
        lambda row: f"{found.name} {found.values[row]:.4g} {end}",
        how={"keep": keep, "drop": drop},
        method="prune",
    )
