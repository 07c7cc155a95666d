r"""Memorisation: how much better a model is at an example that it was trained on.

Letters: ``m`` trained models, ``n`` rows, ``r`` repeats.

Models are trained on all folds but one. With ``c`` what a model gets right of an example,

.. math:: \mathrm{mem}(i) = E[c_i | i \in S] - E[c_i | i \notin S];

the second term alone is the consistency score of Jiang et al.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Float, Int

from projections import (
    DataError,
    PassSettings,
    Scores,
    Statistic,
    Task,
    as_rows,
    check_at_least,
    describe,
    run_pass,
    track,
)
from selection.dsir.noise import row_uniforms

Train = Callable[[Int[np.ndarray, " k"], int], Task]
"""``train(positions, seed)``: a task whose model was trained on these rows of the data."""


@dataclass(frozen=True, kw_only=True)
class Folds:
    """Cut rows into folds of equal size at random, by their ids and not by their order.

    Args:
        num_folds: Number of folds; each model is trained without one of them.
        num_repeats: How often all rows are cut anew.
        seed: Seed of the cuts.

    Example:
        >>> Folds(num_folds=2, num_repeats=2, seed=0).assign(np.arange(6))
        array([[1, 0, 1, 1, 0, 0],
               [0, 1, 0, 1, 1, 0]])
    """

    num_folds: int = 4
    num_repeats: int = 1
    seed: int

    def __post_init__(self) -> None:
        """Check the arguments."""
        check_at_least("num_folds", self.num_folds, 2)
        check_at_least("num_repeats", self.num_repeats, 1)

    def assign(self, ids: np.ndarray) -> Int[np.ndarray, "r n"]:
        """Return the fold of each row in each repeat.

        Raises:
            ValueError: There are fewer rows than folds.
        """
        if len(ids) < self.num_folds:
            raise ValueError(
                f"`num_folds` must be at most the number of rows, {len(ids)}. Got {self.num_folds}."
            )
        found = np.empty((self.num_repeats, len(ids)), np.int64)
        for repeat, folds in enumerate(found):
            drawn = row_uniforms(pa.array(ids), seed=self.seed, name=f"folds/{repeat}")
            folds[np.lexsort((ids, drawn))] = np.arange(len(ids)) % self.num_folds
        return found

    def included(self, ids: np.ndarray) -> Bool[np.ndarray, "m n"]:
        """Return which rows each model is trained on, one repeat after the other."""
        folds = self.assign(ids)
        return np.concatenate([own != np.arange(self.num_folds)[:, None] for own in folds])


def memorisation(
    ids: np.ndarray, outcomes: Float[np.ndarray, "m n"], included: Bool[np.ndarray, "m n"]
) -> Scores:
    """Compare what models get right of rows they were trained on, and of rows held out.

    Args:
        ids: Ids of the rows.
        outcomes: For each model and row, 1 where it is right and else 0; or any number
            that is larger the better the model is at the row, such as the margin.
        included: Whether the model was trained on the row.

    Returns:
        ``memorisation``: mean outcome of models with the row, less that of models without it.
        ``held_out``: the latter; for 0 and 1 the consistency score. ``trained_on``: the former.

    Raises:
        DataError: A row was always included, or never.

    Example:
        >>> outcomes = np.array([[1.0, 1], [1, 0], [1, 1]])
        >>> included = np.array([[True, True], [False, False], [True, False]])
        >>> memorisation(np.arange(2), outcomes, included)["memorisation"].values
        array([0. , 0.5])

    References:
        Feldman and Zhang, What neural networks memorize and why (NeurIPS 2020),
        arXiv:2008.03703, Sec. 2; Jiang et al., Characterizing structural regularities of labeled
        data in overparameterized models (ICML 2021), arXiv:2002.03206, for ``held_out``.
    """
    with_row, without = included.sum(axis=0), (~included).sum(axis=0)
    bad = (with_row == 0) | (without == 0)
    if bad.any():
        raise DataError(
            "every row must be in the training set of a model, and not in that of another. "
            f"{int(bad.sum())} are not, such as {ids[bad][:5].tolist()}. Use more models or folds."
        )
    inside = np.where(included, outcomes, 0).sum(axis=0) / with_row
    outside = np.where(included, 0, outcomes).sum(axis=0) / without
    columns = {"memorisation": inside - outside, "held_out": outside, "trained_on": inside}
    return Scores(ids, columns)


def score_held_out(
    train: Train,
    data: Any,
    *,
    folds: Folds,
    statistic: str = "correct",
    settings: PassSettings | None = None,
) -> Scores:
    """Train a model without each fold, and score all rows by what the models make of them.

    Args:
        train: Trains a model on some rows and returns its task. It gets their positions and
            the number of the model, to seed it with.
        data: The dataset.
        folds: How rows are cut.
        statistic: What the task computes of a row, larger for what it does better.
        settings: How the passes read the data.

    Returns:
        As of `memorisation`.

    Raises:
        DataError: Rows and folds do not fit.
        ValueError: There are fewer rows than folds, or the task lacks the statistic.
    """
    rows = as_rows(data)
    included = folds.included(rows.ids)
    outcomes = np.empty(included.shape)
    models = track(enumerate(included), "held out", total=len(included), unit="models")
    for number, own in models:
        task = train(np.flatnonzero(own), number)
        table = run_pass(task, rows, [Statistic(statistic)], settings=settings)
        outcomes[number] = table.columns[statistic]
    scores = memorisation(rows.ids, outcomes, included)
    note = {"held_out": {**describe(folds), "statistic": statistic}}
    return Scores(scores.ids, scores.columns, provenance=note)
