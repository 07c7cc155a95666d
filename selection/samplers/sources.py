"""Sources of a stream: rows by number, from data with an index or from what is only read through.

Numbers run on over epochs: a source that ends begins again.
"""

from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int

from projections import check_not_empty
from selection.samplers.keyed import keyed_order


@runtime_checkable
class Source(Protocol):
    """Rows by number."""

    def fetch(self, number: int) -> Any:
        """Return the row of a draw."""
        ...


class IndexedSource:
    """Data with a length and an index, shuffled in each epoch.

    Args:
        data: A `datasets.Dataset`, a torch `Dataset`, a list.
        name: With the seed, decides the orders.
        seed: Seed of the orders.
    """

    def __init__(self, data: Any, *, name: str, seed: int) -> None:
        """Keep the data."""
        check_not_empty(name, len(data))
        self._data, self._name, self._seed = data, name, seed
        self._order = lru_cache(maxsize=2)(self._shuffle)

    def fetch(self, number: int) -> Any:
        """Return the row of a draw."""
        epoch, place = divmod(number, len(self._data))
        return self._data[int(self._order(epoch)[place])]

    def _shuffle(self, epoch: int) -> Int[np.ndarray, " n"]:
        """Return the order of an epoch."""
        return keyed_order(self._seed, f"rows/{self._name}/{epoch}", len(self._data))


class ReadSource:
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

    def fetch(self, number: int) -> Any:
        """Return the row of a draw."""
        if self._reading is None or number < self._next:
            self._reading, self._next = self._endless(), 0
        while True:
            row = next(self._reading)
            self._next += 1
            if self._next > number:
                return row

    def _endless(self) -> Iterator[Any]:
        """Yield the rows of all epochs."""
        while True:
            count = 0
            for row in self._rows:
                count += 1
                yield row
            check_not_empty(self._name, count)


def as_source(data: Any, *, name: str, seed: int) -> Source:
    """Return data as a source, by what it can do."""
    if hasattr(data, "__len__") and hasattr(data, "__getitem__"):
        return IndexedSource(data, name=name, seed=seed)
    return ReadSource(data, name=name)
