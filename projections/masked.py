"""Random coordinates of the factors first, then a sketch of the small products that remain.

Letters: ``n`` examples, ``t`` positions, ``o`` and ``i`` output and input features, ``k``
projected dimensions, ``m`` kept coordinates of a side.
"""

from dataclasses import dataclass, replace
from functools import lru_cache
from math import sqrt
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor

from projections.base import Projector
from projections.checks import check_at_least
from projections.components import Component, Parameter
from projections.factors import Formed, OuterProducts, TableRows, Term, Vectors
from projections.fingerprint import describe
from projections.per_example import Gradient
from projections.philox import derive_key, draw_subset


@dataclass(frozen=True, kw_only=True)
class Masked:
    r"""Keep ``m`` inputs and ``m`` outputs of each layer, drawn at random, and project these.

    Kept coordinates are scaled by :math:`\sqrt{o/m}` and :math:`\sqrt{i/m}`, so that inner
    products stay unbiased. ``Masked(projector=SJLT(...))`` is FactGraSS. What is left of a
    layer costs ``m / i`` times ``m / o`` of forming its gradient.

    With :math:`\pi_{rr'}` the chance that two outputs are both kept (:math:`m/o` for one
    with itself, else :math:`m(m-1)/o(o-1)`), likewise :math:`\pi'` of inputs, and
    :math:`\langle A, B \rangle_\pi = \frac{o^2 i^2}{m^4} \sum A_{rc} B_{r'c'} \pi_{rr'}
    \pi'_{cc'}`, the variance under an SJLT with one sign is

    .. math:: \langle P, P \rangle_\pi - \langle G, H \rangle^2 + \frac{1}{k} \Big( \langle G
        \odot G, H \odot H \rangle_\pi + \langle P, P \rangle_\pi - 2 \frac{oi}{m^2} \sum
        P_{rc}^2 \Big), \quad P = G \odot H.

    The mask alone has a variance that no ``k`` takes away; it is small only if gradients
    are spread over many features. Rows of tables and of weights tied to one, and vectors,
    are not masked.

    Args:
        projector: What projects the kept coordinates.
        kept: Number ``m`` of coordinates of each side; smaller sides are kept whole.
        seed: Seed of the mask.

    References:
        Hu et al., GraSS: Scalable data attribution with gradient sparsification and sparse
        projection (NeurIPS 2025), arXiv:2505.18976, Sec. 3.
    """

    projector: Projector
    kept: int
    seed: int

    def __post_init__(self) -> None:
        """Check the arguments."""
        check_at_least("kept", self.kept, 1)

    @property
    def num_dims(self) -> int:
        """Number ``k`` of dimensions."""
        return self.projector.num_dims

    def project(self, gradient: Gradient, out: Float[Tensor, "n k"]) -> None:
        """Add the projection of one component.

        Args:
            gradient: The gradient of one component.
            out: Where to add it.
        """
        component = gradient.component
        if component.kind == "vector":
            self.projector.project(gradient, out)
            return
        weight, *bias = component.parameters
        device = str(out.device)
        columns = self._mask(f"{weight.name}/columns", weight.shape[1], device)
        rows = None
        if component.kind == "linear":
            rows = self._mask(f"{weight.name}/rows", weight.shape[0], device)
        height = weight.shape[0] if rows is None else len(rows)
        parameters = [Parameter(weight.name, (height, len(columns)))]
        parameters += [Parameter(one.name, (height,)) for one in bias]
        small = replace(component, parameters=tuple(parameters))
        terms = tuple(_mask_term(term, small, rows, columns, weight) for term in gradient.terms)
        self.projector.project(Gradient(small, terms), out)

    def describe(self) -> dict[str, Any]:
        """Return the settings as plain JSON values."""
        inner = describe(self.projector)
        return {"kind": "Masked", "kept": self.kept, "seed": self.seed, "projector": inner}

    def _mask(self, name: str, size: int, device: str) -> Int[Tensor, " m"]:
        """Return the kept coordinates of one side."""
        return _draw_mask(self.seed, name, size, min(self.kept, size), device)


def _mask_term(
    term: Term, small: Component, rows: Tensor | None, columns: Tensor, weight: Parameter
) -> Term:
    """Return the kept coordinates of a term."""
    right = sqrt(weight.shape[1] / len(columns))
    left = 1.0 if rows is None else sqrt(weight.shape[0] / len(rows))
    if isinstance(term, Vectors):
        return term
    if isinstance(term, TableRows):
        return TableRows(small, term.ids, term.output_grads.index_select(-1, columns) * right)
    if isinstance(term, OuterProducts) and term.inputs.dim() == 3:
        inputs = term.inputs.index_select(-1, columns) * right
        return OuterProducts(small, inputs, _keep(term.output_grads, -1, rows) * left)
    # Rows of the groups of a convolution are kept after its gradient, which is small, is formed.
    matrix, *bias = (_keep(value, 1, rows) * left for value in term.blocks())
    return Formed(small, (matrix.index_select(2, columns) * right, *bias))


def _keep(values: Tensor, axis: int, kept: Tensor | None) -> Tensor:
    """Return some coordinates of an axis, or all."""
    return values if kept is None else values.index_select(axis, kept)


@lru_cache(maxsize=4096)
def _draw_mask(seed: int, name: str, size: int, kept: int, device: str) -> Int[Tensor, " m"]:
    """Draw the kept coordinates of one side, and remember them."""
    return draw_subset(derive_key(seed, name), size, kept).to(device)
