"""Means over the examples of each domain, over several batches and all ranks.

Letters: ``m`` domains, ``n`` examples of a training batch, ``v`` values, one an example.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from selection.ranks import sum_over_ranks


class BatchSums:
    """Weighted sums of a number by domain, which end as means.

    Args:
        names: Names of the domains.
    """

    def __init__(self, names: Sequence[str]) -> None:
        """Begin at nothing."""
        self._names = names
        self._sums = np.zeros((2, len(names)))

    def add(
        self,
        domains: Int[np.ndarray, " n"] | None,
        values: Float[np.ndarray, " v"] | None,
        weights: Float[np.ndarray, " v"] | None = None,
    ) -> None:
        """Add the examples of one batch.

        Args:
            domains: The domain of each, as its position in the names.
            values: What is averaged.
            weights: How much each counts; default: all the same.

        Raises:
            ValueError: Something is missing, or does not fit.
        """
        if domains is None or values is None:
            missing = "domains" if domains is None else "losses"
            raise ValueError(
                f"this mixture follows the examples of the training batch. `{missing}` must be "
                "given to `update`. Got None."
            )
        count = len(self._names)
        if len(domains) != len(values):
            raise ValueError(
                "`domains` must have one entry for each example of the step. Got "
                f"{len(domains)} for {len(values)} examples."
            )
        if len(domains) and not (domains.min() >= 0 and domains.max() < count):
            raise ValueError(
                f"`domains` must be in [0, {count - 1}] (positions in `names`). Got "
                f"{domains.min()} to {domains.max()}."
            )
        weights = np.ones(len(values)) if weights is None else weights
        self._sums[0] += np.bincount(domains, weights * values, minlength=count)
        self._sums[1] += np.bincount(domains, weights, minlength=count)

    def means(self) -> tuple[Float[np.ndarray, " m"], Bool[np.ndarray, " m"]]:
        """Return the mean of each domain over all ranks, and which had any; begin anew."""
        totals, counts = sum_over_ranks(torch.as_tensor(self._sums)).numpy()
        self._sums = np.zeros_like(self._sums)
        known = counts > 0
        return np.divide(totals, counts, out=np.full(len(counts), np.nan), where=known), known

    def to_json(self) -> list[list[float]]:
        """Return the sums so far, as plain values."""
        return self._sums.tolist()

    def from_json(self, state: Sequence[Sequence[float]]) -> None:
        """Go on from the sums of `to_json`."""
        self._sums = np.array(state, dtype=float)
