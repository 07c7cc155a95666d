"""A page about a table of scores, or about a gradient store.

Letters: ``n`` examples, ``q`` queries.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from gradsift.figures import histogram
from gradsift.html import align_numbers, write_page
from projections import DataError, GradientStore, Rows, Scores, read_dataset

NUM_EXAMPLES = 8  # at each end
QUANTILES = {"lowest": 0.0, "1 %": 0.01, "25 %": 0.25, "median": 0.5, "75 %": 0.75, "99 %": 0.99}
QUANTILES["highest"] = 1.0
LONGEST = 600  # characters of an example
SHORT = 40  # characters of a value that is shown beside the text
TEXT = "text"


def write_report(source: Path, *, data: Path | None = None, out: Path | None = None) -> Path:
    """Write a page with the distribution and both ends of each score.

    Args:
        source: A table of `Scores`, or the folder of a `GradientStore`.
        data: The data that was scored, to show the examples themselves.
        out: The page; ``source`` + ``.report.html`` unless given.

    Returns:
        The page.

    Raises:
        DataError: The source is neither, or the data does not hold its rows.
    """
    scores, facts = _read(source)
    describe = _describer(data, scores.ids)
    parts = [_part(scores, name, describe) for name in scores.names]
    out = out or source.with_name(source.name + ".report.html")
    count = f"{len(scores):,}"
    write_page(
        out,
        "scores.html",
        name=source.name,
        lede=f"{count} examples, {len(parts)} "
        + ("score" if len(parts) == 1 else "scores")
        + " each: how they are distributed, and which examples stand at the ends.",
        facts=[(count, "examples"), *facts],
        scores=parts,
        with_data=data is not None,
        origin=_flat({"source": source, "data": data or "not given", **scores.provenance}),
    )
    return out


def _read(source: Path) -> tuple[Scores, list[tuple[str, str]]]:
    """Return the scores of a source, and facts for the head of the page."""
    if source.is_dir():
        store = GradientStore.open(source, allow_unfinished=True)
        facts = [(f"{store.num_dims:,}", "numbers kept of each gradient")]
        if not store.is_finished:
            facts.append((f"{store.num_planned:,}", "examples when it is finished"))
        return Scores.from_table(store.table(), store.manifest), facts
    if not source.exists():
        raise DataError(
            f"{source} must be a table of scores or the folder of a store. There is no such file."
        )
    scores = Scores.load(source)
    if scores.query_ids is None:
        return scores, []
    return scores, [(f"{len(scores.query_ids):,}", "queries")]


def _part(
    scores: Scores, name: str, describe: Callable[[int], Mapping[str, Any]]
) -> dict[str, Any]:
    """Return what the page shows of one score."""
    values = np.asarray(scores.columns[name], dtype=float)
    notes = []
    if values.ndim == 2:
        notes.append(f"The mean over {len(values)} queries.")
        values = values.mean(axis=0)
    finite = np.flatnonzero(np.isfinite(values))
    if len(finite) == 0:
        raise DataError(f"the score {name!r} must have a finite value. It has none.")
    if len(finite) < len(values):
        notes.append(f"{len(values) - len(finite):,} values are not finite and are left out.")
    order = finite[np.argsort(values[finite], kind="stable")]
    known = values[finite]
    quantiles = np.quantile(known, list(QUANTILES.values())).tolist()
    return {
        "name": name,
        "note": " ".join(notes),
        "count": len(finite),
        "figure": histogram(known, label=f"Distribution of {name}", x_label=name),
        "quantiles": list(zip(QUANTILES, align_numbers(quantiles), strict=True)),
        "highest": _examples(order[::-1], scores, values, describe),
        "lowest": _examples(order, scores, values, describe),
    }


def _examples(
    order: np.ndarray,
    scores: Scores,
    values: Float[np.ndarray, " n"],
    describe: Callable[[int], Mapping[str, Any]],
) -> list[dict[str, Any]]:
    """Return the first examples of an order."""
    shown = order[:NUM_EXAMPLES]
    numbers = align_numbers(values[shown].tolist())
    return [
        {"id": scores.ids[row], "score": number, **describe(int(row))}
        for row, number in zip(shown, numbers, strict=True)
    ]


def _describer(data: Path | None, ids: np.ndarray) -> Callable[[int], Mapping[str, Any]]:
    """Return a function from a row of the scores to its example.

    Raises:
        DataError: The data does not hold a row that was scored.
    """
    if data is None:
        return lambda row: {}
    rows = Rows(read_dataset(data))
    where = {row_id: position for position, row_id in enumerate(rows.ids.tolist())}
    missing = [row_id for row_id in ids.tolist() if row_id not in where]
    if missing:
        raise DataError(
            f"{data} must hold every row that was scored. {len(missing)} of {len(ids)} are "
            f"missing, such as {missing[:5]}. Give the data that was scored."
        )
    (first,) = rows.fetch([0])
    names = [key for key, value in first.items() if key not in ("id", TEXT) and _is_short(value)]

    def describe(row: int) -> Mapping[str, Any]:
        (example,) = rows.fetch([where[ids[row].item()]])
        return {
            "fields": {name: str(example[name])[:SHORT] for name in names},
            "example": _shown(example),
        }

    return describe


def _is_short(value: Any) -> bool:
    """Tell whether a value fits beside the text: a number or a word or two."""
    return isinstance(value, bool | int | float) or (isinstance(value, str) and len(value) <= SHORT)


def _shown(example: Mapping[str, Any]) -> str:
    """Return the start of the text of a row, or of all of it where it has none."""
    text = example.get(TEXT)
    if not isinstance(text, str):
        text = json.dumps(dict(example), ensure_ascii=False, default=str)
    return text if len(text) <= LONGEST else text[:LONGEST] + " …"


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Return nested entries as lines."""
    lines = []
    for key, value in values.items():
        if isinstance(value, Mapping):
            lines.extend(_flat(value, f"{prefix}{key}."))
        else:
            lines.append((prefix + key, str(value)))
    return lines
