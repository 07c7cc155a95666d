"""What every projector must do: a new one adds a row to `PROJECTORS`.

Letters: ``n`` examples, ``k`` projected dimensions.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from projections import (
    SJLT,
    SRHT,
    Component,
    Formed,
    Gaussian,
    Gradient,
    Kronecker,
    KroneckerBlock,
    Masked,
    OuterProducts,
    Parameter,
    Projector,
    Rademacher,
    RandomSide,
    TableRows,
    TensorSketch,
    Vectors,
    sign_entries,
)
from projections.kronecker import matrix_shape
from projections.sides import Draw


@dataclass(frozen=True)
class Row:
    """One projector under the contract.

    Args:
        make: From a number of dimensions and a seed to the projector.
        variance: Of ``<Pg, Ph>`` for two vectors and a number of dimensions.
        matrix_variance: The same for two matrices, where a matrix is not mapped like the
            vector of its entries.
    """

    make: Callable[[int, int], Projector]
    variance: Callable[[Tensor, Tensor, int], float]
    matrix_variance: Callable[[Tensor, Tensor, int], float] | None = None


KURTOSIS = 2.9992  # of the normal numbers that are drawn


def normal_variance(g: Tensor, h: Tensor, k: int) -> float:
    """``(|g|^2 |h|^2 + <g, h>^2) / k``, and what the missing tail of the entries takes off."""
    own = float((g * g).sum() * (h * h).sum() + (g @ h) ** 2)
    return (own + (KURTOSIS - 3) * float((g * g * h * h).sum())) / k


def hadamard_variance(g: Tensor, h: Tensor, k: int) -> float:
    """As the docstring says: pairs of blocks as under signs, a block alone if rows are left out."""
    size = 1 << (k - 1).bit_length()
    pairs = list(zip(g.split(size), h.split(size), strict=True))
    norms = float(
        sum(
            (a @ a) * (b @ b)
            for i, (a, _) in enumerate(pairs)
            for j, (_, b) in enumerate(pairs)
            if i != j
        )
    )
    dots = float((g @ h) ** 2 - sum((a @ b) ** 2 for a, b in pairs))
    own = sum(sign_variance(1)(a, b, 1) for a, b in pairs)
    return (norms + dots + (size - k) / (size - 1) * own) / k


def sign_variance(num_signs: int) -> Callable[[Tensor, Tensor, int], float]:
    """``(|g|^2 |h|^2 + <g, h>^2 - 2/s sum g^2 h^2) / k``, as the docstrings say."""

    def variance(g: Tensor, h: Tensor, k: int) -> float:
        own = float((g * g).sum() * (h * h).sum() + (g @ h) ** 2)
        return (own - 2 / num_signs * float((g * g * h * h).sum())) / k

    return variance


def tensor_variance(g: Tensor, h: Tensor, k: int) -> float:
    """As the docstring of `TensorSketch` says."""
    columns, rows = g.T @ h, g @ h.T

    def off(matrix: Tensor) -> Tensor:
        return matrix - torch.diag(torch.diag(matrix))

    one_side = sum((off(m) * (off(m) + off(m).T)).sum() for m in (columns, rows))

    def pairs(*factors: Tensor) -> Tensor:
        """Sum over r != r', c != c' of the product of four factors."""
        total = torch.zeros(len(g), len(g), g.shape[1], g.shape[1], dtype=g.dtype) + 1
        for factor in factors:
            total = total * factor
        total[range(len(g)), range(len(g))] = 0
        total[:, :, range(g.shape[1]), range(g.shape[1])] = 0
        return total.sum()

    def at(matrix: Tensor, row: int, column: int) -> Tensor:
        """Entry (r or r', c or c') on the axes r r' c c'."""
        shape = [1, 1, 1, 1]
        shape[row], shape[2 + column] = matrix.shape
        return matrix.reshape(shape)

    both = pairs(at(g, 0, 0) ** 2, at(h, 1, 1) ** 2)
    both = both + pairs(at(g, 0, 0), at(h, 0, 0), at(g, 1, 1), at(h, 1, 1))
    crossed = pairs(at(g, 0, 0), at(h, 1, 1), at(g, 0, 1), at(h, 1, 0))
    crossed = crossed + pairs(at(g, 0, 0), at(h, 1, 1), at(g, 1, 0), at(h, 0, 1))
    return float((one_side + both) / k + (1 + (k % 2 == 0)) / k**2 * crossed)


def mask_variance(kept: int) -> Callable[[Tensor, Tensor, int], float]:
    """As the docstring of `Masked` says, for an SJLT with one sign."""

    def chances(size: int) -> Tensor:
        count = min(kept, size)
        both = torch.full((size, size), count * (count - 1) / max(1, size * (size - 1)))
        return both.fill_diagonal_(count / size).double()

    def variance(g: Tensor, h: Tensor, k: int) -> float:
        scale = float(torch.tensor([size / min(kept, size) for size in g.shape]).double().prod())
        rows, columns = map(chances, g.shape)

        def pairs(a: Tensor, b: Tensor) -> Tensor:
            return scale**2 * (a * (rows @ b @ columns)).sum()

        p = g * h
        own = pairs(g * g, h * h) + pairs(p, p) - 2 * scale * (p * p).sum()
        return float(pairs(p, p) - p.sum() ** 2 + own / k)

    return variance


SIDES = {6: (2, 3), 8: (2, 4), 9: (3, 3), 16: (4, 4), 64: (8, 8), 256: (16, 16)}


def two_sided(k: int, seed: int, draw: Draw = sign_entries) -> Kronecker:
    """A two-sided projector whose components share all their dimensions."""
    blocks = {}
    for component in [*COMPONENTS.values(), *OTHERS]:
        name = component.name
        rows, columns = matrix_shape(component)
        p, q = (k, 1) if columns is None else SIDES[k]
        left = Unbounded(name=f"{name}/left", size=rows, num_dims=p, seed=seed, draw=draw)
        right = Unbounded(name=f"{name}/right", size=columns or 1, num_dims=q, seed=seed, draw=draw)
        blocks[name] = KroneckerBlock(0, left, None if columns is None else right)
    return Kronecker(k, f"{seed}", blocks)


class Unbounded(RandomSide):
    """A random side that may have more dimensions than features, as in tiny cases."""

    def __post_init__(self) -> None:
        pass

    def matrix(self, like: Tensor) -> Tensor:
        return self._entries(torch.arange(self.size), like)

    def rows(self, numbers: Tensor, like: Tensor) -> Tensor:
        return self._entries(numbers.flatten(), like).view(*numbers.shape, self.num_dims)


def two_sided_variance(g: Tensor, h: Tensor, k: int) -> float:
    """Exactly, for signs: the right side's own, and the left side's in expectation over it."""
    p, q = SIDES[k]

    def off(matrix: Tensor) -> Tensor:
        return matrix - torch.diag(torch.diag(matrix))

    columns, rows = g.T @ h, g @ h.T
    right = (off(columns) * (off(columns) + off(columns).T)).sum() / q
    squares = rows**2 + rows * rows.T
    norms = (g * g).sum(1)[:, None] * (h * h).sum(1) + rows**2 - 2 * (g * g) @ (h * h).T
    dots = (g @ g.T) * (h @ h.T) + torch.outer(torch.diag(rows), torch.diag(rows))
    dots = dots - 2 * (g * h) @ (g * h).T
    return float(right + off(squares + (norms + dots) / q).sum() / p)


PROJECTORS = {
    "sjlt-1": Row(lambda k, seed: SJLT(num_dims=k, seed=seed), sign_variance(1)),
    "sjlt-4": Row(lambda k, seed: SJLT(num_dims=k, num_signs=4, seed=seed), sign_variance(4)),
    "rademacher": Row(lambda k, seed: Rademacher(num_dims=k, seed=seed), sign_variance(1)),
    "srht": Row(lambda k, seed: SRHT(num_dims=k, seed=seed), hadamard_variance),
    "tensorsketch": Row(
        lambda k, seed: TensorSketch(num_dims=k, seed=seed), sign_variance(1), tensor_variance
    ),
    "kronecker": Row(two_sided, sign_variance(1), two_sided_variance),
    "masked": Row(
        lambda k, seed: Masked(projector=SJLT(num_dims=k, seed=seed), kept=3, seed=seed),
        sign_variance(1),
        mask_variance(3),
    ),
    "gaussian": Row(lambda k, seed: Gaussian(num_dims=k, seed=seed), normal_variance),
}

COMPONENTS = {
    "linear": Component("fc", (Parameter("fc.weight", (3, 5)), Parameter("fc.bias", (3,)))),
    "grouped": Component("conv", (Parameter("conv.weight", (6, 4)),)),
    "table": Component("emb", (Parameter("emb.weight", (11, 3)),), "table"),
    "vector": Component("norm.weight", (Parameter("norm.weight", (7,)),), "vector"),
    "tied": Component("wte", (Parameter("wte.weight", (9, 4)),), "mixed"),
}
LONG = Component("long", (Parameter("long", (23,)),), "vector")
MATRIX = Component("matrix", (Parameter("matrix.weight", (4, 5)),))
RENAMED = Component("other", (Parameter("other", (7,)),), "vector")
OTHERS = (LONG, MATRIX, RENAMED)


def gradient(kind: str, num: int, *, seed: int = 0, dtype: torch.dtype = torch.float64) -> Gradient:
    """A random gradient of ``num`` examples of one of the components."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    component = COMPONENTS[kind]
    if kind == "linear":
        terms = (OuterProducts(component, draw(num, 4, 5), draw(num, 4, 3)),)
    elif kind == "grouped":
        terms = (OuterProducts(component, draw(num, 2, 4, 4), draw(num, 2, 4, 3)),)
    elif kind == "vector":
        terms = (Vectors(component, draw(num, 7)),)
    else:
        size, width = component.parameters[0].shape
        ids = torch.randint(size, (num, 6), generator=generator)
        terms = (TableRows(component, ids, draw(num, 6, width)),)
        if kind == "tied":
            terms = (*terms, OuterProducts(component, draw(num, 4, width), draw(num, 4, size)))
    return Gradient(component, terms)


def project(projector: Projector, *gradients: Gradient, dtype: torch.dtype | None = None) -> Tensor:
    """The sum of the projections of several components."""
    like = gradients[0].terms[0]
    if isinstance(like, Formed):
        values = like.values[0]
    else:
        values = like.values if isinstance(like, Vectors) else like.output_grads
    out = torch.zeros(len(values), projector.num_dims, dtype=dtype or values.dtype)
    for part in gradients:
        projector.project(part, out)
    return out
