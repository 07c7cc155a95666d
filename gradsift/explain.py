"""All that is known of one example, from scores, an index and its data."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from gradsift.html import as_number
from gradsift.shown_rows import Shown, ShownRows
from influence import GradientCosine, retrieve_rows
from projections import DataError, GradientStore, Rows, Scores, read_dataset
from selection import find_class_outliers, find_repeats

NUM_NEIGHBOURS = 5
SNIPPET = 100  # characters of another example


@dataclass(frozen=True)
class Standing:
    """One score of the example among those of all.

    Args:
        source: Where the score is from.
        name: The score.
        value: Its value for the example.
        below: Share of all examples with a smaller value.
        rank: Its place from the highest, the first being 1.
        count: Number of examples with a value.
    """

    source: str
    name: str
    value: float
    below: float
    rank: int
    count: int


@dataclass(frozen=True)
class Neighbour:
    """An example whose gradient is like that of the one in question, or unlike.

    Args:
        id: Which.
        cosine: Cosine of both rows of the index.
        text: How it begins.
    """

    id: Any
    cosine: float
    text: str


@dataclass(frozen=True)
class Explanation:
    """All that is known of one example.

    Args:
        id: Which.
        text: The example, or nothing without data.
        fields: Its other columns.
        standings: Its scores.
        alike: Examples with the most similar gradients.
        opposed: Examples with the most opposed gradients.
        group: Its label, the label that its gradient agrees with most beside that, and the
            difference of both cosines; below 0 for an example that another label suits better.
        repeats: Ids and labels of other rows with the same input.
    """

    id: Any
    text: str = ""
    fields: Mapping[str, Any] = field(default_factory=dict)
    standings: Sequence[Standing] = ()
    alike: Sequence[Neighbour] = ()
    opposed: Sequence[Neighbour] = ()
    group: tuple[str, str, float] | None = None
    repeats: Sequence[tuple[Any, str]] = ()

    def as_json(self) -> dict[str, Any]:
        """Return it as plain values."""
        return asdict(self)

    def lines(self) -> Iterator[str]:
        """Yield it as lines for a terminal."""
        yield f"example {self.id}"
        if self.text:
            yield from (f"  {line}" for line in self.text.splitlines())
        for name, value in self.fields.items():
            yield f"  {name}: {value}"
        for one in self.standings:
            yield (
                f"{one.name} ({one.source}): {as_number(one.value)}, place {one.rank:,} of "
                f"{one.count:,} from the highest, above {one.below:.0%} of all"
            )
        if self.group is not None:
            own, other, margin = self.group
            verdict = "another label suits it better" if margin < 0 else "its own label suits it"
            yield (
                f"label {own}: {verdict}; cosine with its own label less that with {other}: "
                f"{margin:.3g}"
            )
        for title, found in (("gradients most alike", self.alike), ("most opposed", self.opposed)):
            if found:
                yield f"{title}:"
                yield from (f"  {one.cosine:7.3f}  {one.id}  {one.text}" for one in found)
        if self.repeats:
            yield "rows with the same input:"
            yield from (f"  {row_id}  label {label}" for row_id, label in self.repeats)


def explain(example: str, sources: Sequence[Path], data: Path | None = None) -> Explanation:
    """Collect what tables of scores and indexes say of one example.

    Args:
        example: Its id; text that reads like the id of a row.
        sources: Tables of `Scores` and folders of stores.
        data: The data, to show the example, its neighbours and its repeats.

    Raises:
        DataError: No source has the example, or one of them is neither scores nor a store.
    """
    found: dict[str, Any] = {"standings": []}
    rows = None if data is None else Rows(read_dataset(data))
    row_id: Any = None
    for source in sources:
        store = GradientStore.open(source) if source.is_dir() else None
        scores = (
            Scores.load(source)
            if store is None
            else Scores.from_table(store.table(), store.manifest)
        )
        place = _place(example, scores.ids, source)
        row_id = scores.ids[place].item()
        found["standings"] += [
            standing
            for name in scores.names
            if (standing := _standing(source.name, name, scores.columns[name], place)) is not None
        ]
        if store is not None:
            shown = ShownRows(data, store.ids, rows)
            found["alike"], found["opposed"] = _neighbours(store, place, shown)
            found["group"] = _group(store, place, shown)
    if rows is not None:
        found |= _from_data(row_id, ShownRows(data, np.asarray([row_id]), rows))
    return Explanation(row_id, **found)


def _place(example: str, ids: np.ndarray, source: Path) -> int:
    """Return the position of an id that was typed.

    Raises:
        DataError: There is no such id.
    """
    found = np.flatnonzero(ids.astype(str) == example)
    if len(found) == 0:
        raise DataError(
            f"{source} must have the example {example!r}. Its ids are such as {ids[:5].tolist()}."
        )
    return int(found[0])


def _standing(source: str, name: str, values: Any, place: int) -> Standing | None:
    """Return one score among all, the mean over queries where there are several."""
    values = np.asarray(values, dtype=float)
    values = values.mean(axis=0) if values.ndim == 2 else values
    known = values[np.isfinite(values)]
    value = float(values[place])
    if not np.isfinite(value):
        return None
    below, above = int((known < value).sum()), int((known > value).sum())
    return Standing(source, name, value, below / len(known), above + 1, len(known))


def _neighbours(
    store: GradientStore, place: int, shown: ShownRows
) -> tuple[list[Neighbour], list[Neighbour]]:
    """Return the examples with the most similar and the most opposed gradients."""
    row = store.rows([place])
    count = min(len(store), NUM_NEIGHBOURS + 1)
    ends = retrieve_rows(row, store, GradientCosine(), k=count)
    own = store.ids[place]
    alike, opposed = (
        [
            Neighbour(row_id, float(cosine), _snippet(shown.show(row_id)))
            for row_id, cosine in zip(end.ids[0].tolist(), end.scores[0], strict=True)
            if row_id != own
        ][:NUM_NEIGHBOURS]
        for end in ends
    )
    return alike, opposed


def _snippet(shown: Shown) -> str:
    """Return the start of another example on one line; the fields of an image."""
    if not shown:
        return ""
    fields = ", ".join(f"{name} {value}" for name, value in shown["fields"].items())
    text = fields if shown["image"] is not None else " ".join(shown["example"].split())
    return text if len(text) <= SNIPPET else text[: SNIPPET - 3] + "..."


def _group(store: GradientStore, place: int, shown: ShownRows) -> tuple[str, str, float] | None:
    """Return the label, the nearest other and the margin, where there are labels."""
    column = shown.column(None)
    groups = [] if column is None else [str(value) for value in column[1]]
    if len(set(groups)) < 2:
        return None
    found = find_class_outliers(store, groups)
    at = int(np.flatnonzero(found.ids == store.ids[place])[0])
    return str(found.groups[at]), str(found.nearest[at]), float(found.margins[at])


def _from_data(row_id: Any, shown: ShownRows) -> dict[str, Any]:
    """Return what the data says."""
    seen = shown.show(row_id)
    known = {"text": seen.get("example", ""), "fields": seen.get("fields", {})}
    if shown.rows is None or shown.column(None) is None:
        return known
    for group in find_repeats(shown.rows).groups:
        if row_id in group.ids.tolist():
            others = zip(group.ids.tolist(), map(str, group.labels), strict=True)
            return known | {"repeats": [pair for pair in others if pair[0] != row_id]}
    return known
