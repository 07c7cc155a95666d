"""Keep what is on one side of a number, or between two.

Letters: ``n`` rows.
"""

from projections import Scores
from selection.base import Selection
from selection.pruning.values import read_values


def keep_between(
    scores: Scores, *, at_least: float | None = None, at_most: float | None = None
) -> Selection:
    """Keep the rows whose score is within bounds, both included.

    Args:
        scores: One score an example.
        at_least: The lowest score to keep; no bound unless given.
        at_most: The highest score to keep; no bound unless given.

    Returns:
        The kept rows in the order of the scores' rows.

    Raises:
        NonFiniteError: A score is not finite.
        ValueError: No bound is given, one is NaN, or the lower is above the upper.

    Example:
        >>> import numpy as np
        >>> scores = Scores(np.arange(3), {"margin": np.array([2.0, -1.0, 0.0])})
        >>> kept = keep_between(scores, at_least=0)
        >>> kept.ids, kept.rejected
        (array([0, 2]), {1: 'margin -1 is below 0'})
    """
    found = read_values(scores)
    low = float("-inf") if at_least is None else at_least
    high = float("inf") if at_most is None else at_most
    if (at_least is None and at_most is None) or not low <= high:
        raise ValueError(
            "`at_least` or `at_most` must be given, and the first be at most the second. Got "
            f"{at_least} and {at_most}."
        )
    values = found.values

    def reason(row: int) -> str:
        where = f"below {low:.4g}" if values[row] < low else f"above {high:.4g}"
        return f"{found.name} {values[row]:.4g} is {where}"

    inside = ((values >= low) & (values <= high)).nonzero()[0]
    how = {"at_least": at_least, "at_most": at_most}
    return found.select(inside, reason, how=how, method="between")
