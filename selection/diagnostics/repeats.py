"""Examples that are there several times, and those of them that have different labels.

Letters: ``n`` rows.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import numpy as np
import scipy.sparse
from scipy.sparse.csgraph import connected_components

from projections import LABEL_COLUMNS, DataError, as_embeddings, as_rows, bytes_of, check_between
from selection.coverage.neighbours import TICKS, NeighbourGraph

Split = Callable[[Any], tuple[Any, Any]]
"""From a row to its input and its label."""


@dataclass(frozen=True)
class Repeats:
    """Rows with one input.

    Args:
        ids: Their ids, in the order of the data.
        labels: The label of each.
    """

    ids: np.ndarray
    labels: tuple[Any, ...]

    @property
    def in_conflict(self) -> bool:
        """Whether the same input has different labels, so that one at least is wrong."""
        return len(set(map(str, self.labels))) > 1


@dataclass(frozen=True)
class RepeatReport:
    """All inputs that occur several times.

    Args:
        num_rows: Number ``n`` of rows that were looked at.
        groups: The rows of each such input, the largest group first.
    """

    num_rows: int
    groups: tuple[Repeats, ...]

    @property
    def num_spare(self) -> int:
        """Rows that could go without any input being lost."""
        return sum(len(group.ids) - 1 for group in self.groups)

    @property
    def conflicts(self) -> tuple[Repeats, ...]:
        """The groups whose labels differ."""
        return tuple(group for group in self.groups if group.in_conflict)


def find_repeats(data: Any, *, split: Split | None = None) -> RepeatReport:
    """Find rows whose inputs are the same, byte for byte.

    Args:
        data: A dataset; see `Rows`.
        split: Takes a row apart into input and label; may also simplify the input, to lower
            case for instance. Pairs and rows with a label column need none.

    Raises:
        DataError: A row is no pair and has no label column.

    Example:
        >>> rows = [("a cat", 0), ("a dog", 1), ("a cat", 1)]
        >>> (found,) = find_repeats(rows).groups
        >>> found.ids, found.labels, found.in_conflict
        (array([0, 2]), (0, 1), True)
    """
    rows = as_rows(data)
    seen: dict[bytes, list[int]] = {}
    labels: list[Any] = []
    for position in range(len(rows)):
        (row,) = rows.fetch([position])
        given, label = (split or split_row)(row)
        digest = sha256()
        for piece in bytes_of(given):
            digest.update(len(piece).to_bytes(8, "little"))
            digest.update(piece)
        seen.setdefault(digest.digest(), []).append(position)
        labels.append(label.item() if hasattr(label, "item") else label)
    return _report(rows.ids, labels, [group for group in seen.values() if len(group) > 1])


def find_near_repeats(
    embeddings: Any,
    labels: Sequence[Any] | np.ndarray,
    *,
    threshold: float = 0.99,
    num_neighbours: int = 16,
    seed: int = 0,
) -> RepeatReport:
    """Find rows whose embeddings are nearly the same, in groups.

    Rows are joined if their cosine is above the threshold, and so are those that are joined
    to the same row: the ends of a group may be less alike. Embed inputs, and not gradients,
    which differ where labels do.

    Args:
        embeddings: `Embeddings`, or an array with one vector a row.
        labels: The label of each row.
        threshold: The cosine from which on two rows are one, above 0.
        num_neighbours: Nearest rows of each that are looked at.
        seed: Draws what the search learns from, above 65,536 rows.

    Raises:
        DataError: There is not one label a row.
        ValueError: The threshold is not in ``[0, 1]``.

    Example:
        >>> rows = np.array([[1.0, 0], [1, 0.01], [0, 1]])
        >>> found = find_near_repeats(rows, ["cat", "dog", "dog"])
        >>> found.conflicts[0].ids, found.num_spare
        (array([0, 1]), 1)
    """
    check_between("threshold", threshold, 0, 1, "a cosine")
    given = as_embeddings(embeddings)
    if len(labels) != len(given):
        raise DataError(f"`labels` must have one entry a row, {len(given)}. Got {len(labels)}.")
    graph = NeighbourGraph(num_neighbours=num_neighbours, seed=seed).build(given)
    near = scipy.sparse.csr_array(graph >= max(1, round(threshold * TICKS)))
    _, members = connected_components(near, directed=False)
    order = np.argsort(members, kind="stable")
    cuts = np.flatnonzero(np.diff(members[order])) + 1
    groups = [part.tolist() for part in np.split(order, cuts) if len(part) > 1]
    plain = [label.item() if hasattr(label, "item") else label for label in labels]
    return _report(given.ids, plain, groups)


def split_row(row: Any) -> tuple[Any, Any]:
    """Return the input and the label of a row: a pair, or a mapping with a label column.

    Raises:
        DataError: It is neither.
    """
    if isinstance(row, tuple | list) and len(row) == 2:
        return row[0], row[1]
    if isinstance(row, dict):
        for name in LABEL_COLUMNS:
            if name in row:
                return {k: v for k, v in row.items() if k not in (name, "id")}, row[name]
    raise DataError(
        "rows must be pairs of input and label, or have a label in one of the columns "
        f"{', '.join(LABEL_COLUMNS)}. Got {row!r:.200}. Give `split`."
    )


def _report(ids: np.ndarray, labels: Sequence[Any], groups: Sequence[list[int]]) -> RepeatReport:
    """Return the report of groups of positions."""
    ordered = sorted(groups, key=lambda group: (-len(group), group[0]))
    found = (Repeats(ids[group], tuple(labels[place] for place in group)) for group in ordered)
    return RepeatReport(len(ids), tuple(found))
