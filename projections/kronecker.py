"""Two-sided projection: each layer's inputs and output gradients, then their products.

Letters: ``n`` examples, ``t`` positions, ``o`` and ``i`` output and input features, ``p``
and ``q`` dimensions of the two sides, ``k`` dimensions in all.

A gradient is never formed: positions are projected on both sides first, at ``2 (p o + q i
+ p q)`` operations each. Every component has its own dimensions, side by side in a row. A
bias is one more input that is always 1; rows of a table that were not looked up cost
nothing; a vector has one side.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from hashlib import sha256

from jaxtyping import Float
from torch import Tensor

from projections.checks import check_between
from projections.components import Component
from projections.factors import Formed, TableRows, Term, Vectors
from projections.per_example import Gradient
from projections.rademacher import sign_entries
from projections.sides import Draw, RandomSide, Side


@dataclass(frozen=True)
class KroneckerBlock:
    """Where the projection of one component goes, and how it is projected.

    Args:
        start: Its first dimension in a row.
        left: The side of the output features; the only one of a vector.
        right: The side of the input features, a last one for a bias; None for a vector.
    """

    start: int
    left: Side
    right: Side | None

    @property
    def num_dims(self) -> int:
        """Number of dimensions of the component."""
        return self.left.num_dims * (1 if self.right is None else self.right.num_dims)


@dataclass(frozen=True)
class Kronecker:
    r"""Project the gradient of each layer from both sides, :math:`L^T G R` (LoGra).

    With independent signs of variance :math:`1/p` and :math:`1/q` (`random_kronecker`)
    :math:`E\langle L^T G R, L^T H R \rangle = \langle G, H \rangle`. For one position and
    unit factors with the cosines :math:`\rho_g`, :math:`\rho_a` the variance is about

    .. math:: \rho_a^2 \frac{1 + \rho_g^2}{p} + \rho_g^2 \frac{1 + \rho_a^2}{q}
        + \frac{(1 + \rho_g^2) (1 + \rho_a^2)}{p q},

    that of a dense projection to :math:`pq` dimensions for unrelated gradients, and for
    equal ones larger by about the root of that number.

    Args:
        num_dims: Number ``k`` of dimensions.
        basis: Text that changes with the sides, so that stores know what they hold.
        blocks: By the name of the component.

    References:
        Choe et al., What is your data worth to GPT? (2024), arXiv:2405.13954, Sec. 3.
    """

    num_dims: int
    basis: str
    blocks: Mapping[str, KroneckerBlock] = field(repr=False)

    def project(self, gradient: Gradient, out: Float[Tensor, "n k"]) -> None:
        """Write the projection of one component to its dimensions.

        Args:
            gradient: The gradient of one component.
            out: Where to add it.

        Raises:
            ValueError: The component is none of those that the projector was built for.
        """
        name = gradient.component.name
        if name not in self.blocks:
            raise ValueError(
                f"the projector must be built for the components of the model. {name!r} is none "
                f"of its {len(self.blocks)}. Build it with the same `layers` as the pass."
            )
        block = self.blocks[name]
        mine = out[:, block.start : block.start + block.num_dims]
        for term in gradient.terms:
            mine.add_(_products(term, block, out).flatten(1))

    def describe(self) -> dict[str, object]:
        """Return what rows must share to be compared."""
        return {"kind": "Kronecker", "num_dims": self.num_dims, "basis": self.basis}


def random_kronecker(
    components: Iterable[Component], *, num_dims: int, seed: int, draw: Draw = sign_entries
) -> Kronecker:
    """Return a two-sided projector with random sides.

    Every matrix gets ``p x p`` dimensions and every vector ``p``, less where a side has
    fewer features, which is then kept as it is.

    Args:
        components: Those of a model, ``find_components(model).components.values()``.
        num_dims: Most dimensions in all; the largest ``p`` that fits is taken.
        seed: Seed of the sides.
        draw: How entries are drawn: `sign_entries` or `normal_entries`.

    Raises:
        ValueError: There are more components than dimensions, or fewer parameters.

    Example:
        >>> import torch
        >>> from projections import find_components, random_kronecker
        >>> model = torch.nn.Sequential(torch.nn.Linear(20, 30), torch.nn.LayerNorm(30))
        >>> components = find_components(model).components.values()
        >>> projector = random_kronecker(components, num_dims=100, seed=0)
        >>> {name: block.num_dims for name, block in projector.blocks.items()}
        {'0': 81, '1.weight': 9, '1.bias': 9}
    """
    shapes = {component.name: matrix_shape(component) for component in components}
    total = sum(rows * (columns or 1) for rows, columns in shapes.values())
    why = "from one for each component to the number of parameters"
    check_between("num_dims", num_dims, len(shapes), total, why)

    def dims(shape: tuple[int, int | None], p: int) -> int:
        rows, columns = shape
        return min(rows, p) * (1 if columns is None else min(columns, p))

    p = 1
    while p < num_dims and sum(dims(shape, p + 1) for shape in shapes.values()) <= num_dims:
        p += 1
    blocks: dict[str, KroneckerBlock] = {}
    start = 0
    for name, (rows, columns) in shapes.items():

        def side(which: str, size: int, name: str = name) -> RandomSide:
            label = f"{name}/{which}"
            return RandomSide(name=label, size=size, num_dims=min(size, p), seed=seed, draw=draw)

        right = None if columns is None else side("right", columns)
        blocks[name] = KroneckerBlock(start, side("left", rows), right)
        start += blocks[name].num_dims
    digest = sha256(repr((seed, draw.__name__, p, shapes)).encode()).hexdigest()[:16]
    return Kronecker(start, digest, blocks)


def matrix_shape(component: Component) -> tuple[int, int | None]:
    """Return rows and columns of a component, a column for a bias; a vector has no columns."""
    weight, *bias = component.parameters
    if len(weight.shape) == 1:
        return weight.shape[0], None
    return weight.shape[0], weight.shape[1] + len(bias)


def _products(term: Term, block: KroneckerBlock, like: Tensor) -> Float[Tensor, "n p *q"]:
    """Return a term projected from both sides."""
    if isinstance(term, Vectors):
        return term.values.to(like.dtype) @ block.left.matrix(like)
    if block.right is None:
        (values,) = term.blocks()
        return values.to(like.dtype) @ block.left.matrix(like)
    right = block.right.matrix(like)
    if isinstance(term, Formed):
        weight, *bias = (value.to(like.dtype) for value in term.values)
        columns = weight @ right[: weight.shape[2]]
        if bias:
            columns = columns + bias[0][:, :, None] * right[-1]
        return block.left.matrix(like).mT @ columns
    if isinstance(term, TableRows):
        images = block.left.rows(term.ids, like)
        return images.mT @ (term.output_grads.to(like.dtype) @ right)
    width = term.inputs.shape[-1]
    inputs = term.inputs.to(like.dtype) @ right[:width]
    if term.has_bias:
        inputs = inputs + right[-1]
    left = block.left.matrix(like)
    if inputs.dim() == 4:  # each group has its own outputs, and positions add up over groups
        left = left.unflatten(0, (inputs.shape[1], -1))
    grads = term.output_grads.to(like.dtype) @ left
    if inputs.dim() == 4:
        inputs, grads = inputs.flatten(1, 2), grads.flatten(1, 2)
    return grads.mT @ inputs
