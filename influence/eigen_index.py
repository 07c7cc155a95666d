"""The eigenbasis index: the coordinates of most curvature, as rows of a gradient store.

Letters: ``n`` examples, ``q`` queries, ``i`` inputs, ``o`` outputs, ``k`` kept coordinates.

Coordinates are single pairs ``(o, i)`` of the eigenbasis, ranked by eigenvalue over the
mean eigenvalue of their layer, one list over all layers, so that the order does not
depend on the damping. Rows are stored unwhitened: one store serves every metric and every
damping, since only queries are whitened.

References:
    Grosse et al. (2023), arXiv:2308.03296, for the eigenbasis; Choe et al., What is your
    data worth to GPT? (2024), arXiv:2405.13954, for rows whitened by their Gram matrix.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Literal, Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor

from influence.kfac_math import CHUNK_ENTRIES, LayerCurvature
from influence.linear_layers import LinearUse, linear_uses
from projections import Batch, Gradient, Projector, check_between

MetricName = Literal["ones", "dampings", "curvature"]
"""A matrix that is diagonal in the eigenbasis: the identity, the dampings, or both the
dampings and the eigenvalues."""


class IndexProjector(Projector, Protocol):
    """A projector onto numbers that the curvature can be told in."""

    @property
    def metric(self) -> MetricName:
        """What is the identity, seen in these numbers."""
        ...

    @property
    def eigenvalues(self) -> Float[Tensor, " c"]:
        """Eigenvalue of each coordinate that the numbers are made of."""
        ...

    def dampings(self, by_map: Mapping[str, float]) -> Float[Tensor, " c"]:
        """Return the damping of each of those coordinates, in float64."""
        ...

    def within(self, diagonal: Float[Tensor, " c"]) -> Float[Tensor, "k *k"]:
        """Return a matrix that is diagonal in the eigenbasis, seen in these numbers."""
        ...


@dataclass(frozen=True)
class KeptCoordinates:
    """The kept coordinates of one linear map.

    Args:
        rows: Columns of ``U_G`` that occur, ``o r``.
        columns: Columns of ``U_A`` that occur, ``i c``.
        pairs: Which entries of the ``r c`` block are kept.
        slots: Where they go in a row of the index.
    """

    rows: Float[Tensor, "o r"]
    columns: Float[Tensor, "i c"]
    pairs: Int[Tensor, " m"]
    slots: Int[Tensor, " m"]


@dataclass(frozen=True)
class EigenProjector:
    """Project gradients onto the coordinates of largest curvature; a projector like any other.

    Args:
        num_dims: Number ``k`` of coordinates.
        basis: Text that changes with the curvature, so that stores know what they hold.
        eigenvalues: Eigenvalue of each coordinate, in the order of the row.
        kept: The coordinates by linear map.
    """

    num_dims: int
    basis: str
    eigenvalues: Float[Tensor, " k"] = field(repr=False)
    kept: Mapping[str, KeptCoordinates] = field(repr=False)
    metric: MetricName = field(default="ones", init=False)

    def project(self, gradient: Gradient, out: Float[Tensor, "n k"]) -> None:
        """Write the coordinates of one component to ``out``.

        Args:
            gradient: The gradient of a linear map; maps without kept coordinates are left out.
            out: Where to add them.
        """
        for use in linear_uses(gradient):
            if use.name in self.kept:
                slots = self.kept[use.name].slots.to(out.device)
                for rows, found in self.coordinates(use, out):
                    rows.index_add_(1, slots, found)

    def coordinates(self, use: LinearUse, out: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Rotate both sides onto the columns that occur, and pick the pairs.

        Args:
            use: A linear map that has kept coordinates.
            out: A row for each example, whose type and device are taken.

        Yields:
            Some rows of ``out``, and the kept coordinates of their gradients, in order.
        """
        kept = self.kept[use.name]
        inputs = use.inputs.to(out.dtype) @ kept.columns.to(out)
        grads = use.output_grads.to(out.dtype) @ kept.rows.to(out)
        pairs = kept.pairs.to(out.device)
        width = inputs.shape[2] * grads.shape[2]
        height = max(1, CHUNK_ENTRIES.get(out.device.type, 1 << 24) // max(1, width))
        for a, g, rows in zip(
            inputs.split(height), grads.split(height), out.split(height), strict=True
        ):
            yield rows, (g.mT @ a).flatten(1)[:, pairs]

    def dampings(self, by_map: Mapping[str, float]) -> Float[Tensor, " k"]:
        """Return the damping of each coordinate, in float64."""
        found = torch.zeros(self.num_dims, dtype=torch.float64)
        for name, kept in self.kept.items():
            found[kept.slots] = by_map[name]
        return found

    def within(self, diagonal: Float[Tensor, " k"]) -> Float[Tensor, " k"]:
        """Return the matrix itself: these are coordinates of the eigenbasis."""
        return diagonal

    def describe(self) -> dict[str, object]:
        """Return what rows must share to be compared."""
        return {"kind": "EigenProjector", "num_dims": self.num_dims, "basis": self.basis}


def choose_coordinates(
    layers: Mapping[str, LayerCurvature], num_dims: int, *, model: str
) -> EigenProjector:
    """Return the projector onto the coordinates with the largest relative eigenvalues.

    Args:
        layers: The curvature of each linear map.
        num_dims: Number ``k`` of coordinates over all layers.
        model: Fingerprint of the model, which enters that of the basis.

    Raises:
        ValueError: There are fewer coordinates than that.
    """
    total = sum(layer.eigenvalues.numel() for layer in layers.values())
    check_between("num_dims", num_dims, 1, total, "the number of coordinates of all layers")
    names = list(layers)
    values = [layers[name].eigenvalues.flatten().cpu() for name in names]
    # A layer without any gradient has mean zero; its coordinates come last.
    relative = torch.cat([v / v.mean().clamp(min=torch.finfo(v.dtype).tiny) for v in values])
    order = relative.sort(descending=True, stable=True).indices[:num_dims]
    eigenvalues = torch.cat(values)[order]
    starts = torch.tensor([0, *(v.numel() for v in values)]).cumsum(0)
    kept = {}
    for position, name in enumerate(names):
        mine = (order >= starts[position]) & (order < starts[position + 1])
        slots = torch.nonzero(mine).flatten()
        if len(slots):
            flat = order[slots] - starts[position]
            kept[name] = _kept(layers[name], flat, slots)
    digest = sha256(model.encode())
    digest.update(order.numpy().tobytes())
    digest.update(eigenvalues.contiguous().numpy().tobytes())
    return EigenProjector(num_dims, digest.hexdigest()[:16], eigenvalues, kept)


def _kept(layer: LayerCurvature, flat: Tensor, slots: Tensor) -> KeptCoordinates:
    """Return the kept coordinates of one map from their flat positions."""
    width = layer.right.size
    rows, row_of = torch.unique(flat // width, return_inverse=True)
    columns, column_of = torch.unique(flat % width, return_inverse=True)
    return KeptCoordinates(
        layer.left.columns(rows),
        layer.right.columns(columns),
        row_of * len(columns) + column_of,
        slots,
    )


@dataclass
class RowGram:
    """An accumulator of the Gram matrix of projected gradients, ``k k``, in float64.

    Run under drawn labels it is the projected Fisher matrix; with exact labels, its exact
    expectation.

    Args:
        projector: The map, such as an `EigenProjector` or a random one.
    """

    projector: Projector
    name: str = field(default="gram", init=False)

    def __post_init__(self) -> None:
        """Start from zero."""
        size = self.projector.num_dims
        self._sum = torch.zeros(size, size, dtype=torch.float64)
        self._examples = 0
        self._waiting: list[Tensor] = []

    def begin(self, batch: Batch) -> None:
        """Start a batch, or another draw of labels for the same batch."""
        shape = (len(batch), self.projector.num_dims)
        self._out = torch.zeros(shape, dtype=batch.dtype, device=batch.device)

    def observe(self, gradient: Gradient) -> None:
        """Project one component."""
        self.projector.project(gradient, self._out)

    def end(self, batch: Batch) -> None:
        """Keep the rows until there are enough for an efficient product."""
        self._examples += len(batch) if batch.draw == 0 else 0
        self._waiting.append(self._out)
        if sum(map(len, self._waiting)) >= self.projector.num_dims:
            self._flush()

    @property
    def mean(self) -> Float[Tensor, "k k"]:
        """The Gram matrix divided by the number of examples."""
        self._flush()
        return self._sum / self._examples

    def state(self) -> dict[str, Tensor]:
        """Return sum and count."""
        self._flush()
        return {"sum": self._sum, "examples": torch.tensor(self._examples)}

    def is_sum(self, key: str) -> bool:
        """Tell that every entry of the state is a sum."""
        return True

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a state."""
        self._waiting = []
        self._sum, self._examples = state["sum"].clone(), int(state["examples"])

    def merge(self, state: Mapping[str, Tensor]) -> None:
        """Add the sum of another part of the data."""
        self._sum += state["sum"]
        self._examples += int(state["examples"])

    def _flush(self) -> None:
        """Add the products of the rows that wait."""
        if self._waiting:
            rows = torch.cat(self._waiting)
            self._sum += (rows.mT @ rows).double().cpu()
            self._waiting = []
