"""A set-up, its truth by retraining, and what methods are worth against it."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from attribution_methods import METHODS
from attribution_scores import (
    Scored,
    code_of,
    read_scored,
    score,
    slug,
    write_scored,
)
from attribution_setups import Setup
from attribution_trained import DEFAULT, Trained
from code_behind import code_behind

from influence import (
    Estimate,
    error_over_subsets,
    leave_one_out,
    linear_datamodeling_score,
    quantile_drop,
    retrained_losses,
    without_top,
)
from influence.retrained_losses import fingerprint

DROPPED = {  # whose top is removed and the model retrained
    "random",
    "gradient dot product",
    "EK-FAC",
    "index, int8",
    "TRAK, 10 models",
    "exact influence",
    "TracIn, 10 checkpoints",
    "DataInf",
}


@dataclass(frozen=True)
class Bench:
    """A set-up, its truth and where results are kept."""

    setup: Setup
    trained: Trained
    kept: Path | None
    only_kept: bool
    masks: np.ndarray | None
    losses: np.ndarray | None

    @classmethod
    def of(cls, trained: Trained, kept: Path | None, *, only_kept: bool) -> "Bench":
        setup = trained.setup
        masks, losses = setup.outcomes(kept) if setup.num_subsets else (None, None)
        return cls(setup, trained, kept, only_kept, masks, losses)

    def folder(self, name: str) -> Path | None:
        return None if self.kept is None else self.kept / self.setup.name / name

    def path(self, method: str) -> Path | None:
        """Return where the scores of a method are kept: by the problem, and by all their code."""
        setup = self.setup
        of = fingerprint(setup.trainer, self.trained.whole, setup.queries)
        code = code_behind(*code_of(method))
        size = "-tiny" if self.trained.tiny else ""
        return self.folder(f"scores-{slug(method)}-{of}-{code}{size}.npz")

    def has(self, method: str) -> bool:
        """Tell whether a method has been run."""
        path = self.path(method)
        return path is not None and path.exists()

    def scored(self, method: str) -> Scored:
        """Return what a method says, from what is kept if it is there."""
        path = self.path(method)
        if path is not None and path.exists():
            return read_scored(method, path)
        result = score(self.trained, method, METHODS[method])
        if path is not None:
            write_scored(result, path)
        return result

    @cached_property
    def known(self) -> np.ndarray:
        """Which queries have a truth: losses that vary over both halves of the subsets."""
        assert self.losses is not None
        parts = np.array_split(self.losses, 2, axis=1)
        return np.all([(np.ptp(part, axis=1) > 0).all(0) for part in parts], axis=0)

    def lds(self, scores: np.ndarray, part: slice = slice(None)) -> Estimate:
        """Return the LDS on some of the subsets, for as many queries as were asked.

        A query whose scores are all equal, as where its gradient is zero, counts as 0; one
        without a truth does not count.
        """
        masks, scores, losses = self._compared(scores, part)
        varied = np.ptp(scores, axis=1) > 0
        values = np.zeros(len(scores))
        if varied.any():
            found = linear_datamodeling_score(masks, scores[varied], losses[:, varied])
            values[varied] = found.values
        return Estimate.over(values)

    def lds_error(self, scores: np.ndarray, part: slice) -> float:
        return error_over_subsets(*self._compared(scores, part))

    def _compared(
        self, scores: np.ndarray, part: slice
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return subsets, scores and losses of the queries that were asked and have a truth."""
        assert self.masks is not None and self.losses is not None
        known = self.known[: len(scores)]
        losses = self.losses.mean(0)[part, : len(scores)]
        return self.masks[part], scores[known], losses[:, known]

    def chosen(self, scored: Scored) -> str:
        """Return the damping that is best on the first half of the subsets."""
        if self.masks is None:
            return DEFAULT
        first = slice(0, len(self.masks) // 2)
        return max(scored.scores, key=lambda name: self.lds(scored.scores[name], first).mean)

    def drop(self, scored: Scored) -> Estimate | None:
        """Retrain without the top of each of some queries."""
        count = min(self.setup.num_drops, len(next(iter(scored.scores.values()))))
        if not count or scored.method not in DROPPED:
            return None
        scores = scored.scores[self.chosen(scored)][:count]
        masks = np.concatenate([np.ones_like(without_top(scores[:1])), without_top(scores)])
        queries = tuple(part[:count] for part in self.setup.queries)
        folder = self.setup.retrained_folder(self.kept, "drops", masks, queries)
        if self.only_kept and not (folder and folder.exists()):
            return None
        losses = retrained_losses(self.setup.trainer, masks, queries, seeds=[0], kept=folder)[0]
        return quantile_drop(losses[1:].astype(np.float64), losses[0].astype(np.float64))

    def left_out(self) -> tuple[list[int], np.ndarray] | None:
        """Retrain without each of some examples."""
        if not self.setup.num_left_out:
            return None
        random = np.random.default_rng(11)
        count = self.setup.num_examples
        removed = random.permutation(count)[: self.setup.num_left_out].tolist()
        masks, queries = leave_one_out(count, removed), self.setup.queries
        folder = self.setup.retrained_folder(self.kept, "left-out", masks, queries)
        if self.only_kept and not (folder and folder.exists()):
            return None
        losses = retrained_losses(self.setup.trainer, masks, queries, seeds=[0], kept=folder)[0]
        return removed, losses
