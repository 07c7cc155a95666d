"""What became of each example over training: learnt, forgotten, or never learnt.

Letters: ``m`` rows of the data, ``n`` rows of a batch.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from projections import DataError, Provenance, Scores


class LearningHistory:
    """Counts, visit by visit, how often an example that was right becomes wrong.

    A visit is any look at the example: its turn in a training step, or a pass after an epoch.

    Args:
        ids: Ids of the rows.

    Example:
        >>> history = LearningHistory(np.array(["a", "b", "c"]))
        >>> for correct in ([1, 0, 0], [0, 0, 1], [1, 0, 1]):
        ...     history.update(np.arange(3), np.array(correct))
        >>> scores = history.scores()
        >>> scores["forgetting"].values, scores["never_learnt"].values
        (array([1., 3., 0.]), array([0., 1., 0.]))

    References:
        Toneva et al., An empirical study of example forgetting during deep neural network
        learning (ICLR 2019), arXiv:1812.05159, Sec. 3.
    """

    def __init__(self, ids: np.ndarray) -> None:
        """Start with no visit."""
        self.ids = np.asarray(ids)
        self._visits = np.zeros(len(self.ids), np.int64)
        self._right = np.zeros_like(self._visits)
        self._forgotten = np.zeros_like(self._visits)
        self._first = np.zeros_like(self._visits)
        self._last = np.zeros(len(self.ids), dtype=bool)

    @classmethod
    def of_checkpoints(cls, checkpoints: Sequence[Scores]) -> "LearningHistory":
        """Return the history over the column ``correct`` of scores at successive checkpoints.

        Raises:
            DataError: The scores are not about the same rows.
            ValueError: There is no checkpoint.
        """
        if not checkpoints:
            raise ValueError("`checkpoints` must hold the scores of at least one. Got none.")
        history = cls(checkpoints[0].ids)
        for scores in checkpoints:
            if not np.array_equal(scores.ids, history.ids):
                raise DataError(
                    "scores of checkpoints must be about the same ids in the same order. They are "
                    "not. Compute all on one dataset."
                )
            history.update(np.arange(len(scores)), scores["correct"].values)
        return history

    def update(self, positions: Int[np.ndarray, " n"], correct: Any) -> None:
        """Take in whether rows were predicted rightly.

        Args:
            positions: Where the rows stand among the ids, each at most once.
            correct: For each, whether the model is right: marks, or numbers 0 and 1.

        Raises:
            ValueError: A row comes twice, or there is not one mark a row.
        """
        positions = np.asarray(positions)
        right: Bool[np.ndarray, " n"] = np.asarray(correct).astype(bool)
        if right.shape != positions.shape or len(np.unique(positions)) < len(positions):
            raise ValueError(
                "`positions` must hold each row at most once, with one mark each. Got "
                f"{len(positions)} positions, {len(np.unique(positions))} of them different, and "
                f"marks of shape {right.shape}. Call `update` once for each visit."
            )
        self._visits[positions] += 1
        self._forgotten[positions] += self._last[positions] & ~right
        newly = right & (self._right[positions] == 0)
        self._first[positions[newly]] = self._visits[positions[newly]]
        self._right[positions] += right
        self._last[positions] = right

    def scores(self) -> Scores:
        """Return what is known of each row.

        Returns:
            ``forgetting``: how often it went from right to wrong. A row that was never right
            has the largest number of visits of any row instead, which is above every count:
            the published order, where it is infinite. ``never_learnt``: 1 for such rows.
            ``first_learnt``: the visit at which it was first right; one more than the largest
            number of visits if it never was. ``consistency``: the share of visits at which it
            was right.

        Raises:
            DataError: A row was never visited.
        """
        unseen = self._visits == 0
        if unseen.any():
            raise DataError(
                f"every row must be visited at least once. {int(unseen.sum())} were not, such as "
                f"{self.ids[unseen][:5].tolist()}. Train for a whole epoch first."
            )
        never = self._right == 0
        most = self._visits.max(initial=0)
        columns = {
            "forgetting": np.where(never, most, self._forgotten),
            "never_learnt": never,
            "first_learnt": np.where(never, most + 1, self._first),
            "consistency": self._right / self._visits,
        }
        note: Provenance = {"learning": {"most_visits": int(most)}}
        floats = {name: np.asarray(values, np.float64) for name, values in columns.items()}
        return Scores(self.ids, floats, provenance=note)

    def state_dict(self) -> dict[str, Any]:
        """Return the counts, as plain values that JSON keeps."""
        return {name: getattr(self, f"_{name}").tolist() for name in STATE}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state.

        Raises:
            ValueError: It has another number of rows.
        """
        if any(len(state[name]) != len(self.ids) for name in STATE):
            raise ValueError(
                f"the state must have {len(self.ids)} rows. Got {len(state['visits'])}."
            )
        for name in STATE:
            kept = getattr(self, f"_{name}")
            setattr(self, f"_{name}", np.asarray(state[name], kept.dtype))


STATE = ("visits", "right", "forgotten", "first", "last")
