"""Keep the best rows up to a number of rows or tokens, or a number of each group.

Letters: ``n`` rows.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Real

from projections import DataError, Scores, check_at_least
from selection.base import Selection
from selection.pool import Budget
from selection.pruning.values import EndName, read_values
from selection.row_blocks import number_groups


def keep_budget(
    scores: Scores,
    *,
    num_tokens: float | None = None,
    tokens: Real[np.ndarray, " n"] | None = None,
    num_selected: int | None = None,
    drop: EndName = "lowest",
) -> Selection:
    """Keep the best rows, up to the first that does not fit a budget of tokens or rows.

    Args:
        scores: One score an example.
        num_tokens: Most tokens of the kept rows together.
        tokens: Number of tokens of each row, in the order of the scores.
        num_selected: Most rows.
        drop: Which end of the score is the worse one.

    Returns:
        The kept rows in the order of the scores' rows.

    Raises:
        DataError: There is not one number of tokens a row.
        NonFiniteError: A score is not finite.
        ValueError: No budget is given, or one is negative.

    Example:
        >>> scores = Scores(np.arange(3), {"quality": np.array([0.2, 0.9, 0.5])})
        >>> keep_budget(scores, num_tokens=10, tokens=np.array([3, 8, 2])).ids
        array([1, 2])
    """
    found = read_values(scores)
    if num_tokens is None and num_selected is None:
        raise ValueError("`num_tokens` or `num_selected` must be given. Got neither.")
    budget = Budget(num_tokens=num_tokens, tokens=tokens, num_selected=num_selected)
    budget.check(len(found))
    order = found.best_first(drop)
    ranks = np.argsort(order)
    how = {"num_tokens": num_tokens, "num_selected": num_selected, "drop": drop}
    return found.select(
        order[: budget.cut(order)],
        lambda row: (
            f"{found.name} {found.values[row]:.4g} has rank {ranks[row] + 1} of {len(found)}: "
            f"{budget.reason}"
        ),
        how=how,
        method="budget",
    )


def keep_quotas(
    scores: Scores,
    groups: Sequence[Any] | np.ndarray,
    *,
    quotas: Mapping[Any, int],
    drop: EndName = "lowest",
) -> Selection:
    """Keep the best rows of each group, up to its own number.

    Args:
        scores: One score an example.
        groups: The class or domain of each row, in the order of the scores.
        quotas: Most rows by group; a group that is not named gives none.
        drop: Which end of the score is the worse one.

    Returns:
        The kept rows in the order of the scores' rows.

    Raises:
        DataError: There is not one group a row, or a quota names a group that is not there.
        NonFiniteError: A score is not finite.
        ValueError: A quota is negative.

    Example:
        >>> scores = Scores(np.arange(4), {"quality": np.array([0.1, 0.2, 0.3, 0.4])})
        >>> keep_quotas(scores, ["web", "web", "code", "web"], quotas={"web": 2, "code": 1}).ids
        array([1, 2, 3])
    """
    numbers, names = number_groups(groups, len(scores))
    unknown = [name for name in quotas if name not in names]
    if unknown:
        raise DataError(
            f"`quotas` must name groups that are there, {names[:10]}. Got also {unknown[:10]}."
        )
    for name, quota in quotas.items():
        check_at_least(f"quotas[{name!r}]", quota, 0)
    found = read_values(scores)
    order = found.best_first(drop)
    ranks = np.empty(len(found), np.int64)  # within its group
    for number in range(len(names)):
        members = order[numbers[order] == number]
        ranks[members] = np.arange(len(members))
    limits = np.array([quotas.get(name, 0) for name in names], np.int64)[numbers]

    def reason(row: int) -> str:
        value = f"{found.name} {found.values[row]:.4g} has rank {ranks[row] + 1}"
        return f"{value} in {names[numbers[row]]!r}, of which {limits[row]} are kept"

    how = {"quotas": {str(name): int(quota) for name, quota in quotas.items()}, "drop": drop}
    return found.select((ranks < limits).nonzero()[0], reason, how=how, method="quotas")


def select_within(
    scores: Scores, groups: Sequence[Any] | np.ndarray, select: Callable[[Scores], Selection]
) -> Selection:
    """Apply any selector to each group by itself, so that none is lost altogether.

    Args:
        scores: One score an example.
        groups: The class or domain of each row, in the order of the scores.
        select: From the scores of a group to a selection.

    Returns:
        What is kept of all groups, in the order of the scores' rows.

    Raises:
        DataError: There is not one group a row.

    Example:
        >>> from selection import prune
        >>> scores = Scores(np.arange(4), {"quality": np.array([0.1, 0.2, 0.3, 0.4])})
        >>> select_within(scores, ["a", "a", "b", "b"], lambda part: prune(part, keep=0.5)).ids
        array([1, 3])
    """
    numbers, names = number_groups(groups, len(scores))
    parts = []
    for number in range(len(names)):
        own = numbers == number
        columns = {name: values[..., own] for name, values in scores.columns.items()}
        parts.append(select(Scores(scores.ids[own], columns, scores.query_ids, scores.provenance)))
    return _joined(scores, parts, names)


def _joined(scores: Scores, parts: Sequence[Selection], names: Sequence[Any]) -> Selection:
    """Return the selections of all groups as one, in the order of the scores."""
    if not parts:
        return Selection(scores.ids, np.zeros(0), {}, dict(scores.provenance))
    places = {row_id: place for place, row_id in enumerate(scores.ids.tolist())}
    ids = np.concatenate([part.ids for part in parts])
    order = np.argsort([places[row_id] for row_id in ids.tolist()], kind="stable")
    weights = np.concatenate([part.weights for part in parts])[order]
    columns = {
        name: np.concatenate([part.columns[name] for part in parts])[order]
        for name in parts[0].columns
    }
    reasons = {
        row_id: f"{reason} (in {name!r})"
        for part, name in zip(parts, names, strict=True)
        for row_id, reason in part.rejected.items()
    }
    rejected = {row_id: reasons[row_id] for row_id in scores.ids.tolist() if row_id in reasons}
    note = {**parts[0].provenance, "within": {"groups": [str(name) for name in names]}}
    return Selection(ids[order.astype(np.int64)], weights, rejected, note, columns)
