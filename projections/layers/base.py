"""A layer rule: from what went in and the gradient of what came out to the normal form.

A rule says two things of a module: which components its own parameters make, and, once
a backward pass has reached it, which term each component gets. Rules are looked up by
class, subclasses included, the most specific first.

Most rules look at the first tensor that went in and the one that came out. A rule that
needs all arguments, such as attention's, is a `CallRule` and sees the whole call.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from projections.components import Component
from projections.factors import Term

logger = logging.getLogger(__name__)

TermMaker = Callable[[Component, nn.Module, Tensor, Tensor], Term]


@dataclass(frozen=True)
class Part:
    """Some parameters of one module, by attribute, that make one component.

    Args:
        attributes: Names in the module: ``("weight", "bias")``, ``("weight",)``.
        shapes: The shape of each in the normal form: ``(o, i)``, ``(o,)``.
        make_term: ``(component, module, inputs, output_grads) -> Term``, for batches
            whose first axis is the examples.
            A `CallRule` makes the terms of all its parts at once, and leaves this out.
        kind: One of the kinds of `Component`; a vector and what is replayed are named
            after their parameter.
        num_groups: Number ``r`` of linear maps that the weight is.
        label: What to add to the module's name where its parts would share one name.
    """

    attributes: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    make_term: TermMaker | None = None
    kind: str = "linear"
    num_groups: int = 1
    label: str = ""


LayerRule = Callable[[nn.Module, frozenset[str]], list[Part]]
"""``rule(module, attributes)`` -> the parts that these trainable attributes make."""


@dataclass(frozen=True)
class Call:
    """One call of a module, once a backward pass has reached it.

    Args:
        num_examples: Number ``n`` of examples in the batch.
        args: What it was called with, tensors without their graph.
        kwargs: The same by name.
        output_grads: For each floating-point tensor that came out, in order, the gradient
            of the summed loss; None for one that the loss does not depend on.
    """

    num_examples: int
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    output_grads: Sequence[Tensor | None] = ()


@dataclass(frozen=True)
class Use:
    """How one module serves one component."""

    component: Component
    part: Part


CallTerms = Callable[[nn.Module, Sequence[Use], Call], list[tuple[Component, Term]]]
"""``terms(module, uses, call)`` -> components with a term of each."""


@dataclass(frozen=True)
class CallRule:
    """A rule that sees whole calls, and may speak for parameters of its submodules.

    Args:
        parts: As for other rules; attributes of submodules have dots.
        terms: Makes the terms of all parts from one call.
    """

    parts: LayerRule
    terms: CallTerms


class Rules:
    """The rules known so far, by class of module.

    Example:
        >>> from projections.layers import RULES
        >>> [part.attributes for part in RULES.parts(nn.Linear(2, 3), {"weight", "bias"})]
        [('weight', 'bias')]
    """

    def __init__(self) -> None:
        """Start with no rules."""
        self._rules: dict[type[nn.Module], LayerRule] = {}
        self._call_rules: dict[type[nn.Module], CallRule] = {}
        self._recognised: list[tuple[Callable[[nn.Module], bool], CallRule]] = []

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

    def register_call(self, kind: type[nn.Module], rule: CallRule) -> None:
        """Register a rule that sees whole calls of modules of this class."""
        self._call_rules[kind] = rule

    def register_call_when(self, known: Callable[[nn.Module], bool], rule: CallRule) -> None:
        """Register a rule that sees whole calls of modules known by what they have."""
        self._recognised.append((known, rule))

    def call_rule(self, module: nn.Module) -> CallRule | None:
        """Return the rule for whole calls, if the module's forward is that of its class."""
        for known, rule in self._recognised:
            if known(module):
                return rule
        for kind, rule in self._call_rules.items():
            if isinstance(module, kind) and not overrides(module, kind):
                return rule
        return None

    def parts(self, module: nn.Module, attributes: set[str]) -> list[Part] | None:
        """Return the parts that the trainable attributes of a module make.

        Args:
            module: The module.
            attributes: Its own parameters that require gradients.

        Returns:
            Its parts, or None if no rule covers all of the attributes.

        Raises:
            UnsupportedLayerError: A rule knows why it cannot be.
        """
        for kind in type(module).__mro__:
            if kind in self._rules:
                if overrides(module, kind) and not computes_as(module, kind):
                    return None
                parts = self._rules[kind](module, frozenset(attributes))
                covered = {attribute for part in parts for attribute in part.attributes}
                return parts if attributes <= covered else None
        return None


def overrides(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Tell whether a module has a forward of its own, other than its parent class."""
    return type(module).forward is not kind.forward


def computes_as(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Tell whether a forward of its own computes what that of the parent class does.

    Found out on random numbers for linear layers. Embeddings are watched where they look
    up; of all others it is assumed not to.
    """
    if kind is nn.Embedding:
        return True
    if kind is not nn.Linear or not isinstance(module, nn.Linear):
        return False
    generator = torch.Generator().manual_seed(0)
    probe = torch.randn(2, module.in_features, generator=generator).to(module.weight)
    tolerance = 1e-4 if module.weight.dtype.itemsize >= 4 else 2e-2
    found = output_on(module, probe)
    with torch.no_grad():
        expected = functional.linear(probe, module.weight, module.bias)
    return found is not None and torch.allclose(found, expected, rtol=tolerance, atol=tolerance)


def output_on(module: nn.Module, probe: Tensor) -> Tensor | None:
    """Return what a module gives for random numbers, or None if it gives no tensor for them.

    What it raises says that it wants something else, and goes to the log for debugging.
    """
    with torch.no_grad():
        try:
            found = module(probe)
        except Exception as error:  # a module of somebody else may raise anything
            logger.debug("%s does not take %s: %r", type(module).__name__, probe.shape, error)
            return None
    return found if isinstance(found, Tensor) else None


def in_full_precision(
    module: nn.Module, inputs: Tensor, output_grads: Tensor
) -> tuple[Tensor, Tensor]:
    """Return both factors in the precision of the parameters; autocast makes them shorter."""
    dtype = next(module.parameters()).dtype
    if dtype.itemsize > output_grads.dtype.itemsize:
        output_grads = output_grads.to(dtype)
    if inputs.is_floating_point():
        inputs = inputs.to(output_grads.dtype)
    return inputs, output_grads


def batch_positions(tensor: Tensor) -> Tensor:
    """Return a tensor ``n ... f`` as ``n t f``, with ``t = 1`` where there is no such axis."""
    return tensor.flatten(1, -2) if tensor.dim() > 2 else tensor.unsqueeze(1)


def bias_part(attribute: str, size: int, make_term: TermMaker) -> Part:
    """Return the part of a bias that stands alone, its weight being frozen or tied."""
    return Part((attribute,), ((size,),), make_term, kind="vector")
