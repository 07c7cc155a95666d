"""Examples of a dataset as people are shown them: text, small fields, an image."""

import json
from collections.abc import Mapping, Sequence
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np

from gradsift.figures import image_uri
from projections import LABEL_COLUMNS, DataError, Rows, read_dataset

LONGEST = 600  # characters of an example
LINES, LINE = 20, 32  # lines of an example that are shown whole, and their length on a phone
SHORT = 40  # characters of a value that is shown beside the text
TEXT = "text"
BLOCK = 1024  # rows that are read at a time
SMALLEST_IMAGE, LARGEST_IMAGE = 4, 512  # pixels a side of what is taken for an image

Shown = Mapping[str, Any]
"""What a page shows of an example: ``fields``, ``example`` and ``image``, and whether it
``is_long``, so that its text may scroll; or nothing."""


class ShownRows:
    """The examples that some ids stand for.

    Args:
        data: The data they are rows of; without it nothing can be shown.
        ids: Ids of the examples, as a table of scores or a store has them.
        rows: The rows of the data, where they have been read before.

    Raises:
        DataError: The data does not hold one of them.
    """

    def __init__(self, data: Path | None, ids: np.ndarray, rows: Rows | None = None) -> None:
        """Find the rows of the ids."""
        self.ids = ids
        if data is not None and rows is None:
            rows = Rows(read_dataset(data))
        self.rows = rows
        if self.rows is None:
            return
        self._where = {row_id: place for place, row_id in enumerate(self.rows.ids.tolist())}
        missing = [row_id for row_id in ids.tolist() if row_id not in self._where]
        if missing:
            raise DataError(
                f"{data} must hold every row that was scored. {len(missing)} of {len(ids)} are "
                f"missing, such as {missing[:5]}. Give the data that was scored."
            )

    def fetch(self, row_id: Any) -> Mapping[str, Any]:
        """Return the row of an id, or an empty one without data."""
        if self.rows is None:
            return {}
        (row,) = self.rows.fetch([self._where[row_id]])
        return row

    def show(self, row_id: Any) -> Shown:
        """Return what is shown of an example."""
        row = self.fetch(row_id)
        if not row:
            return {}
        image_name, image = find_image(row)
        fields = {
            name: str(value)[:SHORT]
            for name, value in row.items()
            if name not in ("id", TEXT, image_name) and is_short(value)
        }
        text = "" if image is not None and TEXT not in row else shown_text(row)
        return {"fields": fields, "example": text, "image": image, "is_long": is_long(text)}

    def column(self, name: str | None) -> tuple[str, list[Any]] | None:
        """Return a column of all ids: the one that is named, or the labels if there are any.

        Raises:
            DataError: There is no such column, or no data.
        """
        if self.rows is None:
            if name is None:
                return None
            raise DataError(f"a column {name!r} must come from the data. Give `data`.")
        (first,) = self.rows.fetch([0])
        if name is None:
            name = next((column for column in LABEL_COLUMNS if column in first), None)
            if name is None:
                return None
        if name not in first:
            raise DataError(f"the data must have the column {name!r}. It has {sorted(first)}.")
        places = [self._where[row_id] for row_id in self.ids.tolist()]
        blocks = (places[start : start + BLOCK] for start in range(0, len(places), BLOCK))
        return name, [row[name] for block in blocks for row in self.rows.fetch(block)]


def is_short(value: Any) -> bool:
    """Tell whether a value fits beside the text: a number or a word or two."""
    return isinstance(value, bool | int | float) or (isinstance(value, str) and len(value) <= SHORT)


def shown_text(example: Mapping[str, Any]) -> str:
    """Return the start of the text of a row, or of all of it where it has none."""
    text = example.get(TEXT)
    if not isinstance(text, str):
        text = json.dumps(dict(example), ensure_ascii=False, default=str)
    return text if len(text) <= LONGEST else text[:LONGEST] + " …"


def is_long(text: str) -> bool:
    """Tell whether a text has too many lines to be shown whole, on the narrowest of screens."""
    return sum(max(1, ceil(len(line) / LINE)) for line in text.splitlines()) > LINES


def find_image(row: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """Return the name and the inline address of the first column that is a small image.

    An image of `datasets`, or numbers in rows and columns, with colours last if there are any.

    Example:
        >>> name, address = find_image({"label": 3, "pixels": np.eye(8)})
        >>> name, address.partition(",")[0]
        ('pixels', 'data:image/png;base64')
    """
    for name, value in row.items():
        pixels = _as_pixels(value)
        if pixels is not None:
            return name, image_uri(pixels)
    return None, None


def _as_pixels(value: Any) -> np.ndarray | None:
    """Return a value as rows and columns of numbers, if it looks like an image."""
    if hasattr(value, "convert") and hasattr(value, "size"):  # of PIL
        return np.asarray(value.convert("RGB"), dtype=float)
    if not isinstance(value, np.ndarray | list) or not _is_nested(value):
        return None
    try:
        pixels = np.asarray(value, dtype=float)
    except (TypeError, ValueError):
        return None
    colours = pixels.ndim == 3 and pixels.shape[2] in (3, 4)
    sides = pixels.shape[:2]
    if pixels.ndim != 2 and not colours:
        return None
    if min(sides) < SMALLEST_IMAGE or max(sides) > LARGEST_IMAGE:
        return None
    return pixels if np.isfinite(pixels).all() else None


def _is_nested(value: np.ndarray | Sequence[Any]) -> bool:
    """Tell whether a value has rows; without that lists of text would be read as numbers."""
    return len(value) > 0 and isinstance(value[0], np.ndarray | list)
