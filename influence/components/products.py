"""What every component says of pairs of queries and candidates, kept.

Letters: ``q`` queries, ``n`` candidates, ``p`` pairs, ``c`` components, ``s`` sets of them.

With the inner products of each pair and the squared norms of both sides, component by
component, the cosine of any set of components is a sum and a division: the model is not
needed again.
"""

import json
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from projections import (
    Component,
    DataError,
    Parameter,
    Provenance,
    check_not_empty,
    replacing,
)


@dataclass(frozen=True)
class ComponentProducts:
    """Inner products and squared norms by component, for pairs of queries and candidates.

    Args:
        components: The components, in the order of their names.
        pairs: The query and the candidate of each pair, by position, ``p 2``.
        products: Inner products of the two gradients, ``p c``.
        query_norms: Squared norms of the queries' gradients, ``q c``.
        candidate_norms: Squared norms of the candidates' gradients, ``n c``.
        query_ids: Ids of the queries.
        candidate_ids: Ids of the candidates.
        provenance: How they were computed.

    References:
        Hinterleitner, Schoenegger and Roth, Select or Project? (2026), arXiv:2601.16651.
    """

    components: tuple[Component, ...]
    pairs: Int[np.ndarray, "p 2"]
    products: Float[np.ndarray, "p c"]
    query_norms: Float[np.ndarray, "q c"]
    candidate_norms: Float[np.ndarray, "n c"]
    query_ids: np.ndarray
    candidate_ids: np.ndarray
    provenance: Provenance = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        """Refuse names that are repeated or out of order, by which ties would be broken."""
        names = self.names
        if names != sorted(set(names)):
            raise ValueError(f"`components` must be in the order of their names. Got {names[:5]}.")
        check_not_empty("pairs", len(self.pairs))

    @cached_property
    def names(self) -> list[str]:
        """Names of the components."""
        return [component.name for component in self.components]

    def find(self, names: Collection[str]) -> list[int]:
        """Return the positions of components, in order.

        Raises:
            KeyError: One of them is not there.
        """
        check_not_empty("names", len(names))
        if unknown := sorted(set(names) - set(self.names)):
            raise KeyError(f"`names` must be of components. Unknown: {unknown[:5]}.")
        return [place for place, name in enumerate(self.names) if name in set(names)]

    def cosines(self, names: Collection[str] | None = None) -> Float[np.ndarray, " p"]:
        """Return the cosine of each pair over some components; over all if left out.

        Args:
            names: Names of the components.
        """
        chosen = slice(None) if names is None else self.find(names)
        sums = (self.products, self.query_norms, self.candidate_norms)
        return cosines_of(self.pairs, *(part[:, chosen].sum(1)[None] for part in sums))[0]

    def dots(self, names: Collection[str] | None = None) -> Float[np.ndarray, " p"]:
        """Return the inner product of each pair over some components; over all if left out."""
        return self.products[:, slice(None) if names is None else self.find(names)].sum(1)

    def of_queries(self, positions: Sequence[int] | np.ndarray) -> "ComponentProducts":
        """Return the pairs of some queries, which are then numbered from zero.

        Args:
            positions: Positions of the queries, each once.
        """
        where = np.full(len(self.query_ids), -1)
        where[positions] = np.arange(len(positions))
        kept = np.flatnonzero(where[self.pairs[:, 0]] >= 0)
        kept = kept[np.argsort(where[self.pairs[kept, 0]], kind="stable")]
        pairs = np.stack([where[self.pairs[kept, 0]], self.pairs[kept, 1]], axis=1)
        return replace(
            self,
            pairs=pairs,
            products=self.products[kept],
            query_norms=self.query_norms[positions],
            query_ids=self.query_ids[positions],
        )

    def save(self, path: str | Path) -> None:
        """Write one ``.npz`` file."""
        note = {
            "components": [asdict(component) for component in self.components],
            "provenance": dict(self.provenance),
        }
        with replacing(Path(path)) as file:
            np.savez_compressed(
                file,
                allow_pickle=False,
                note=np.frombuffer(json.dumps(note).encode(), dtype=np.uint8),
                **{name: getattr(self, name) for name in ARRAYS},
            )

    @classmethod
    def load(cls, path: str | Path) -> "ComponentProducts":
        """Read saved products.

        Raises:
            DataError: The file is none of them, or damaged.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                note = json.loads(file["note"].tobytes())
                arrays = {name: file[name] for name in ARRAYS}
        except Exception as error:  # of the file, of zip, or of an entry that is not there
            raise DataError(
                f"{path} must be a file of component products, and cannot be read: {error}"
            ) from error
        components = tuple(_component(values) for values in note["components"])
        return cls(components, **arrays, provenance=note["provenance"])


def cosines_of(
    pairs: Int[np.ndarray, "p 2"],
    products: Float[np.ndarray, "s p"],
    query_norms: Float[np.ndarray, "s q"],
    candidate_norms: Float[np.ndarray, "s n"],
) -> Float[np.ndarray, "s p"]:
    """Return cosines from sums over sets of components; 0 for a gradient that is zero.

    The reference adds 1e-12 to the product of the norms instead, which small gradients feel.

    Args:
        pairs: The query and the candidate of each pair.
        products: Inner products, for each set.
        query_norms: Squared norms of the queries.
        candidate_norms: Squared norms of the candidates.
    """
    scale = np.sqrt(query_norms).take(pairs[:, 0], axis=1)
    candidates = np.sqrt(candidate_norms)
    # Where every candidate is in one pair, in order, there is nothing to look up.
    apart = len(pairs) == candidates.shape[1] and (pairs[:, 1] == np.arange(len(pairs))).all()
    scale *= candidates if apart else candidates.take(pairs[:, 1], axis=1)
    scale[scale == 0] = np.inf
    return np.divide(products, scale, out=scale)


ARRAYS = ("pairs", "products", "query_norms", "candidate_norms", "query_ids", "candidate_ids")


def _component(values: dict) -> Component:
    """Return a component from JSON values."""
    parameters = tuple(Parameter(p["name"], tuple(p["shape"])) for p in values["parameters"])
    return Component(values["name"], parameters, values["kind"])
