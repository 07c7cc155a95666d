"""What the gradients in a store say of a dataset, as sections of a page.

Letters: ``n`` examples, ``k`` numbers of a row.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from markupsafe import Markup

from gradsift.figures import line_chart
from gradsift.html import align_numbers, as_number, as_percent
from gradsift.shown_rows import ShownRows
from projections import GradientStore
from selection import (
    Coherence,
    OpposingGroups,
    RepeatReport,
    Spectrum,
    find_class_outliers,
    find_opposing,
    find_repeats,
    measure_coherence,
    measure_moments,
    measure_spectrum,
)

NUM_SHOWN = 6  # examples of a list
NUM_GROUPS = 30  # most groups of a table, and repeated inputs of a list
NUM_DIRECTIONS = 3


@dataclass(frozen=True)
class Listed:
    """Examples under a title.

    Args:
        title: What they have in common.
        examples: What the page shows of each: ``id``, ``score`` and the example itself.
    """

    title: str
    examples: list[dict[str, Any]]


@dataclass(frozen=True)
class Section:
    """One part of a page.

    Args:
        title: Its title.
        text: What is measured, and how to read it.
        head: Names of the columns of its table.
        table: Rows of the table; the first cell names the row.
        figure: A figure, if there is one.
        caption: What the figure shows.
        lists: Examples, two lists beside each other.
    """

    title: str
    text: str
    head: tuple[str, ...] = ()
    table: list[list[str]] = field(default_factory=list)
    figure: Markup | None = None
    caption: str = ""
    lists: list[Listed] = field(default_factory=list)


def diagnose(store: GradientStore, shown: ShownRows, group_by: str | None = None) -> list[Section]:
    """Measure a dataset by its gradients.

    Args:
        store: Rows of its gradients.
        shown: The examples.
        group_by: Column of the data whose values are groups; the labels unless given.

    Raises:
        DataError: There is no such column.
    """
    column = shown.column(group_by)
    groups = None if column is None else [str(value) for value in column[1]]
    moments = measure_moments(store)
    sections = [
        _coherence(measure_coherence(store, groups, num_shown=NUM_SHOWN), column, shown),
        _spectrum(measure_spectrum(moments)),
        *_opposing(
            find_opposing(moments, num_directions=NUM_DIRECTIONS, num_shown=NUM_SHOWN), shown
        ),
    ]
    if groups is not None and len(set(groups)) > 1:
        sections.append(_outliers(store, groups, column, shown))
    if column is not None and group_by is None and shown.rows is not None:
        sections.append(_repeats(find_repeats(shown.rows), shown))
    return sections


def _listed(title: str, ids: Any, shown: ShownRows, scores: list[str] | None = None) -> Listed:
    """Return examples with what is shown of them."""
    plain = np.asarray(ids).tolist()
    marks = scores or [""] * len(plain)
    return Listed(
        title,
        [
            {"id": row_id, "score": mark, **shown.show(row_id)}
            for row_id, mark in zip(plain, marks, strict=True)
        ],
    )


def _coherence(found: list[Coherence], column: Any, shown: ShownRows) -> Section:
    """Return the section on agreement."""
    rows = [
        [
            one.group,
            f"{one.num_examples:,}",
            as_number(one.coherence),
            as_number(one.signal_to_noise),
            as_number(one.noise_scale),
        ]
        for one in found[: NUM_GROUPS + 1]
    ]
    left_out = len(found) - len(rows)
    by = f" Groups are values of {column[0]}." if column else ""
    more = f" {left_out} groups are not shown." if left_out > 0 else ""
    return Section(
        "Do gradients agree?",
        "Coherence is the number of examples that a step on one helps as much as a step on itself "
        "does: 1 if gradients have nothing in common, the number of examples if they are equal, "
        "below 1 if they cancel. The noise scale is the batch size at which the mean gradient "
        "stands out from the noise (McCandlish et al. 2018)." + by + more,
        ("group", "examples", "coherence", "signal to noise", "noise scale"),
        rows,
        lists=[
            _listed("Agree most with all others", found[0].along, shown),
            _listed("Agree least", found[0].against, shown),
        ],
    )


def _spectrum(found: Spectrum) -> Section:
    """Return the section on directions."""
    count = min(len(found.eigenvalues), 100)
    explained = found.explained[:count].tolist()
    figure = line_chart(
        list(range(1, count + 1)),
        {"explained": explained},
        label="Share of all squared gradient norms along the first directions",
        x_label="directions",
        y_label="share",
        percent=("y",),
    )
    return Section(
        "In how many directions do gradients lie?",
        "The effective dimension is the number of equally strong directions that would spread as "
        "much. A few directions mean a few groups of examples that move the model together.",
        ("measure", "value"),
        [
            ["effective dimension", as_number(found.effective_dimension)],
            ["stable rank", as_number(found.stable_rank)],
            ["numbers a row", f"{len(found.eigenvalues):,}"],
        ],
        figure,
        "Share of all squared norms along the first directions together.",
    )


def _opposing(found: list[OpposingGroups], shown: ShownRows) -> Iterator[Section]:
    """Yield a section for each direction along which gradients pull both ways."""
    for number, one in enumerate(found, 1):
        yield Section(
            f"Opposing signals {number}",
            f"Along this direction lie {as_percent(one.share)} of all squared gradient norms, and "
            f"{as_percent(one.cancelled)} of it cancels: what helps one side hurts the other "
            "(Rosenfeld and Risteski 2024). Look at what each side shares.",
            lists=[
                _listed(
                    "One side", one.positive, shown, align_numbers(one.positive_products.tolist())
                ),
                _listed(
                    "Other side", one.negative, shown, align_numbers(one.negative_products.tolist())
                ),
            ],
        )


def _outliers(store: GradientStore, groups: list[str], column: Any, shown: ShownRows) -> Section:
    """Return the section on examples that another class suits better."""
    every = find_class_outliers(store, groups)
    below = int((every.margins < 0).sum())
    found = every.first(2 * NUM_SHOWN)
    marks = [
        f"{group}, nearer to {nearest} by {-margin:.3g}"
        for group, nearest, margin in zip(found.groups, found.nearest, found.margins, strict=True)
    ]
    half = (len(found) + 1) // 2
    return Section(
        "Out of place in their group",
        f"The gradients of {below:,} of {len(every):,} examples agree more with another value of "
        f"{column[0]} than with their own: wrong labels are among the first of them, and so are "
        "hard examples.",
        lists=[
            _listed("The oddest", found.ids[:half], shown, marks[:half]),
            _listed("The next", found.ids[half:], shown, marks[half:]),
        ],
    )


def _repeats(found: RepeatReport, shown: ShownRows) -> Section:
    """Return the section on inputs that occur several times."""
    conflicts = found.conflicts
    rows = [
        [
            ", ".join(map(str, one.ids[:NUM_SHOWN].tolist())),
            f"{len(one.ids)}",
            ", ".join(sorted({str(label) for label in one.labels})),
        ]
        for one in (conflicts or found.groups)[:NUM_GROUPS]
    ]
    what = "inputs with different labels" if conflicts else "repeated inputs"
    return Section(
        "Repeated inputs",
        f"{len(found.groups):,} inputs occur more than once, byte for byte; {found.num_spare:,} "
        f"rows could go without a loss of inputs. {len(conflicts):,} inputs have different labels."
        + (f" Listed are {what}." if rows else ""),
        ("ids", "rows", "labels") if rows else (),
        rows,
    )
