"""Sources of a stream: decks of data with an index, and of what can only be read through."""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

from projections import check_not_empty
from selection.mixtures import Deck, RowDeck


class ReadDeck:
    """Rows that are read one after the other, in their own order, again and again.

    Rows between two that are asked for are read and dropped.

    Args:
        rows: Something that can be iterated again and again, with the same rows.
        name: For messages.
    """

    def __init__(self, rows: Iterable[Any], *, name: str) -> None:
        """Keep the source; nothing is read yet."""
        if iter(rows) is rows:
            raise TypeError(
                f"source {name!r} must give its rows again when it is iterated again. Got an "
                f"iterator, {type(rows).__name__}. Pass what makes it: a list, a dataset, a class "
                "with `__iter__`."
            )
        self._rows, self._name = rows, name
        self._reading: Iterator[Any] | None = None
        self._next = 0

    def draw(self, start: int, count: int) -> list[Any]:
        """Return the draws number ``start`` to ``start + count - 1``."""
        if self._reading is None or start < self._next:
            self._reading, self._next = self._endless(), 0
        rows = list(islice(self._reading, start - self._next, start - self._next + count))
        self._next = start + count
        return rows

    def _endless(self) -> Iterator[Any]:
        """Yield the rows of all epochs."""
        while True:
            count = 0
            for row in self._rows:
                count += 1
                yield row
            check_not_empty(self._name, count)


def as_source(data: Any, *, name: str, seed: int) -> Deck:
    """Return data as a deck, by what it can do."""
    if hasattr(data, "__len__") and hasattr(data, "__getitem__"):
        return RowDeck(data, name=f"training/{name}", seed=seed)
    return ReadDeck(data, name=name)
