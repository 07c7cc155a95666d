"""What every selector on a table of scores starts from and ends with.

Letters: ``n`` rows.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Int

from projections import NonFiniteError, Scores, check_between, check_one_of
from selection.base import Selection

ENDS = ("lowest", "highest")
EndName = Literal["lowest", "highest"]


@dataclass(frozen=True)
class ScoreValues:
    """One score of each row, checked.

    Args:
        name: The score.
        ids: Ids of the rows.
        values: Their scores, in float64.
        scores: Where they are from.
    """

    name: str
    ids: np.ndarray
    values: Float[np.ndarray, " n"]
    scores: Scores

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.ids)

    def count(self, keep: float) -> int:
        """Return how many rows a share is, rounded to the nearest.

        Raises:
            ValueError: It is no share.
        """
        check_between("keep", keep, 0, 1, "a share of the rows")
        return round(keep * len(self))

    def signed(self, drop: EndName) -> Float[np.ndarray, " n"]:
        """Return the scores, or minus them where the highest are dropped."""
        check_one_of("drop", drop, ENDS)
        return self.values if drop == "lowest" else -self.values

    def best_first(self, drop: EndName) -> Int[np.ndarray, " n"]:
        """Return positions, those at the end that is dropped last; ties in their order."""
        return np.argsort(-self.signed(drop), kind="stable")

    def select(
        self,
        kept: Int[np.ndarray, " m"],
        reason: Callable[[int], str],
        *,
        how: dict[str, Any],
        method: str,
    ) -> Selection:
        """Return the selection of some rows.

        Args:
            kept: Positions of the rows to keep, in any order.
            reason: From the position of a row that is left out to why.
            how: The settings.
            method: What the settings are of.
        """
        kept = np.sort(kept)
        left = np.ones(len(self), dtype=bool)
        left[kept] = False
        ids = self.ids.tolist()
        rejected = {ids[row]: reason(row) for row in np.flatnonzero(left).tolist()}
        provenance = {**self.scores.provenance, method: {"score": self.name, **how}}
        columns = {self.name: self.values[kept]}
        if self.name in ("id", "kept", "weight", "reason"):
            columns = {}
        return Selection(self.ids[kept], np.ones(len(kept)), rejected, provenance, columns)


def read_values(scores: Scores) -> ScoreValues:
    """Return the only score of a table.

    Raises:
        NonFiniteError: A score is not finite.
        ValueError: There are several columns, or scores of pairs.
    """
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
    (name,) = scores.names
    return ScoreValues(name, scores.ids, values, scores)
