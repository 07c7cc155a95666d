"""Capture: per-example gradients of every layer from one forward and one backward.

Hooks keep what goes into each layer and the gradient of what comes out. Parameters are
frozen meanwhile, so autograd forms no weight gradient; to outputs that would then need no
gradient a zero is added that does. A component is handed on as soon as backward
has reached all its uses, so factors of finished layers do not pile up.

Modules used several times, weights shared between modules and both kinds of gradient
checkpointing are understood. Not handled: modules whose output is not one tensor, and
layers whose input another operation overwrites in place (refused when it happens).
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from projections.checks import matches
from projections.errors import NonDeterministicError, UnsupportedLayerError
from projections.layers import RULES, Part
from projections.layers.norm import is_rms_norm, rms_norm_part
from projections.per_example import (
    Component,
    Gradient,
    OuterProducts,
    Parameter,
    Term,
    Vectors,
    fold_examples,
    merge_terms,
)

Observer = Callable[[Gradient], None]
DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


@dataclass(frozen=True)
class Use:
    """How one module serves one component."""

    component: Component
    part: Part


@dataclass(frozen=True)
class Layout:
    """The components of a model, in the order of its modules, and who serves them.

    Args:
        components: By name.
        uses: For each module with tracked parameters, its name and its uses.
    """

    components: dict[str, Component]
    uses: dict[nn.Module, tuple[str, list[Use]]]

    def num_groups(self, name: str) -> int:
        """Return how many linear maps a component is: the groups of a convolution."""
        modules = [
            m for m, (_, found) in self.uses.items() for u in found if u.component.name == name
        ]
        return getattr(modules[0], "groups", 1)

    @property
    def num_parameters(self) -> int:
        """Number ``d`` of tracked parameters."""
        return sum(component.size for component in self.components.values())


def find_components(
    model: nn.Module,
    layers: str | Sequence[str] | None = None,
    *,
    kinds: Collection[str] | None = None,
) -> Layout:
    """Return the components that a model's trainable parameters make.

    Args:
        model: The model; parameters that do not require gradients are left out.
        layers: Patterns such as ``"*.mlp.*"``; a module counts if its name, or the name
            of one of its parameters, matches one of them. Default: all.
        kinds: Kinds of components to keep, of those in `Component`; modules that no rule
            covers are then left out. Default: all.

    Raises:
        UnsupportedLayerError: A trainable layer has no rule.
        ValueError: Nothing is left.

    Example:
        >>> layout = find_components(nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3)))
        >>> list(layout.components), layout.num_parameters
        (['0', '1.weight', '1.bias'], 15)
    """
    patterns = [layers] if isinstance(layers, str) else layers
    names: dict[int, str] = {}
    matching = set()
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if parameter.requires_grad:
            names.setdefault(id(parameter), name)  # a tied parameter has several; the first counts
            if patterns is None or matches(name, patterns):
                matching.add(id(parameter))
    names = {key: name for key, name in names.items() if key in matching}
    sharing = Counter(
        id(parameter)
        for module in model.modules()
        for parameter in module.parameters(recurse=False)
        if id(parameter) in names
    )
    components: dict[str, Component] = {}
    uses: dict[nn.Module, tuple[str, list[Use]]] = {}
    for module_name, module in model.named_modules():
        own = {
            attribute: parameter
            for attribute, parameter in module.named_parameters(recurse=False)
            if id(parameter) in names
        }
        if not own:
            continue
        found: list[Use] = []
        if kinds is not None and not _has_rule(module):
            continue
        for part in _split_shared(_parts(module_name, module, set(own)), own, sharing):
            parameters = tuple(
                Parameter(names[id(own[attribute])], shape)
                for attribute, shape in zip(part.attributes, part.shapes, strict=True)
            )
            first = parameters[0].name
            name = first if part.kind == "vector" else first.rpartition(".")[0]
            component = components.setdefault(name, Component(name, parameters, part.kind))
            if component.kind != part.kind:
                components[name] = replace(component, kind="mixed")
            if component.parameters != parameters:
                raise UnsupportedLayerError(
                    f"modules that share a weight must use it in the same layout. {name!r} and "
                    f"{module_name!r} do not. Freeze one with `requires_grad_(False)`."
                )
            found.append(Use(component, part))
        uses[module] = (module_name, found)
    if kinds is not None:
        components = {n: c for n, c in components.items() if c.kind in kinds}
        uses = {
            module: (name, [use for use in found if use.component.name in components])
            for module, (name, found) in uses.items()
        }
    uses = {module: (name, found) for module, (name, found) in uses.items() if found}
    if not components:
        raise ValueError(
            "the model must have at least one trainable parameter"
            + (f" in a layer that matches {patterns}" if patterns else "")
            + (f" of the kinds {sorted(kinds)}" if kinds else "")
            + ". Got none. Check `requires_grad` and the names in `model.named_modules()`."
        )
    return Layout(components, uses)


def check_evaluation_mode(model: nn.Module) -> None:
    """Refuse dropout that is on and batch norm that mixes the examples of a batch.

    Raises:
        NonDeterministicError: Names the first such layer.
    """
    for name, module in model.named_modules():
        if module.training and isinstance(module, DROPOUTS) and module.p > 0:
            raise NonDeterministicError(
                "dropout must be off, or gradients are random. The layer "
                f"{name!r} is in training mode with p={module.p}. Call `model.eval()` first."
            )
        if isinstance(module, BATCH_NORMS) and (module.training or module.running_mean is None):
            raise NonDeterministicError(
                "batch norm must be in evaluation mode, or an example's gradient depends on the "
                f"rest of its batch. The layer {name!r} is not. Call `model.eval()` first."
            )


@dataclass
class Capture:
    """One capture over a model: hooks that live as long as its context.

    Args:
        model: The model.
        layout: Its components, from `find_components`.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
        >>> capture = Capture(model, find_components(model))
        >>> norms = {}
        >>> with capture.hooks():
        ...     losses = capture.forward(lambda: model(torch.ones(5, 2)).squeeze(1), 5)
        ...     capture.backward(losses, lambda g: norms.update({g.component.name: g.sq_norms}))
        >>> {name: tuple(norm.shape) for name, norm in norms.items()}
        {'2': (5,), '0': (5,)}
    """

    model: nn.Module
    layout: Layout
    _num_examples: int = 0
    _input_keys: dict[tuple[Any, ...], int] = field(default_factory=dict)
    _expected: Counter[str] = field(default_factory=Counter)
    _received: dict[str, list[Term]] = field(default_factory=lambda: defaultdict(list))
    _without_graph: set[str] = field(default_factory=set)
    _emitted: set[str] = field(default_factory=set)
    _in_backward: bool = False
    _observe: Observer | None = None

    @contextmanager
    def hooks(self) -> Iterator[None]:
        """Freeze the parameters and hook the layers; restore all of it at the end."""
        frozen = [p for p in self.model.parameters() if p.requires_grad]
        handles = []
        try:
            for parameter in frozen:
                parameter.requires_grad_(False)
            for module in self.layout.uses:
                handles.append(module.register_forward_hook(self._after_forward))
            yield
        finally:
            for handle in handles:
                handle.remove()
            for parameter in frozen:
                parameter.requires_grad_(True)

    def forward(self, compute: Callable[[], Any], num_examples: int) -> Any:
        """Run ``compute`` with gradients on, remembering what it uses.

        Args:
            compute: Runs the model on a batch and returns what came out.
            num_examples: Number ``n`` of examples in that batch.
        """
        self._num_examples = num_examples
        self._expected.clear()
        self._received.clear()
        self._input_keys.clear()
        self._without_graph.clear()
        with torch.enable_grad():
            return compute()

    def backward(self, losses: Tensor, observe: Observer, *, again: bool = False) -> None:
        """Run backward from the sum of the losses and hand each component to ``observe``.

        Args:
            losses: One loss an example, from `forward`.
            observe: Called once for each component that was reached, in backward order.
            again: Whether another backward from the same forward will follow.

        Raises:
            UnsupportedLayerError: A layer ran without a graph, and was not run again.
        """
        self._in_backward, self._observe = True, observe
        self._emitted.clear()
        try:
            if losses.requires_grad:
                losses.sum().backward(retain_graph=again)
            for name in list(self._received):
                self._emit(name)
            if lost := sorted(self._without_graph - self._emitted):
                raise UnsupportedLayerError(
                    "a layer must run with gradients on, or be run again by checkpointing. "
                    f"{lost[0]!r} did not. In a checkpointed segment whose input needs no gradient "
                    "use `use_reentrant=False`; else freeze the layer with `requires_grad_(False)`."
                )
        finally:
            self._in_backward, self._observe = False, None
            self._received.clear()

    @property
    def ran_without_graph(self) -> bool:
        """Whether a layer ran without a graph in the last forward, to be run again later."""
        return bool(self._without_graph)

    def _after_forward(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        """Keep the input, and wait for the gradient of the output."""
        name, uses = self.layout.uses[module]
        if not isinstance(output, Tensor) or not args or not isinstance(args[0], Tensor):
            raise UnsupportedLayerError(
                f"a layer must take a tensor as its first argument and return a tensor. {name!r} "
                "does not. Leave it out with `layers=[...]` or `requires_grad_(False)`."
            )
        if not self._in_backward:
            self._expected.update(use.component.name for use in uses)
        if not torch.is_grad_enabled():
            # The first forward of a checkpointed segment; the second one counts.
            self._without_graph.update(use.component.name for use in uses)
            return None
        replaced = output
        if len(output) == 1 and self._num_examples > 1:
            # What is computed once for the whole batch (position embeddings) is expanded, so
            # that its gradient still knows the examples apart.
            replaced = output.expand(self._num_examples, *output.shape[1:])
        if not replaced.requires_grad:
            # Adding a zero that wants a gradient is what makes backward come this far.
            replaced = replaced + torch.zeros_like(output[:0].sum(), requires_grad=True)
        inputs = args[0].detach()
        if len(inputs) == 1 and self._num_examples > 1:
            inputs = inputs.expand(self._num_examples, *inputs.shape[1:])
        version = inputs._version
        key = None if self._in_backward else self._input_key(inputs)

        def keep(grads: Tensor) -> None:
            if inputs._version != version:
                raise UnsupportedLayerError(
                    f"the input of a layer must stay as it is until backward. That of {name!r} was "
                    "overwritten in place. Make that operation out of place "
                    "(`x = x + y` for `x += y`, `inplace=False`)."
                )
            self._receive(module, uses, inputs, grads.detach(), key)

        replaced.register_hook(keep)
        return None if replaced is output else replaced

    def _input_key(self, inputs: Tensor) -> int:
        """Return the number of a tensor among those that layers read in this forward."""
        # All of them are alive until backward, so no two share an address.
        place = (inputs.data_ptr(), tuple(inputs.shape), inputs.stride(), inputs._version)
        return self._input_keys.setdefault(place, len(self._input_keys))

    def _receive(
        self,
        module: nn.Module,
        uses: list[Use],
        inputs: Tensor,
        grads: Tensor,
        key: int | None,
    ) -> None:
        """Make the terms of one use, and hand on components that are complete."""
        name = self.layout.uses[module][0]
        count = self._num_examples
        if len(grads) % count:
            raise UnsupportedLayerError(
                f"the first axis of a layer's output must hold the {count} examples of the "
                f"batch. {name!r} gives {tuple(grads.shape)}."
            )
        if inputs.is_floating_point() and inputs.dtype != grads.dtype:
            inputs = inputs.to(grads.dtype)
        for use in uses:
            component = use.component.name
            term = use.part.make_term(use.component, module, inputs, grads)
            if len(grads) != count:
                # Examples and positions were flattened into one axis; preflight checks the order.
                term = fold_examples(term, count)
            if isinstance(term, OuterProducts) and term.inputs.data_ptr() == inputs.data_ptr():
                term = replace(term, input_key=key)
            self._received[component].append(term)
            if len(self._received[component]) == self._expected[component]:
                self._emit(component)

    def _emit(self, name: str) -> None:
        """Hand one component to the observer."""
        assert self._observe is not None
        terms = self._received.pop(name)
        self._emitted.add(name)
        with torch.no_grad():
            self._observe(merge_terms(self.layout.components[name], terms))


def _parts(name: str, module: nn.Module, attributes: set[str]) -> list[Part]:
    """Look up the rule of a module."""
    if is_rms_norm(module):
        return rms_norm_part(next(module.parameters()).numel())
    return RULES.parts(name, module, attributes)


def _has_rule(module: nn.Module) -> bool:
    """Tell whether a module's own parameters can be covered."""
    return is_rms_norm(module) or RULES.knows(module)


def _split_shared(
    parts: list[Part], own: dict[str, nn.Parameter], sharing: Counter[int]
) -> list[Part]:
    """Take weight and bias apart where one of them is shared with another module."""
    split: list[Part] = []
    for part in parts:
        shared = [sharing[id(own[attribute])] > 1 for attribute in part.attributes]
        if len(part.attributes) == 2 and any(shared):
            (weight, bias), (weight_shape, bias_shape) = part.attributes, part.shapes
            split.append(Part((weight,), (weight_shape,), part.make_term))
            split.append(Part((bias,), (bias_shape,), _bias_of(part), kind="vector"))
        else:
            split.append(part)
    return split


def _bias_of(part: Part) -> Callable[[Component, nn.Module, Tensor, Tensor], Term]:
    """Return the rule of the bias of a part that was taken apart."""

    def make_term(
        component: Component, module: nn.Module, inputs: Tensor, output_grads: Tensor
    ) -> Term:
        term = part.make_term(component, module, inputs, output_grads)
        assert isinstance(term, OuterProducts)
        return Vectors(component, term.bias_vector.reshape(len(output_grads), -1))

    return make_term
