r"""Keep rows from the whole range of a score: stratified, and coverage-centric.

Letters: ``n`` rows, ``s`` strata.

At high pruning rates the hardest rows alone leave regions of the data empty, and are worse
than chance. Cutting the *range* of the score into strata of equal width, and spreading the
budget evenly over them, keeps few of the many easy rows and most of the rare hard ones.
"""

import numpy as np
from jaxtyping import Int

from projections import Scores, check_at_least, check_between
from selection.base import Selection
from selection.pruning.noise import chances
from selection.pruning.values import EndName, ScoreValues, read_values


def keep_stratified(scores: Scores, *, keep: float, num_strata: int = 50, seed: int) -> Selection:
    """Keep a share of the rows, as evenly as possible from strata of the score's range.

    Strata that hold fewer rows than their part give all they have, and the rest of their
    part goes to the others. Which rows of a stratum are kept is drawn by seed and id.

    Args:
        scores: One score an example.
        keep: The share of rows to keep, in ``[0, 1]``.
        num_strata: Number ``s`` of strata of equal width.
        seed: Seed of the draw.

    Returns:
        The kept rows in the order of the scores' rows.

    Raises:
        NonFiniteError: A score is not finite.
        ValueError: A number is out of range.

    Example:
        >>> values = np.array([0.0, 0.01, 0.02, 0.03, 0.5, 1.0])
        >>> scores = Scores(np.arange(6), {"loss": values})
        >>> kept = keep_stratified(scores, keep=0.5, num_strata=3, seed=0)
        >>> kept.columns["loss"][1:]
        array([0.5, 1. ])

    References:
        Zheng et al., Coverage-centric coreset selection for high pruning rates (ICLR 2023),
        arXiv:2210.15809, Alg. 1 without its cut-off.
    """
    found = read_values(scores)
    check_at_least("num_strata", num_strata, 1)
    strata = cut_range(found.values, num_strata)
    kept, wanted = spread(found, np.arange(len(found)), strata, found.count(keep), seed)
    how = {"keep": keep, "num_strata": num_strata, "seed": seed}
    return found.select(kept, lambda row: _reason(strata, wanted, row), how=how, method="strata")


def keep_covering(
    scores: Scores,
    *,
    keep: float,
    cut: float,
    hard: EndName = "highest",
    num_strata: int = 50,
    seed: int,
) -> Selection:
    """Coverage-centric selection: drop the hardest share, then keep strata of the rest evenly.

    Args:
        scores: One score an example.
        keep: The share of all rows to keep, in ``[0, 1]``.
        cut: The share of all rows to drop at the hard end first, in ``[0, 1 - keep]``; the
            paper tunes it, from 0 at mild to a third at the highest pruning rates.
        hard: Which end of the score is the hard one.
        num_strata: Number ``s`` of strata of equal width.
        seed: Seed of the draw within strata.

    Returns:
        The kept rows in the order of the scores' rows.

    Raises:
        NonFiniteError: A score is not finite.
        ValueError: A number is out of range, or the shares are more than 1 together.

    Example:
        >>> scores = Scores(np.arange(4), {"el2n": np.array([0.1, 0.2, 0.6, 1.4])})
        >>> kept = keep_covering(scores, keep=0.5, cut=0.25, num_strata=2, seed=0)
        >>> kept.rejected[3], 2 in kept.ids
        ('el2n 1.4 is among the highest 1 of 4, which are cut', True)

    References:
        Zheng et al., Coverage-centric coreset selection for high pruning rates (ICLR 2023),
        arXiv:2210.15809, Alg. 1.
    """
    found = read_values(scores)
    check_at_least("num_strata", num_strata, 1)
    check_between("cut", cut, 0, 1, "a share of the rows")
    num_cut, count = found.count(cut), found.count(keep)
    if num_cut + count > len(found):
        raise ValueError(
            f"`keep` and `cut` must be at most 1 together. Got {keep} and {cut}: {count} and "
            f"{num_cut} of {len(found)} rows."
        )
    order = found.best_first(hard)  # the hard end last
    rest, gone = np.sort(order[: len(found) - num_cut]), order[len(found) - num_cut :]
    strata = np.full(len(found), -1)
    strata[rest] = cut_range(found.values[rest], num_strata)
    kept, wanted = spread(found, rest, strata, count, seed)
    is_gone = np.zeros(len(found), dtype=bool)
    is_gone[gone] = True

    def reason(row: int) -> str:
        if is_gone[row]:
            where = f"is among the {hard} {num_cut} of {len(found)}, which are cut"
            return f"{found.name} {found.values[row]:.4g} {where}"
        return _reason(strata, wanted, row)

    how = {"keep": keep, "cut": cut, "hard": hard, "num_strata": num_strata, "seed": seed}
    return found.select(kept, reason, how=how, method="coverage")


def cut_range(values: np.ndarray, num_strata: int) -> Int[np.ndarray, " n"]:
    """Return the number of the stratum of each value, of strata of equal width.

    Example:
        >>> cut_range(np.array([0.0, 0.4, 0.5, 1.0]), 2)
        array([0, 0, 1, 1])
    """
    if not len(values) or np.ptp(values) == 0:
        return np.zeros(len(values), np.int64)
    places = (values - values.min()) / np.ptp(values) * num_strata
    return np.minimum(places.astype(np.int64), num_strata - 1)


def share_out(sizes: Int[np.ndarray, " s"], count: int) -> Int[np.ndarray, " s"]:
    """Return how many each stratum gives: all of the small ones, and the large ones the same.

    Where the rest does not divide, the largest give one more; of equals the later.

    Example:
        >>> share_out(np.array([1, 10, 10]), 8)
        array([1, 3, 4])
    """
    given = np.zeros(len(sizes), np.int64)
    order = np.argsort(sizes, kind="stable")
    for place, stratum in enumerate(order):
        part = (count - int(given.sum())) // (len(sizes) - place)
        given[stratum] = min(int(sizes[stratum]), part)
    return given


def spread(
    found: ScoreValues,
    rows: Int[np.ndarray, " m"],
    strata: Int[np.ndarray, " n"],
    count: int,
    seed: int,
) -> tuple[Int[np.ndarray, " k"], dict[int, tuple[int, int]]]:
    """Draw rows evenly from strata.

    Returns:
        Positions of the rows; and of each stratum how many of how many were drawn.
    """
    names, sizes = np.unique(strata[rows], return_counts=True)
    given = share_out(sizes, count)
    drawn = chances(found.ids, seed=seed, name="pruning/strata")
    parts = []
    for stratum, number in zip(names, given, strict=True):
        members = rows[strata[rows] == stratum]
        parts.append(members[np.argsort(drawn[members], kind="stable")[:number]])
    counts = zip(given.tolist(), sizes.tolist(), strict=True)
    wanted = dict(zip(names.tolist(), counts, strict=True))
    return np.concatenate([*parts, np.zeros(0, np.int64)]), wanted


def _reason(strata: Int[np.ndarray, " n"], wanted: dict[int, tuple[int, int]], row: int) -> str:
    """Return why a row of a stratum is left out."""
    number, size = wanted[int(strata[row])]
    return f"not drawn: {number} of {size} of stratum {int(strata[row])} are kept"
