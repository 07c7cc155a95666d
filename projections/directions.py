"""One gradient, kept so that those of a batch's examples can be multiplied with it cheaply.

Letters: ``n`` examples, ``t`` positions, ``i`` input features, ``o`` output features,
``k`` rank.

The product of the gradient ``sum_t g_t a_t^T`` of an example with a matrix ``D`` (``o i``) is
``sum_t g_t^T D a_t``: one more product of the size of the forward. With ``D`` cut to rank
``k``, ``U V^T``, it is ``sum_t (g_t^T U) . (a_t^T V)``, which for small ``k`` is next to nothing.
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from projections.factors import OuterProducts, TableRows, Term, Vectors
from projections.per_example import Gradient


class GradientSum:
    """The sum over examples of all terms of a backward, by parameter."""

    def __init__(self) -> None:
        """Begin at zero."""
        self.parts: dict[str, Tensor] = {}

    def add(self, term: Term) -> None:
        """Add the gradients of all examples of a use."""
        for parameter, found in zip(term.component.parameters, _summed(term), strict=True):
            kept = self.parts.get(parameter.name)
            part = found.reshape(parameter.shape)
            self.parts[parameter.name] = part if kept is None else kept + part


class Direction:
    """A gradient that others are multiplied with.

    Args:
        gradient: Its parts by parameter.
        rank: Rank ``k`` to which matrices are cut, along their largest singular values;
            None keeps them whole.
    """

    def __init__(self, gradient: GradientSum, *, rank: int | None = None) -> None:
        """Cut the matrices where that saves work."""
        self.sq_norm = sum(float(part.double().square().sum()) for part in gradient.parts.values())
        self._whole = gradient.parts
        self._cut = {
            name: _transposed(low_rank(part, rank))
            for name, part in gradient.parts.items()
            if rank is not None and part.dim() == 2 and rank * sum(part.shape) < part.numel()
        }

    def products_with(self, gradient: Gradient) -> Float[Tensor, " n"]:
        """Return the product of each example's gradient of a component with this gradient."""
        found = [self.products(term) for term in gradient.terms]
        return found[0] if len(found) == 1 else torch.stack(found).sum(0)

    def products(self, term: Term) -> Float[Tensor, " n"]:
        """Return the product of each example's term with this gradient."""
        parameters = term.component.parameters
        if isinstance(term, OuterProducts):
            products = self._with_matrix(term, parameters[0].name)
            for bias in parameters[1:]:
                products = products + term.bias_vector.flatten(1) @ self._whole[bias.name]
            return products
        if isinstance(term, TableRows):
            rows = self._whole[parameters[0].name][term.ids]
            return (rows * term.output_grads).sum((1, 2))
        if isinstance(term, Vectors):
            return term.values @ self._whole[parameters[0].name]
        pairs = zip(parameters, term.blocks(), strict=True)
        found = [block.flatten(1) @ self._whole[p.name].flatten() for p, block in pairs]
        return torch.stack(found).sum(0)

    def _with_matrix(self, term: OuterProducts, name: str) -> Float[Tensor, " n"]:
        """Return the products of the weight's gradients."""
        grads, inputs = term.output_grads, term.inputs
        if name in self._cut and inputs.dim() == 3:
            left, right = self._cut[name]
            found = functional.linear(grads, left) * functional.linear(inputs, right)
            return found.flatten(1).sum(1)
        matrix = self._whole[name].reshape(-1, grads.shape[-1], inputs.shape[-1])
        matrix = matrix[0] if inputs.dim() == 3 else matrix
        # Multiplied on the side where the result is the smaller one.
        if grads.shape[-1] > inputs.shape[-1]:
            found = (grads @ matrix) * inputs
        else:
            found = grads * (inputs @ matrix.mT)
        return found.flatten(1).sum(1)


def low_rank(
    matrix: Float[Tensor, "o i"], rank: int
) -> tuple[Float[Tensor, "o k"], Float[Tensor, "i k"]]:
    """Return factors of the closest matrix of a rank, ``left @ right.T``."""
    tall = matrix if matrix.shape[0] >= matrix.shape[1] else matrix.mT
    _, vectors = torch.linalg.eigh(tall.double().mT @ tall.double())
    right = vectors[:, -rank:].to(matrix)
    left = tall @ right
    return (left, right) if tall is matrix else (right, left)


def _transposed(
    factors: tuple[Tensor, Tensor],
) -> tuple[Float[Tensor, "k o"], Float[Tensor, "k i"]]:
    """Return factors with a row a dimension, by which products of few columns are faster."""
    left, right = factors
    return left.mT.contiguous(), right.mT.contiguous()


def _summed(term: Term) -> list[Tensor]:
    """Return the gradient of each parameter, summed over the examples."""
    if isinstance(term, OuterProducts):
        # Positions of all examples are positions of one.
        grads = term.output_grads.movedim(0, -3).flatten(-3, -2)
        inputs = term.inputs.movedim(0, -3).flatten(-3, -2)
        weight = grads.mT @ inputs
        return [weight, term.bias_vector.sum(0)] if term.has_bias else [weight]
    if isinstance(term, TableRows):
        (table,) = term.component.parameters
        sums = term.output_grads.new_zeros(table.shape)
        sums.index_add_(0, term.ids.flatten(), term.output_grads.flatten(0, 1))
        return [sums]
    return [block.sum(0) for block in term.blocks()]
