"""Examples in proportion to their gradient norms, with the weight that keeps means unbiased.

Letters: ``m`` rows of the data, ``n`` rows of a batch.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from projections import NonFiniteError, check_at_least, check_between


def norm_probabilities(
    norms: Float[np.ndarray, " m"], *, floor: float = 0.1
) -> Float[np.ndarray, " m"]:
    r"""Return :math:`p_i = (1 - \phi) g_i / \sum g + \phi / m` for gradient norms :math:`g`.

    Among all proportions, those of the norms give the mean gradient of
    :math:`\frac{1}{m p_i} g_i` the least variance. The floor bounds the weight by
    :math:`1 / \phi`; norms that are all 0 give equal probabilities.

    Args:
        norms: The norm of the gradient of each row, or an upper bound such as EL2N.
        floor: :math:`\phi`, the share that is spread evenly.

    Raises:
        NonFiniteError: A norm is not finite.
        ValueError: A norm is negative, or the floor is not in ``[0, 1]``.

    Example:
        >>> norm_probabilities(np.array([0.0, 1.0, 3.0]), floor=0.3).round(3)
        array([0.1  , 0.275, 0.625])

    References:
        Katharopoulos and Fleuret, Not all samples are created equal: deep learning with
        importance sampling (ICML 2018), arXiv:1803.00942, Sec. 3.
    """
    check_between("floor", floor, 0, 1, "a share")
    norms = np.asarray(norms, dtype=np.float64)
    bad = np.flatnonzero(~np.isfinite(norms))
    if len(bad):
        raise NonFiniteError(
            f"every norm must be finite. Those at the positions {bad[:10].tolist()} are not."
        )
    if len(norms) and norms.min() < 0:
        raise ValueError(f"`norms` must be at least 0. Got {norms.min():g}.")
    even = np.full(len(norms), 1 / max(len(norms), 1))
    largest = norms.max(initial=0.0)
    if largest == 0:
        return even
    shares = norms / largest  # sums of very large or very small norms have no inverse
    return (1 - floor) * (shares / shares.sum()) + floor * even


class RunningNorms:
    """Gradient norms of rows, kept up to date by what training sees of them.

    A row that was not seen yet has the mean norm of those that were: it is as likely as an
    average one, not lost.

    Args:
        num_rows: Number ``m`` of rows.
        keep: How much of a row's former norm stays when a new one comes, in ``[0, 1)``.

    Example:
        >>> norms = RunningNorms(3)
        >>> norms.update(np.array([0, 1]), np.array([1.0, 3.0]))
        >>> norms.values
        array([1., 3., 2.])
    """

    def __init__(self, num_rows: int, *, keep: float = 0.0) -> None:
        """Start with no row seen."""
        check_at_least("num_rows", num_rows, 1)
        check_between("keep", keep, 0, 1, "a share")
        self.keep = keep
        self._norms = np.full(num_rows, np.nan)

    @property
    def values(self) -> Float[np.ndarray, " m"]:
        """One norm a row; all 1 before any was seen."""
        seen = ~np.isnan(self._norms)
        return np.where(seen, self._norms, self._norms[seen].mean() if seen.any() else 1.0)

    def update(self, positions: Int[np.ndarray, " n"], norms: Float[np.ndarray, " n"]) -> None:
        """Take in the norms of a batch.

        Raises:
            NonFiniteError: A norm is not finite; nothing is taken in then.
        """
        bad = ~np.isfinite(norms)
        if bad.any():
            raise NonFiniteError(
                "every norm must be finite. Those of the rows "
                f"{np.asarray(positions)[bad][:10].tolist()} are not."
            )
        former = self._norms[positions]
        mixed = self.keep * former + (1 - self.keep) * np.asarray(norms, dtype=np.float64)
        self._norms[positions] = np.where(np.isnan(former), norms, mixed)

    def state_dict(self) -> dict[str, Any]:
        """Return the norms, as plain values that JSON keeps."""
        return {"norms": [None if np.isnan(norm) else norm for norm in self._norms.tolist()]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state.

        Raises:
            ValueError: It has another number of rows.
        """
        norms = np.array([np.nan if norm is None else norm for norm in state["norms"]])
        if len(norms) != len(self._norms):
            raise ValueError(f"the state must have {len(self._norms)} rows. Got {len(norms)}.")
        self._norms = norms
