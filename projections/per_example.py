"""Per-example gradients of one component, over all of its uses in a batch.

Letters: ``n`` examples, ``m`` of them, ``t`` positions, ``i`` input features, ``o`` output
features.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from projections.components import Component
from projections.factors import Formed, OuterProducts, TableRows, Term, Vectors


@dataclass(frozen=True)
class Gradient:
    """The gradient of one component for every example of a batch.

    It is a sum of terms: one for each kind of use, so more than one only for a weight
    that several modules share (an embedding tied to the output head).

    Args:
        component: What it is the gradient of.
        terms: The summands, all of this component.
    """

    component: Component
    terms: tuple[Term, ...]

    @cached_property
    def _blocks(self) -> list[Float[Tensor, "n ..."]]:
        """Gradients of the parameters, formed once."""
        first, *others = [term.blocks() for term in self.terms]
        for blocks in others:
            first = [a + b for a, b in zip(first, blocks, strict=True)]
        return first

    def materialize(self) -> dict[str, Float[Tensor, "n ..."]]:
        """Return the full gradient by parameter name: ``n`` times the parameters in memory."""
        names = [parameter.name for parameter in self.component.parameters]
        return dict(zip(names, self._blocks, strict=True))

    @cached_property
    def sq_norms(self) -> Float[Tensor, " n"]:
        """The exact squared norm of each example's gradient, formed only if that is cheaper."""
        if len(self.terms) == 1:
            return self.terms[0].sq_norm()
        total = torch.stack([term.sq_norm() for term in self.terms]).sum(0)
        for position, term in enumerate(self.terms):
            for other in self.terms[:position]:
                total = total + 2 * cross_product(term, other)
        return total


def examples_of(gradient: Gradient, rows: slice | Int[Tensor, " m"]) -> Gradient:
    """Return the gradient of some of the examples."""
    component, terms = gradient.component, []
    for term in gradient.terms:
        if isinstance(term, OuterProducts):
            part = replace(term, inputs=term.inputs[rows], output_grads=term.output_grads[rows])
        elif isinstance(term, TableRows):
            part = TableRows(component, term.ids[rows], term.output_grads[rows])
        elif isinstance(term, Vectors):
            part = Vectors(component, term.values[rows])
        else:
            part = Formed(component, tuple(values[rows] for values in term.values))
        terms.append(part)
    return Gradient(component, tuple(terms))


def cross_product(left: Term, right: Term) -> Float[Tensor, " n"]:
    """Return the inner product of two terms of the same component, example by example."""
    if isinstance(left, TableRows) and isinstance(right, OuterProducts):
        return cross_product(right, left)
    if isinstance(left, OuterProducts) and isinstance(right, TableRows):
        # <sum_s g_s a_s^T, sum_t e_{id_t} h_t^T> = sum_{s,t} g_s[id_t] (a_s . h_t)
        count, positions, _ = left.output_grads.shape
        columns = right.ids[:, None, :].expand(count, positions, right.ids.shape[1])
        picked = left.output_grads.gather(2, columns)
        return (picked * (left.inputs @ right.output_grads.mT)).sum((1, 2))
    pairs = zip(left.blocks(), right.blocks(), strict=True)
    return torch.stack([(a * b).flatten(1).sum(1) for a, b in pairs]).sum(0)


def merge_terms(component: Component, terms: Sequence[Term]) -> Gradient:
    """Return the sum of the uses of one component, with uses of one kind put in one term.

    Several uses of a linear layer are more positions of one use.

    Args:
        component: What the terms are gradients of.
        terms: One term for each use in the forward pass.
    """
    outer = [term for term in terms if isinstance(term, OuterProducts)]
    table = [term for term in terms if isinstance(term, TableRows)]
    vectors = [term for term in terms if isinstance(term, Vectors)]
    merged: list[Term] = []
    if outer:
        merged.append(
            outer[0]
            if len(outer) == 1
            else OuterProducts(
                component,
                torch.cat([term.inputs for term in outer], -2),
                torch.cat([term.output_grads for term in outer], -2),
            )
        )
    if table:
        merged.append(
            table[0]
            if len(table) == 1
            else TableRows(
                component,
                torch.cat([term.ids for term in table], 1),
                torch.cat([term.output_grads for term in table], 1),
            )
        )
    if vectors:
        merged.append(Vectors(component, torch.stack([term.values for term in vectors]).sum(0)))
    return Gradient(component, tuple(merged))


def fold_examples(term: Term, num_examples: int) -> Term:
    """Return a term whose rows are positions of examples as one whose rows are examples.

    Args:
        term: A term of ``n * f`` rows, those of one example side by side.
        num_examples: Number ``n`` of examples.
    """
    if isinstance(term, Vectors):
        values = term.values.reshape(num_examples, -1, term.values.shape[-1])
        return Vectors(term.component, values.sum(1))
    if isinstance(term, TableRows):
        grads = term.output_grads.reshape(num_examples, -1, term.output_grads.shape[-1])
        return TableRows(term.component, term.ids.reshape(num_examples, -1), grads)
    if isinstance(term, Formed):
        folded = (v.reshape(num_examples, -1, *v.shape[1:]).sum(1) for v in term.values)
        return Formed(term.component, tuple(folded))
    inputs, grads = (
        factor.unflatten(0, (num_examples, -1)).movedim(1, -3).flatten(-3, -2)
        for factor in (term.inputs, term.output_grads)
    )
    return OuterProducts(term.component, inputs, grads, term.input_key)
