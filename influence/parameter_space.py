"""Parameters of a model as the coordinates of vectors, and back.

Letters: ``q`` vectors, ``d`` parameters, ``n`` examples, ``i`` inputs of a linear map (with a
trailing one for its bias), ``o`` outputs.

The coordinates are those of `Coordinates`: components side by side, weights as ``o i``, also
where a layer keeps them in another shape.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import torch
from jaxtyping import Float
from torch import Tensor, nn

from influence.diagonal import map_shapes
from projections import (
    Component,
    Coordinates,
    Gradient,
    Layout,
    Parameter,
    PassSettings,
    TableRows,
    Task,
    exchange_if_transposed,
    find_components,
)


@dataclass(frozen=True)
class ParameterSpace:
    """The trainable parameters of a model as one vector.

    Args:
        model: The model; it is only read.
        layout: Its components.
        coordinates: Where each parameter begins.
    """

    model: nn.Module
    layout: Layout
    coordinates: Coordinates

    @property
    def num_dims(self) -> int:
        """Number ``d`` of parameters."""
        return self.coordinates.num_dims

    @cached_property
    def parameters(self) -> list[nn.Parameter]:
        """The parameters, in the order of the coordinates."""
        named = dict(self.model.named_parameters())
        return [named[part.name] for part in self._parts]

    @property
    def dtype(self) -> torch.dtype:
        """What vectors are kept in: the parameters' precision, and no less than float32."""
        return torch.promote_types(self.parameters[0].dtype, torch.float32)

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.parameters[0].device

    def split(self, vectors: Float[Tensor, "q d"]) -> list[Tensor]:
        """Return vectors as one tensor a parameter, ``q`` by its own shape and of its dtype."""
        blocks = []
        for part, parameter in zip(self._parts, self.parameters, strict=True):
            block = exchange_if_transposed(self.model, part.name, self.block(vectors, part))
            blocks.append(block.reshape(len(vectors), *parameter.shape).to(parameter.dtype))
        return blocks

    def join(self, blocks: Sequence[Tensor]) -> Float[Tensor, "q d"]:
        """Return one tensor a parameter, ``q`` by its own shape, as vectors."""
        flat = [
            exchange_if_transposed(self.model, part.name, block).flatten(1).to(self.dtype)
            for part, block in zip(self._parts, blocks, strict=True)
        ]
        return torch.cat(flat, 1)

    def block(self, vectors: Float[Tensor, "q d"], part: Parameter) -> Float[Tensor, "q ..."]:
        """Return the coordinates of one parameter in the layout of components."""
        start = self.coordinates.starts[part.name]
        return vectors[:, start : start + part.size].unflatten(1, part.shape)

    def linear_maps(
        self, vectors: Float[Tensor, "q d"]
    ) -> Iterator[tuple[Component, dict[str, Float[Tensor, "q o i"]]]]:
        """Yield the linear maps of each component by name, the bias as their last column."""
        for component in self.layout.components.values():
            if component.kind != "linear":
                continue
            weight, *bias = [self.block(vectors, part) for part in component.parameters]
            whole = torch.cat([weight, *(b[..., None] for b in bias)], -1)
            shapes = map_shapes(component, self.layout.num_groups(component.name))
            pieces = whole.chunk(len(shapes), dim=1)
            yield component, dict(zip([name for name, *_ in shapes], pieces, strict=True))

    def put(
        self, component: Component, maps: Mapping[str, Float[Tensor, "q o i"]], out: Tensor
    ) -> None:
        """Write the linear maps of one component into vectors."""
        whole = torch.cat(list(maps.values()), 1)
        weight, *bias = component.parameters
        self.block(out, weight).copy_(whole[..., : weight.shape[1]])
        for part in bias:
            self.block(out, part).copy_(whole[..., -1])

    def read(self) -> Float[Tensor, " d"]:
        """Return a copy of the parameters as one vector."""
        return self.join([parameter.detach()[None] for parameter in self.parameters])[0]

    @contextmanager
    def moved_to(self, place: Float[Tensor, " d"]) -> Iterator[None]:
        """Give the model other parameters, and the old ones back at the end, to the bit.

        Args:
            place: The other parameters.
        """
        kept = [parameter.detach().clone() for parameter in self.parameters]
        self._write([block[0] for block in self.split(place[None])])
        try:
            yield
        finally:
            self._write(kept)

    @torch.no_grad()
    def _write(self, values: Sequence[Tensor]) -> None:
        """Overwrite the parameters."""
        for parameter, value in zip(self.parameters, values, strict=True):
            parameter.copy_(value)

    @cached_property
    def _parts(self) -> list[Parameter]:
        """The parameters as components describe them."""
        return [part for c in self.layout.components.values() for part in c.parameters]


def parameter_space(task: Task, settings: PassSettings) -> ParameterSpace:
    """Return the space of the trainable parameters of a model that settings choose.

    Raises:
        ValueError: The settings take layers apart by attention head.
    """
    if settings.heads:
        raise ValueError(
            "`settings` must not take layers apart by head: curvature couples them. "
            f"Got {len(settings.heads)} layers. Choose whole ones with `layers=(...)`."
        )
    layout = find_components(task.model, settings.layers, kinds=settings.kinds)
    parts = [part for c in layout.components.values() for part in c.parameters]
    ends = list(accumulate(part.size for part in parts))
    starts = {part.name: end - part.size for part, end in zip(parts, ends, strict=True)}
    return ParameterSpace(task.model, layout, Coordinates(ends[-1], starts))


@dataclass(frozen=True)
class Directions:
    """A projector onto given vectors: inner products of gradients with each of them.

    Args:
        space: What the coordinates of the vectors are.
        vectors: The vectors.
    """

    space: ParameterSpace
    vectors: Float[Tensor, "q d"]

    @property
    def num_dims(self) -> int:
        """Number ``q`` of vectors."""
        return len(self.vectors)

    def project(self, gradient: Gradient, out: Float[Tensor, "n q"]) -> None:
        """Add the inner products with one component.

        Args:
            gradient: The gradient of one component.
            out: Where to add them.
        """
        for term in gradient.terms:
            if isinstance(term, TableRows):
                (part,) = term.component.parameters
                tables = self.space.block(self.vectors, part).to(out)
                for query, table in enumerate(tables):
                    out[:, query] += (table[term.ids] * term.output_grads).sum((1, 2))
                continue
            for piece in term.pieces():
                start = self.space.coordinates.starts[piece.parameter.name] + piece.start
                some = self.vectors[:, start : start + piece.values.shape[1]]
                out[piece.examples] += piece.values.to(out) @ some.mT.to(out)
