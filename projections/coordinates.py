"""Gradients as they are: the coordinates of components, side by side.

Letters: ``n`` examples, ``k`` coordinates.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from hashlib import sha256

import torch
from jaxtyping import Float
from torch import Tensor

from projections.components import Component
from projections.factors import TableRows
from projections.per_example import Gradient


@dataclass(frozen=True)
class Coordinates:
    """Keep every coordinate of some components, and nothing of the others.

    Inner products are exact. For components that are few and small, such as the last
    layer or adapters; a row is as long as their parameters. Make one with `coordinates`.

    Args:
        num_dims: Number ``k`` of coordinates.
        starts: The first coordinate of each parameter, by name.
    """

    num_dims: int
    starts: Mapping[str, int] = field(repr=False)

    def project(self, gradient: Gradient, out: Float[Tensor, "n k"]) -> None:
        """Write the coordinates of one component.

        Args:
            gradient: The gradient of one component; left out if it is not one of them.
            out: Where to add them.
        """
        if gradient.component.parameters[0].name not in self.starts:
            return
        for term in gradient.terms:
            if isinstance(term, TableRows):
                self._add_rows(term, out)
                continue
            for piece in term.pieces():
                start = self.starts[piece.parameter.name] + piece.start
                out[piece.examples, start : start + piece.values.shape[1]] += piece.values

    def describe(self) -> dict[str, object]:
        """Return what rows must share to be compared."""
        digest = sha256(repr(sorted(self.starts.items())).encode()).hexdigest()[:16]
        return {"kind": "Coordinates", "num_dims": self.num_dims, "parameters": digest}

    def _add_rows(self, term: TableRows, out: Float[Tensor, "n k"]) -> None:
        """Add the rows of a table that were looked up."""
        (table,) = term.component.parameters
        inner = torch.arange(table.shape[1], device=out.device)
        places = self.starts[table.name] + term.ids[..., None] * table.shape[1] + inner
        out.scatter_add_(1, places.flatten(1), term.output_grads.flatten(1).to(out.dtype))


def coordinates(components: Iterable[Component]) -> Coordinates:
    """Return the projector that keeps all coordinates of some components.

    Args:
        components: Which, such as ``find_components(model, layers).components.values()``.

    Example:
        >>> from projections import find_components
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 1))
        >>> last = coordinates(find_components(model, "1").components.values())
        >>> last.num_dims, dict(last.starts)
        (4, {'1.weight': 0, '1.bias': 3})
    """
    starts, end = {}, 0
    for component in components:
        for parameter in component.parameters:
            starts[parameter.name] = end
            end += parameter.size
    return Coordinates(end, starts)
