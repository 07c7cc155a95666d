"""Kronecker-factored curvature as plain linear algebra: tensors in, tensors out.

Letters: ``n`` examples, ``t`` positions, ``i`` inputs of a layer (with a trailing one for
its bias), ``o`` outputs, ``q`` queries, ``w`` width of a diagonal block.

Eigenvectors are columns: ``A = U_A diag(a) U_A^T``. A gradient ``G`` (``o i``) has the
coordinates ``U_G^T G U_A`` in the eigenbasis.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from projections import NonFiniteError

# Forming and squaring a gradient moves it through memory, which costs about as much as
# this many multiply-adds an entry.
ELEMENTWISE = 8
BAND = 256  # rows of a Gram matrix computed at a time
CHUNK_ENTRIES = {"cpu": 1 << 20, "cuda": 1 << 27}  # entries of gradients formed at a time


@dataclass(frozen=True)
class Rotation:
    """An orthogonal matrix with one or more diagonal blocks, or the identity.

    Args:
        blocks: Square matrices whose columns are eigenvectors, in the order of the axis;
            none at all for the identity.
        size: Width of the whole matrix.
    """

    blocks: tuple[Float[Tensor, "_ _"], ...]
    size: int

    def into(self, values: Float[Tensor, "*b i"]) -> Float[Tensor, "*b i"]:
        """Return ``values @ U``: rows in the coordinates of the eigenbasis."""
        return self._apply(values, [block.to(values) for block in self.blocks])

    def back(self, values: Float[Tensor, "*b i"]) -> Float[Tensor, "*b i"]:
        """Return ``values @ U^T``: rows back from the eigenbasis."""
        return self._apply(values, [block.to(values).mT for block in self.blocks])

    def columns_into(self, values: Float[Tensor, "*b i c"]) -> Float[Tensor, "*b i c"]:
        """Return ``U^T @ values``: columns in the coordinates of the eigenbasis."""
        return self._apply_to_columns(values, [block.to(values).mT for block in self.blocks])

    def columns_back(self, values: Float[Tensor, "*b i c"]) -> Float[Tensor, "*b i c"]:
        """Return ``U @ values``: columns back from the eigenbasis."""
        return self._apply_to_columns(values, [block.to(values) for block in self.blocks])

    def columns(self, chosen: Int[Tensor, " c"]) -> Float[Tensor, "i c"]:
        """Return some columns of the matrix."""
        if not self.blocks:
            return torch.eye(self.size, device=chosen.device)[:, chosen]
        matrix = torch.block_diag(*self.blocks)
        return matrix[:, chosen.to(matrix.device)]

    @property
    def num_operations(self) -> int:
        """Multiply-adds for one row."""
        return sum(len(block) ** 2 for block in self.blocks)

    def to(self, device: torch.device) -> "Rotation":
        """Return the rotation on a device."""
        return Rotation(tuple(block.to(device) for block in self.blocks), self.size)

    @staticmethod
    def _apply(values: Tensor, blocks: list[Tensor]) -> Tensor:
        """Multiply the last axis by a block-diagonal matrix."""
        if not blocks:
            return values
        if len(blocks) == 1:
            return values @ blocks[0]
        pieces = values.split([len(block) for block in blocks], dim=-1)
        return torch.cat([p @ b for p, b in zip(pieces, blocks, strict=True)], dim=-1)

    @staticmethod
    def _apply_to_columns(values: Tensor, blocks: list[Tensor]) -> Tensor:
        """Multiply the second to last axis by a block-diagonal matrix, without transposing."""
        if not blocks:
            return values
        if len(blocks) == 1:
            return blocks[0] @ values
        pieces = values.split([len(block) for block in blocks], dim=-2)
        return torch.cat([b @ p for p, b in zip(pieces, blocks, strict=True)], dim=-2)


@dataclass(frozen=True)
class LayerCurvature:
    """The curvature of one linear map, ``U diag(eigenvalues) U^T`` with ``U = U_G x U_A``.

    Args:
        left: ``U_G``, the eigenvectors of the output gradients.
        right: ``U_A``, those of the inputs; layers with the same inputs share the object.
        eigenvalues: Mean squared gradient along each coordinate, ``o i``.
    """

    left: Rotation
    right: Rotation
    eigenvalues: Float[Tensor, "o i"]


def eigendecompose(
    blocks: Sequence[Float[Tensor, "_ _"]], name: str
) -> tuple[Float[Tensor, " i"], Rotation]:
    """Return eigenvalues (clamped at zero) and eigenvectors of a block-diagonal covariance.

    Computed in float64; returned in the dtype of the blocks. A device whose solver fails
    is replaced by the CPU.

    Args:
        blocks: Symmetric matrices.
        name: What it is the covariance of, for messages.

    Raises:
        NonFiniteError: An entry is not finite.
    """
    values, vectors = [], []
    for block in blocks:
        if not torch.isfinite(block).all():
            raise NonFiniteError(
                f"the covariance of {name} must be finite, and is not. A loss or an activation is "
                "NaN, infinite or too large for its precision; compute in float32."
            )
        symmetric = (block.double() + block.double().mT) / 2
        try:
            eigenvalues, eigenvectors = torch.linalg.eigh(symmetric)
        except RuntimeError:
            # NOTE: the CUDA solver is known to fail on some matrices that LAPACK solves, with
            # errors of several kinds, and to need memory that is not there.
            eigenvalues, eigenvectors = torch.linalg.eigh(symmetric.cpu())
        values.append(eigenvalues.clamp(min=0).to(block))
        vectors.append(eigenvectors.to(block).contiguous())
    return torch.cat(values), Rotation(tuple(vectors), sum(map(len, vectors)))


def block_sizes(size: int, most: int | None) -> list[int]:
    """Return the widths of equal diagonal blocks, none wider than ``most``.

    Example:
        >>> block_sizes(10, None), block_sizes(10, 4)
        ([10], [4, 3, 3])
    """
    count = 1 if most is None else -(-size // most)
    return [size // count + (part < size % count) for part in range(count)]


@runtime_checkable
class Counted(Protocol):
    """What is counted of a rotation: its width, and the multiply-adds for one row."""

    @property
    def size(self) -> int:
        """Width."""
        ...

    @property
    def num_operations(self) -> int:
        """Multiply-adds for one row."""
        ...


@dataclass(frozen=True)
class Way:
    """A way to the coordinates of gradients in an eigenbasis.

    Args:
        name: What it is called in plans and logs.
        operations: Multiply-adds an example.
        inputs_first: Whether inputs are rotated before the gradient is formed.
        grads_first: Whether output gradients are.
    """

    name: str
    operations: int
    inputs_first: bool = True
    grads_first: bool = True


def possible_ways(positions: int, left: Counted, right: Counted) -> list[Way]:
    """Return the ways to sum squared coordinates, with what each costs.

    A rotation costs ``t`` times its operations before the gradient is formed, and the
    width of the other side times its operations afterwards.

    Args:
        positions: Number ``t`` of positions.
        left: ``U_G``.
        right: ``U_A``.
    """
    num_out, num_in = left.size, right.size
    size = num_out * num_in
    if positions == 1:
        return [Way("one position", left.num_operations + right.num_operations + size)]
    form = positions * size + ELEMENTWISE * size
    ways = []
    for inputs_first in (True, False):
        for grads_first in (True, False):
            inputs = (positions if inputs_first else num_out) * right.num_operations
            grads = (positions if grads_first else num_in) * left.num_operations
            name = {
                (True, True): "rotate first",
                (True, False): "rotate inputs first",
                (False, True): "rotate output gradients first",
                (False, False): "materialise first",
            }[inputs_first, grads_first]
            ways.append(Way(name, form + inputs + grads, inputs_first, grads_first))
    pairs = positions * (positions + 1) // 2
    rotations = positions * (left.num_operations + right.num_operations)
    return [*ways, Way("gram", rotations + pairs * size)]


def choose_way(positions: int, left: Counted, right: Counted) -> Way:
    """Return the way with the fewest operations.

    Example:
        >>> narrow, wide = Rotation((torch.eye(64),), 64), Rotation((torch.eye(512),), 512)
        >>> choose_way(512, narrow, narrow).name, choose_way(128, wide, wide).name
        ('materialise first', 'rotate first')
        >>> choose_way(2, wide, wide).name
        'gram'
    """
    ways = possible_ways(positions, left, right)
    return min(ways, key=lambda way: way.operations)


def add_squares(
    inputs: Float[Tensor, "n t i"],
    output_grads: Float[Tensor, "n t o"],
    out: Float[Tensor, "o i"],
    *,
    way: Way,
    left: Rotation,
    right: Rotation,
    rotated_inputs: Float[Tensor, "n t i"] | None = None,
) -> None:
    """Add ``sum_n (U_G^T G_n U_A)**2`` to ``out``.

    Args:
        inputs: Inputs of the layer, with the ones of a bias.
        output_grads: Gradients of its outputs.
        out: The sum, in place.
        way: One of `possible_ways`.
        left: ``U_G``.
        right: ``U_A``.
        rotated_inputs: ``inputs @ U_A`` where it is known already.

    References:
        George et al., Fast approximate natural gradient descent in a Kronecker-factored
        eigenbasis (NeurIPS 2018), arXiv:1806.03884, Sec. 3.
    """
    if way.name in ("one position", "gram"):
        a = right.into(inputs) if rotated_inputs is None else rotated_inputs
        g = left.into(output_grads)
        if way.name == "gram":
            # The square of a sum over t is a sum over pairs s, t; pairs s < t count twice.
            s, t = torch.triu_indices(a.shape[1], a.shape[1], device=a.device)
            g = g[:, s] * g[:, t] * torch.where(s == t, 1.0, 2.0).to(g)[:, None]
            a = a[:, s] * a[:, t]
        else:
            g, a = g.square(), a.square()
        out.addmm_(g.flatten(0, 1).mT, a.flatten(0, 1))
        return
    for gradients in rotated_gradients(
        inputs, output_grads, way=way, left=left, right=right, rotated_inputs=rotated_inputs
    ):
        for gradient in gradients:
            out.addcmul_(gradient, gradient)


def rotated_gradients(
    inputs: Float[Tensor, "n t i"],
    output_grads: Float[Tensor, "n t o"],
    *,
    way: Way,
    left: Rotation,
    right: Rotation,
    rotated_inputs: Float[Tensor, "n t i"] | None = None,
) -> Iterator[Float[Tensor, "m o i"]]:
    """Yield the coordinates ``U_G^T G_n U_A``, a few examples at a time.

    Args:
        inputs: Inputs of the layer.
        output_grads: Gradients of its outputs.
        way: Which side is rotated before the gradient is formed.
        left: ``U_G``.
        right: ``U_A``.
        rotated_inputs: ``inputs @ U_A`` where it is known already.
    """
    if way.inputs_first:
        inputs = right.into(inputs) if rotated_inputs is None else rotated_inputs
    if way.grads_first:
        output_grads = left.into(output_grads)
    entries = CHUNK_ENTRIES.get(inputs.device.type, 1 << 24)
    height = max(1, entries // (inputs.shape[-1] * output_grads.shape[-1]))
    for a, g in zip(inputs.split(height), output_grads.split(height), strict=True):
        formed = g.mT @ a
        if not way.inputs_first:
            formed = right.into(formed)
        yield formed if way.grads_first else left.columns_into(formed)


def rotate_gradients(
    gradients: Float[Tensor, "n o i"], *, left: Rotation, right: Rotation
) -> Float[Tensor, "n o i"]:
    """Return ``U_G^T G U_A`` for each gradient."""
    return left.columns_into(right.into(gradients))


def precondition(
    gradients: Float[Tensor, "q o i"],
    inverse: Float[Tensor, "o i"],
    *,
    left: Rotation,
    right: Rotation,
) -> Float[Tensor, "q o i"]:
    """Return ``U_G ((U_G^T G U_A) * inverse) U_A^T`` for each gradient."""
    scaled = rotate_gradients(gradients, left=left, right=right) * inverse
    return left.columns_back(right.back(scaled))


def damped_inverse(eigenvalues: Float[Tensor, "o i"], damping: float) -> Float[Tensor, "o i"]:
    """Return ``1 / (eigenvalues + damping)``, computed in float64."""
    return (1 / (eigenvalues.double() + damping)).to(eigenvalues.dtype)


def add_gram(rows: Float[Tensor, "m i"], out: Float[Tensor, "i i"]) -> None:
    """Add the upper triangle of ``rows^T rows`` to ``out``, in bands: about half the work.

    Below the diagonal bands ``out`` is left as it is; `mirror` fills it in.
    """
    for start in range(0, len(out), BAND):
        stop = min(start + BAND, len(out))
        out[start:stop, start:].addmm_(rows[:, start:stop].mT, rows[:, start:])


def mirror(matrix: Float[Tensor, "i i"]) -> Float[Tensor, "i i"]:
    """Return the symmetric matrix that has this upper triangle."""
    return matrix.triu() + matrix.triu(1).mT
