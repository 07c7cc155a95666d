"""Products and norms summed over sets of components, and the values of sets that differ by one.

Letters: ``c`` components, ``r`` others, ``s`` sets, ``p`` pairs, ``q`` queries, ``n`` candidates.

Sets are judged so many at a time that their cosines stay in the processor's cache, which
most of the time of a search hangs on.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float, Int

from influence.components.objectives import FittedObjective
from influence.components.products import ComponentProducts, cosines_of

LEAST_LEFT = 1e-3  # share of a squared norm, with which 13 digits of 16 are left
CHUNK = 1 << 16  # cosines at a time, half a megabyte
Sums = list[Float[np.ndarray, "..."]]
"""Products, norms of queries and norms of candidates, of one set or, in rows, of several."""


@dataclass(frozen=True)
class SetSums:
    """What sets of components are worth, from what each of them says.

    Args:
        products: What components say of pairs.
        fitted: The objective on these pairs.
    """

    products: ComponentProducts
    fitted: FittedObjective

    @cached_property
    def parts(self) -> list[Float[np.ndarray, "c _"]]:
        """Products, norms of queries and norms of candidates, the components in front."""
        p = self.products
        arrays = (p.products, p.query_norms, p.candidate_norms)
        return [np.ascontiguousarray(array.T, dtype=np.float64) for array in arrays]

    @property
    def empty(self) -> Sums:
        """The sums of no component."""
        return [np.zeros(part.shape[1]) for part in self.parts]

    def with_one(self, sums: Sums, other: int) -> Sums:
        """Return the sums of a set with one component more."""
        return [own + part[other] for own, part in zip(sums, self.parts, strict=True)]

    def adding(self, sums: Sums, others: Int[np.ndarray, " r"]) -> Float[np.ndarray, " r"]:
        """Return the value of a set with each one of some other components.

        Args:
            sums: The sums of the set.
            others: The other components, by position.
        """

        def together(some: slice) -> Sums:
            rows = [part[others[some]] for part in self.parts]
            for row, own in zip(rows, sums, strict=True):
                row += own
            return rows

        return self._values(len(others), together)

    def removing(self, chosen: Sequence[int]) -> Float[np.ndarray, " r"]:
        """Return the value of a set without each one of its components.

        A difference loses digits where little is left, which is then summed again.

        Args:
            chosen: The set, by position.
        """
        own = [part[list(chosen)] for part in self.parts]
        totals = [part.sum(0) for part in own]

        def left(some: slice) -> Sums:
            rows = [total - part[some] for part, total in zip(own, totals, strict=True)]
            lost = np.zeros(len(rows[0]), dtype=bool)
            for row, total in zip(rows[1:], totals[1:], strict=True):
                lost |= (row < LEAST_LEFT * total).any(axis=1)
            for place in np.flatnonzero(lost).tolist():
                gone = some.start + place
                for row, part in zip(rows, own, strict=True):
                    row[place] = part[:gone].sum(0) + part[gone + 1 :].sum(0)
            return rows

        return self._values(len(chosen), left)

    def _values(self, count: int, sums: Callable[[slice], Sums]) -> Float[np.ndarray, " r"]:
        """Return the values of sets whose sums are formed a few at a time."""
        height = max(1, CHUNK // len(self.products.pairs))
        values = np.empty(count)
        for first in range(0, count, height):
            some = slice(first, min(first + height, count))
            values[some] = self.fitted.values(cosines_of(self.products.pairs, *sums(some)))
        return values
