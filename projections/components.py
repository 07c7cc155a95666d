"""The parts of a model that gradients are of, and their parameters."""

from dataclasses import dataclass
from math import prod


@dataclass(frozen=True)
class Parameter:
    """One parameter of a component, in the layout that gradients have here.

    Args:
        name: Its name in ``model.named_parameters()``.
            A part of one has the part's name in brackets behind it.
        shape: ``(o, i)`` for a weight, ``(o,)`` for a bias, also where a layer stores
            its weight in another shape.
    """

    name: str
    shape: tuple[int, ...]

    @property
    def whole_name(self) -> str:
        """The name in ``model.named_parameters()`` of which this may be a part."""
        return self.name.partition("[")[0]

    @property
    def size(self) -> int:
        """Number of entries."""
        return prod(self.shape)


@dataclass(frozen=True)
class Component:
    """A part of a model whose gradient is one object: a layer, or a single vector.

    Args:
        name: Name of the module, or of the parameter for a vector.
        parameters: What it is made of: a weight and perhaps a bias, a table, or a vector.
        kind: ``"linear"``, ``"table"`` or ``"vector"``; ``"mixed"`` for a weight that
            serves both as a linear map and as a table; ``"transposed"`` for a linear map
            whose factors are exchanged; ``"replayed"`` for what no rule knows, whose
            gradient is formed.
    """

    name: str
    parameters: tuple[Parameter, ...]
    kind: str = "linear"

    @property
    def size(self) -> int:
        """Number ``d`` of parameters."""
        return sum(parameter.size for parameter in self.parameters)
