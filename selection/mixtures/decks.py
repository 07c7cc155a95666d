"""Rows of a domain in a random order that starts again when it ends.

What is drawn is a pure function of the seed, the name and how much was drawn before, so a
run that goes on needs to know one number, and all ranks draw the same.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from projections import Rows, check_not_empty, keyed_words
from selection.keyed import keyed_order

WORD = 2**32


@runtime_checkable
class Deck(Protocol):
    """Something that rows are drawn from."""

    def draw(self, start: int, count: int) -> list[Any]:
        """Return the draws number ``start`` to ``start + count - 1``."""
        ...


class RowDeck:
    """The rows of a dataset, each once before any comes again.

    Args:
        rows: A `datasets.Dataset`, a torch `Dataset` or a list of rows.
        name: With the seed, decides the order.
        seed: Seed of the order.

    Example:
        >>> deck = RowDeck(["a", "b", "c"], name="letters", seed=0)
        >>> sorted(deck.draw(0, 3)), deck.draw(3, 2) == deck.draw(0, 5)[3:]
        (['a', 'b', 'c'], True)
    """

    def __init__(self, rows: Any, *, name: str, seed: int) -> None:
        """Keep the rows."""
        self._rows = Rows(rows)
        check_not_empty(name, len(self._rows))
        self._order = lru_cache(maxsize=2)(
            lambda epoch: keyed_order(seed, f"{name}/{epoch}", len(self._rows))
        )

    def draw(self, start: int, count: int) -> list[Any]:
        """Return the draws number ``start`` to ``start + count - 1``."""
        size = len(self._rows)
        places = [int(self._order(at // size)[at % size]) for at in range(start, start + count)]
        return self._rows.fetch(places)


class MixedDeck:
    """Rows from several datasets in given proportions, drawn with replacement.

    Args:
        parts: The rows of each domain.
        weights: Their proportions.
        name: With the seed, decides what is drawn.
        seed: Seed of the draws.
    """

    def __init__(
        self, parts: Sequence[Any], weights: Float[np.ndarray, " m"], *, name: str, seed: int
    ) -> None:
        """Keep the rows."""
        self._parts = [Rows(part) for part in parts]
        self._ends = np.cumsum(weights) / np.sum(weights)
        self._name, self._seed = name, seed

    def draw(self, start: int, count: int) -> list[Any]:
        """Return the draws number ``start`` to ``start + count - 1``."""
        words = keyed_words(self._seed, self._name, np.arange(start, start + count)) / WORD
        domains = np.searchsorted(self._ends, words[:, 0], side="right")
        rows = []
        for domain, word in zip(domains.tolist(), words[:, 1].tolist(), strict=True):
            part = self._parts[domain]
            rows += part.fetch([int(word * len(part))])
        return rows


def as_decks(domains: Mapping[str, Any], *, seed: int) -> dict[str, Deck]:
    """Return a deck for each domain; what can draw already is taken as it is."""
    return {
        name: rows if isinstance(rows, Deck) else RowDeck(rows, name=name, seed=seed)
        for name, rows in domains.items()
    }


def as_target(rows: Any, *, seed: int) -> Deck:
    """Return the deck of the target."""
    return rows if isinstance(rows, Deck) else RowDeck(rows, name="target", seed=seed)
