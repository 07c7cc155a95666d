"""A mean and its standard error: how every measure of quality is reported.

Letters: ``u`` units that are averaged over, mostly queries.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.stats import rankdata

from projections import check_not_empty


@dataclass(frozen=True)
class Estimate:
    """A mean with its standard error.

    Args:
        values: What the mean is over, mostly one value a query.
        mean: Their mean.
        standard_error: Standard error of the mean; 0 for a single value.
    """

    values: Float[np.ndarray, " u"]
    mean: float
    standard_error: float

    @classmethod
    def over(cls, values: Float[np.ndarray, " u"]) -> "Estimate":
        """Return the mean of independent values.

        Args:
            values: The values.

        Raises:
            ValueError: There are none, or some are not finite.

        Example:
            >>> Estimate.over(np.array([1.0, 2.0, 3.0])).mean
            2.0
        """
        check_not_empty("values", len(values))
        if not np.isfinite(values).all():
            wrong = np.flatnonzero(~np.isfinite(values))[:10].tolist()
            raise ValueError(f"`values` must be finite. Those at {wrong} are not. Leave them out.")
        count = len(values)
        error = float(values.std(ddof=1)) / count**0.5 if count > 1 else 0.0
        return cls(values, float(values.mean()), error)

    def __str__(self) -> str:
        """Return the mean and its error with three digits."""
        return f"{self.mean:.3f} ± {self.standard_error:.3f}"


def rank_correlations(
    predicted: Float[np.ndarray, "m q"], actual: Float[np.ndarray, "m q"]
) -> Float[np.ndarray, " q"]:
    """Return the Spearman correlation of each pair of columns; NaN where one is constant."""
    ranks = [rankdata(part, axis=0) for part in (predicted, actual)]
    left, right = (part - part.mean(0) for part in ranks)
    sizes = np.linalg.norm(left, axis=0) * np.linalg.norm(right, axis=0)
    top = (left * right).sum(0)
    return np.divide(top, sizes, out=np.full(len(sizes), np.nan), where=sizes > 0)


def refuse_constant(what: str, values: Float[np.ndarray, "m q"]) -> None:
    """Refuse queries whose values are all equal, since they have no ranks.

    Raises:
        ValueError: There are such.
    """
    equal = np.flatnonzero(np.ptp(values, axis=0) == 0)
    if len(equal):
        raise ValueError(
            f"{what} of every query must vary. Those of queries {equal[:10].tolist()} are all "
            "equal. Leave these queries out."
        )
