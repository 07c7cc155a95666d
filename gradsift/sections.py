"""Parts of a page: a text with a table, a figure and lists of examples."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from markupsafe import Markup

from gradsift.shown_rows import ShownRows

NUM_SHOWN = 6  # examples of a list
NUM_GROUPS = 30  # most groups of a table, and repeated inputs of a list


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


def list_examples(
    title: str, ids: Any, shown: ShownRows, scores: list[str] | None = None
) -> Listed:
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
