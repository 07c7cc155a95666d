"""Inner products of two gradients of one component, pair by pair.

Letters: ``n`` examples on the left, ``m`` on the right, ``p`` pairs, ``t`` and ``s`` positions
of the two sides, ``i`` inputs, ``o`` outputs, ``d`` parameters of the component.

``<sum_t g_t a_t^T, sum_s h_s b_s^T> = sum_{t,s} (g_t . h_s)(a_t . b_s)``, so no gradient need
be formed. Where positions are many and layers small, forming each gradient once is cheaper;
`worth_forming` says when. Either way only pieces of bounded size are in memory.
"""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from projections.components import Component
from projections.factors import PIECE_ENTRIES, Formed, OuterProducts, TableRows, Term, Vectors
from projections.per_example import Gradient, examples_of

SHARED = 2  # see `worth_forming`


def pair_products(
    left: Gradient, right: Gradient, pairs: Int[Tensor, "p 2"]
) -> Float[Tensor, " p"]:
    """Return the inner product of an example on the left with one on the right, for each pair.

    Args:
        left: The gradient of one component for ``n`` examples.
        right: The gradient of the same component for ``m`` examples.
        pairs: Positions of the two examples of each pair.

    Example:
        >>> from projections import Component, Parameter
        >>> component = Component("fc", (Parameter("fc.weight", (1, 2)),))
        >>> a, g = torch.tensor([[[1.0, 2.0]], [[0.0, 3.0]]]), torch.ones(2, 1, 1)
        >>> gradient = Gradient(component, (OuterProducts(component, a, g),))
        >>> pair_products(gradient, gradient, torch.tensor([[0, 0], [0, 1]]))
        tensor([5., 6.])
    """
    total = torch.zeros(len(pairs), dtype=_dtype(right.terms[0]), device=pairs.device)
    for a in left.terms:
        for b in right.terms:
            total += _term_products(a, b, pairs)
    return total


def worth_forming(component: Component, positions: int) -> bool:
    """Tell whether gradients of this component are compared sooner when they are formed.

    With a few pairs an example, forming costs about as much as `SHARED` gradients of the
    factors' size. Tables, and weights that are tables too, are never formed.

    Args:
        component: The component.
        positions: Number ``t`` of positions of an example.
    """
    if component.kind not in ("linear", "transposed"):
        return component.kind not in ("table", "mixed")
    num_out, num_in = component.parameters[0].shape
    return num_out * num_in <= SHARED * positions * (num_out + num_in)


def compact(gradient: Gradient, *, form: bool) -> Gradient:
    """Return a gradient that shares no memory with the pass it came from.

    Args:
        gradient: The gradient of one component.
        form: Whether its entries are kept; else its factors are.
    """
    if form:
        values = tuple(value.clone() for value in gradient.materialize().values())
        return Gradient(gradient.component, (Formed(gradient.component, values),))
    everything = torch.arange(gradient.terms[0].num_rows)
    return examples_of(gradient, everything)  # rows that are picked by number are copies


def _term_products(left: Term, right: Term, pairs: Int[Tensor, "p 2"]) -> Float[Tensor, " p"]:
    """Return the inner products of two terms, in the cheapest way that there is for them."""
    if isinstance(left, OuterProducts) and isinstance(right, OuterProducts):
        positions = max(left.inputs.shape[-2], right.inputs.shape[-2])
        if not worth_forming(left.component, positions):
            return _in_pieces(_outer_products, left, right, pairs)
    elif isinstance(left, TableRows) and isinstance(right, TableRows):
        return _in_pieces(_table_products, left, right, pairs)
    elif isinstance(left, OuterProducts) and isinstance(right, TableRows):
        return _in_pieces(_mixed_products, left, right, pairs)
    elif isinstance(left, TableRows) and isinstance(right, OuterProducts):
        return _term_products(right, left, pairs.flip(1))
    elif isinstance(left, Vectors) and isinstance(right, Vectors):
        return torch.linalg.vecdot(left.values[pairs[:, 0]], right.values[pairs[:, 1]])
    return _formed_products(left, right, pairs)


def _outer_products(
    left: OuterProducts, right: OuterProducts, pairs: Int[Tensor, "p 2"]
) -> Float[Tensor, " p"]:
    """Return ``sum_{t,s} (g_t . h_s)(a_t . b_s + 1 for a bias)``, summed over groups."""
    one, other = pairs.unbind(1)
    inputs = left.inputs[one] @ right.inputs[other].mT
    if left.has_bias:
        inputs = inputs + 1
    grads = left.output_grads[one] @ right.output_grads[other].mT
    return (grads * inputs).flatten(1).sum(1)


def _table_products(
    left: TableRows, right: TableRows, pairs: Int[Tensor, "p 2"]
) -> Float[Tensor, " p"]:
    """Return the products of gradients at positions of equal ids."""
    one, other = pairs.unbind(1)
    same = left.ids[one][:, :, None] == right.ids[other][:, None, :]
    products = left.output_grads[one] @ right.output_grads[other].mT
    return (products * same).sum((1, 2))


def _mixed_products(
    left: OuterProducts, right: TableRows, pairs: Int[Tensor, "p 2"]
) -> Float[Tensor, " p"]:
    """Return ``<sum_t g_t a_t^T, sum_s e_{id_s} h_s^T> = sum_{t,s} g_t[id_s] (a_t . h_s)``."""
    one, other = pairs.unbind(1)
    grads, ids = left.output_grads[one], right.ids[other]
    picked = grads.gather(2, ids[:, None, :].expand(-1, grads.shape[1], -1))
    return (picked * (left.inputs[one] @ right.output_grads[other].mT)).sum((1, 2))


def _formed_products(left: Term, right: Term, pairs: Int[Tensor, "p 2"]) -> Float[Tensor, " p"]:
    """Return the products of gradients entry by entry, some examples on the right at a time."""
    out = torch.zeros(len(pairs), dtype=_dtype(right), device=pairs.device)
    whole = [block.flatten(1) for block in left.blocks()]
    size = max(1, PIECE_ENTRIES // max(1, left.component.size))
    for where in pairs[:, 1].argsort(stable=True).split(size):
        one, other = pairs[where].unbind(1)
        examples, place = other.unique_consecutive(return_inverse=True)
        (part,) = examples_of(Gradient(right.component, (right,)), examples).terms
        for block, formed in zip(whole, part.blocks(), strict=True):
            out[where] += torch.linalg.vecdot(block[one], formed.flatten(1)[place])
    return out


def _in_pieces(
    compute: Callable[[Any, Any, Tensor], Tensor], left: Term, right: Term, pairs: Tensor
) -> Float[Tensor, " p"]:
    """Return the products of some pairs at a time, whose copies of factors fit the memory."""
    entries = _entries(left) + _entries(right)
    size = max(1, PIECE_ENTRIES // max(1, entries))
    return torch.cat([compute(left, right, some) for some in pairs.split(size)])


def _entries(term: Term) -> int:
    """Return the number of entries of one example's factors, and of products of its positions."""
    if isinstance(term, OuterProducts):
        factors = term.inputs[0].numel() + term.output_grads[0].numel()
        return factors + term.inputs.shape[-2] ** 2
    assert isinstance(term, TableRows)
    return term.output_grads[0].numel() + term.ids.shape[1] ** 2


def _dtype(term: Term) -> torch.dtype:
    """Return the type of a term's entries."""
    if isinstance(term, Formed):
        return term.values[0].dtype
    return term.values.dtype if isinstance(term, Vectors) else term.output_grads.dtype
