"""What a set of components is judged by.

Letters: ``s`` sets of components, ``p`` pairs, ``q`` queries.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, Int

from influence.components.products import ComponentProducts

RANKS = 16  # other candidates of a query that are compared at once over all queries


@runtime_checkable
class FittedObjective(Protocol):
    """An objective on the pairs of one split."""

    def values(self, cosines: Float[np.ndarray, "s p"]) -> Float[np.ndarray, " s"]:
        """Return the value of each set, larger is better, from the cosines of its pairs."""
        ...


@runtime_checkable
class Objective(Protocol):
    """What a set of components is judged by: `Agreement` or `Accuracy`."""

    def fit(self, products: ComponentProducts) -> FittedObjective:
        """Return the objective on these pairs."""
        ...


@dataclass(frozen=True)
class Agreement:
    """The cosine, over all pairs, of a set's cosines with those of the full gradient.

    References:
        Hinterleitner, Schoenegger and Roth (2026), arXiv:2601.16651, first objective.
    """

    def fit(self, products: ComponentProducts) -> "FittedAgreement":
        """Keep the cosines of the full gradient."""
        return FittedAgreement(products.cosines())


@dataclass(frozen=True)
class FittedAgreement:
    """Agreement with some cosines.

    Args:
        reference: One cosine a pair.
    """

    reference: Float[np.ndarray, " p"]

    def values(self, cosines: Float[np.ndarray, "s p"]) -> Float[np.ndarray, " s"]:
        """Return one cosine a set, 0 where all of its cosines are."""
        # A product of every row with itself; einsum takes several times as long.
        squares = (cosines[:, None] @ cosines[:, :, None])[:, 0, 0]
        scale = np.sqrt(squares * (self.reference**2).sum())
        inner = cosines @ self.reference
        return np.divide(inner, scale, out=np.zeros_like(inner), where=scale > 0)


@dataclass(frozen=True)
class Accuracy:
    """The share of queries whose source has a larger cosine than every other candidate.

    Args:
        sources: By id of a query, the id of the row that it came from.

    References:
        Hinterleitner, Schoenegger and Roth (2026), arXiv:2601.16651, second objective.
    """

    sources: Mapping[Any, Any]

    def fit(self, products: ComponentProducts) -> "FittedAccuracy":
        """Find the source among the candidates of each query.

        Raises:
            ValueError: A query has no source, or it is not one of its candidates, or there is
                no other.
        """
        wanted = [self.sources.get(row_id) for row_id in products.query_ids.tolist()]
        queries = products.pairs[:, 0]
        ids = products.candidate_ids[products.pairs[:, 1]].tolist()
        own = [wanted[query] == row_id for query, row_id in zip(queries, ids, strict=True)]
        is_source = np.array(own, dtype=bool)
        count = len(products.query_ids)
        hits = np.bincount(queries[is_source], minlength=count)
        others = np.bincount(queries[~is_source], minlength=count)
        wrong = (hits != 1) | (others == 0)
        if wrong.any():
            raise ValueError(
                "every query must have its source among its candidates, once, and another beside "
                f"it. Not so: {products.query_ids[wrong][:5].tolist()}. Leave them out, or add the "
                "pairs."
            )
        return FittedAccuracy(queries, is_source)


@dataclass(frozen=True)
class FittedAccuracy:
    """Accuracy on some pairs.

    Args:
        queries: The query of each pair.
        is_source: Whether its candidate is the query's source.
    """

    queries: Int[np.ndarray, " p"]
    is_source: Bool[np.ndarray, " p"]

    @cached_property
    def _sources(self) -> Int[np.ndarray, " q"]:
        """The pair of each query with its source."""
        return self._by_query(self.is_source)

    @cached_property
    def _others(self) -> tuple[Int[np.ndarray, " p"], Int[np.ndarray, " q"]]:
        """The other pairs, those of a query side by side, and where each query's begin."""
        others = self._by_query(~self.is_source)
        return others, np.flatnonzero(np.diff(self.queries[others], prepend=-1))

    @cached_property
    def _ranks(self) -> Int[np.ndarray, "k q"]:
        """The first few other pairs of each query, the last of them again where there are fewer."""
        others, firsts = self._others
        counts = np.diff(firsts, append=len(others))
        ranks = np.arange(min(counts.max(), RANKS))[:, None]
        return others[firsts + np.minimum(ranks, counts - 1)]

    @cached_property
    def _rest(self) -> tuple[Int[np.ndarray, " p"], Int[np.ndarray, " q"], Int[np.ndarray, " q"]]:
        """What `_ranks` leaves out: pairs, where each query's begin, and those queries."""
        others, firsts = self._others
        ranks = np.arange(len(others)) - firsts[self.queries[others]]
        rest = others[ranks >= RANKS]
        starts = np.flatnonzero(np.diff(self.queries[rest], prepend=-1))
        return rest, starts, self.queries[rest[starts]]

    def _by_query(self, which: Bool[np.ndarray, " p"]) -> Int[np.ndarray, " _"]:
        """Return positions of some pairs, query by query."""
        places = np.flatnonzero(which)
        return places[np.argsort(self.queries[places], kind="stable")]

    def values(self, cosines: Float[np.ndarray, "s p"]) -> Float[np.ndarray, " s"]:
        """Return the accuracy of each set; a tie with another candidate is a miss."""
        return self.hits(cosines).mean(axis=1)

    def hits(self, cosines: Float[np.ndarray, "s p"]) -> Bool[np.ndarray, "s q"]:
        """Return for each set and query whether the source is found."""
        best = cosines.take(self._ranks[0], axis=1)
        for places in self._ranks[1:]:
            np.maximum(best, cosines.take(places, axis=1), out=best)
        rest, firsts, queries = self._rest
        if len(rest):
            # Many others of one query are a long run, which `reduceat` is fast on.
            more = np.maximum.reduceat(cosines.take(rest, axis=1), firsts, axis=1)
            best[:, queries] = np.maximum(best[:, queries], more)
        return cosines.take(self._sources, axis=1) > best
