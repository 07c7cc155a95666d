"""A layer rule: from what went in and the gradient of what came out to the normal form.

A rule says two things of a module: which components its own parameters make, and, once
a backward pass has reached it, which term each component gets. Rules are looked up by
class, subclasses included, the most specific first.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from projections.errors import UnsupportedLayerError
from projections.per_example import Component, Term

TermMaker = Callable[[Component, nn.Module, Tensor, Tensor], Term]


@dataclass(frozen=True)
class Part:
    """Some parameters of one module, by attribute, that make one component.

    Args:
        attributes: Names in the module: ``("weight", "bias")``, ``("weight",)``.
        shapes: The shape of each in the normal form: ``(o, i)``, ``(o,)``.
        make_term: ``(component, module, inputs, output_grads) -> Term``, for batches
            whose first axis is the examples.
        kind: ``"linear"``, ``"table"`` or ``"vector"``; a vector is named after its parameter.
    """

    attributes: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    make_term: TermMaker
    kind: str = "linear"


LayerRule = Callable[[nn.Module, frozenset[str]], list[Part]]
"""``rule(module, attributes)`` -> the parts that these trainable attributes make."""


class Rules:
    """The rules known so far, by class of module.

    Example:
        >>> from projections.layers import RULES
        >>> [part.attributes for part in RULES.parts("fc", nn.Linear(2, 3), {"weight", "bias"})]
        [('weight', 'bias')]
    """

    def __init__(self) -> None:
        """Start with no rules."""
        self._rules: dict[type[nn.Module], LayerRule] = {}

    def register(self, *types: type[nn.Module]) -> Callable[[LayerRule], LayerRule]:
        """Return a decorator that registers a rule for modules of these classes."""

        def decorate(rule: LayerRule) -> LayerRule:
            for kind in types:
                self._rules[kind] = rule
            return rule

        return decorate

    def knows(self, module: nn.Module) -> bool:
        """Tell whether there is a rule for a module's class."""
        return any(kind in self._rules for kind in type(module).__mro__)

    def parts(self, name: str, module: nn.Module, attributes: set[str]) -> list[Part]:
        """Return the parts that the trainable attributes of a module make.

        Args:
            name: Name of the module, for messages.
            module: The module.
            attributes: Its own parameters that require gradients.

        Raises:
            UnsupportedLayerError: No rule covers all of them.
        """
        for kind in type(module).__mro__:
            if kind in self._rules:
                parts = self._rules[kind](module, frozenset(attributes))
                covered = {attribute for part in parts for attribute in part.attributes}
                if attributes <= covered:
                    return parts
                break
        known = ", ".join(sorted(kind.__name__ for kind in self._rules))
        raise UnsupportedLayerError(
            f"every trainable layer must have a rule for its per-example gradient. The layer "
            f"{name or '(the model itself)'!r} ({type(module).__name__}) with the parameters "
            f"{sorted(attributes)} has none; there are rules for {known}. Leave it out with "
            f"`layers=[...]` or `requires_grad_(False)`, or register a rule for its class in "
            "`projections.layers.RULES`."
        )


def batch_positions(tensor: Tensor, num_examples: int) -> Tensor:
    """Return a tensor ``n ... f`` as ``n t f``, with ``t = 1`` where there is no such axis."""
    return tensor.reshape(num_examples, -1, tensor.shape[-1])


def bias_part(attribute: str, size: int, make_term: TermMaker) -> Part:
    """Return the part of a bias that stands alone, its weight being frozen or tied."""
    return Part((attribute,), ((size,),), make_term, kind="vector")
