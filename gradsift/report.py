"""A page about a table of scores, or about a gradient store.

Letters: ``n`` examples, ``q`` queries.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from gradsift.diagnosis import diagnose
from gradsift.figures import histogram
from gradsift.html import align_numbers, write_page
from gradsift.shown_rows import ShownRows
from projections import DataError, GradientStore, Scores

NUM_EXAMPLES = 8  # at each end
QUANTILES = {"lowest": 0.0, "1 %": 0.01, "25 %": 0.25, "median": 0.5, "75 %": 0.75, "99 %": 0.99}
QUANTILES["highest"] = 1.0


def write_report(
    source: Path,
    *,
    data: Path | None = None,
    out: Path | None = None,
    group_by: str | None = None,
    layers: Mapping[str, slice] | None = None,
    earlier: Mapping[str, Path] | None = None,
) -> Path:
    """Write a page with the distribution and both ends of each score.

    Of a store, it also says what the gradients tell of the dataset.

    Args:
        source: A table of `Scores`, or the folder of a `GradientStore`.
        data: The data that was scored, to show the examples themselves.
        out: The page; ``source`` + ``.report.html`` unless given.
        group_by: Column of the data whose values are compared by their gradients; the labels
            unless given.
        layers: Which numbers of a store's rows belong to which layer, where they are apart.
        earlier: By name, in order: folders of stores of the same data at earlier states of
            training, whose directions are compared.

    Returns:
        The page.

    Raises:
        DataError: The source is neither, or the data does not hold its rows.
        ValueError: There are earlier states of what is no finished store.
    """
    scores, facts, store = _read(source)
    if earlier and (store is None or not store.is_finished):
        raise ValueError(
            f"`earlier` states must be compared with a finished store. {source} is none."
        )
    shown = ShownRows(data, scores.ids)
    parts = [_part(scores, name, shown) for name in scores.names]
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
        diagnostics=[]
        if store is None or not store.is_finished
        else diagnose(
            store,
            shown,
            group_by=group_by,
            layers=layers,
            earlier={name: GradientStore.open(path) for name, path in (earlier or {}).items()},
        ),
        with_data=data is not None,
        origin=_flat({"source": source, "data": data or "not given", **scores.provenance}),
    )
    return out


def _read(source: Path) -> tuple[Scores, list[tuple[str, str]], GradientStore | None]:
    """Return the scores of a source, facts for the head of the page, and the store if it is one."""
    if source.is_dir():
        store = GradientStore.open(source, allow_unfinished=True)
        facts = [(f"{store.num_dims:,}", "numbers kept of each gradient")]
        if not store.is_finished:
            facts.append((f"{store.num_planned:,}", "examples when it is finished"))
        return Scores.from_table(store.table(), store.manifest), facts, store
    if not source.exists():
        raise DataError(
            f"{source} must be a table of scores or the folder of a store. There is no such file."
        )
    scores = Scores.load(source)
    if scores.query_ids is None:
        return scores, [], None
    return scores, [(f"{len(scores.query_ids):,}", "queries")], None


def _part(scores: Scores, name: str, shown: ShownRows) -> dict[str, Any]:
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
        "highest": _examples(order[::-1], scores, values, shown),
        "lowest": _examples(order, scores, values, shown),
    }


def _examples(
    order: np.ndarray,
    scores: Scores,
    values: Float[np.ndarray, " n"],
    rows: ShownRows,
) -> list[dict[str, Any]]:
    """Return the first examples of an order."""
    shown = order[:NUM_EXAMPLES]
    numbers = align_numbers(values[shown].tolist())
    return [
        {"id": scores.ids[row], "score": number, **rows.show(scores.ids[row].item())}
        for row, number in zip(shown, numbers, strict=True)
    ]


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Return nested entries as lines."""
    lines = []
    for key, value in values.items():
        if isinstance(value, Mapping):
            lines.extend(_flat(value, f"{prefix}{key}."))
        else:
            lines.append((prefix + key, str(value)))
    return lines
