"""Keep a window of a ranking: leave out the very hardest, then take the next.

Letters: ``n`` rows.
"""

import numpy as np

from projections import Scores, check_between
from selection.base import Selection
from selection.pruning.values import EndName, read_values


def keep_window(
    scores: Scores, *, keep: float, offset: float, drop: EndName = "lowest"
) -> Selection:
    """Leave out a share at the far end, then keep the next share.

    With ``drop="lowest"`` the rows with the highest scores, say the largest EL2N, are thought
    the most useful, but the very highest are label errors: ``offset`` of all rows are left
    out there, the next ``keep`` are kept, and the rest below is dropped.

    Args:
        scores: One score an example.
        keep: The share of all rows to keep, in ``[0, 1]``.
        offset: The share of all rows to leave out before, in ``[0, 1 - keep]``.
        drop: Which end is the useless one.

    Returns:
        The kept rows in the order of the scores' rows.

    Raises:
        NonFiniteError: A score is not finite.
        ValueError: The shares are out of range, or are more than 1 together.

    Example:
        >>> scores = Scores(np.arange(5), {"el2n": np.array([0.9, 0.2, 0.5, 0.1, 1.4])})
        >>> keep_window(scores, keep=0.4, offset=0.2).ids
        array([0, 2])

    References:
        Paul et al., Deep learning on a data diet (NeurIPS 2021), arXiv:2107.07075, Sec. 4.
    """
    found = read_values(scores)
    check_between("offset", offset, 0, 1, "a share of the rows")
    first, count = found.count(offset), found.count(keep)
    if first + count > len(found):
        raise ValueError(
            f"`keep` and `offset` must be at most 1 together. Got {keep} and {offset}: {count} and "
            f"{first} of {len(found)} rows."
        )
    order = found.best_first(drop)
    ranks = np.argsort(order)
    far = "highest" if drop == "lowest" else "lowest"

    def reason(row: int) -> str:
        value = f"{found.name} {found.values[row]:.4g}"
        if ranks[row] < first:
            return f"{value} is among the {far} {first} of {len(found)}, which are left out"
        return f"{value} is among the {drop} {len(found) - first - count} of {len(found)}"

    how = {"keep": keep, "offset": offset, "drop": drop}
    return found.select(order[first : first + count], reason, how=how, method="window")
