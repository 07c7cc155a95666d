"""Capture: per-example gradients of every layer from one forward and one backward.

Hooks keep what goes into each layer and the gradient of what comes out. Parameters are
frozen meanwhile, so autograd forms no weight gradient; to outputs that would then need no
gradient a zero is added that does. A component is handed on as soon as backward
has reached all its uses, so factors of finished layers do not pile up.

Modules used several times, weights shared between modules, autocast and both kinds of
gradient checkpointing are understood. Not handled: layers whose input another operation
overwrites in place (refused when it happens).
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import register_multi_grad_hook
from torch.utils._pytree import tree_flatten, tree_map_only, tree_unflatten
from torch.utils.hooks import RemovableHandle

from projections.components import Component
from projections.errors import UnsupportedLayerError
from projections.factors import OuterProducts, Term
from projections.kernels import differentiable_kernels
from projections.layers import Call, in_full_precision
from projections.layout import Layout, Served
from projections.lookups import watch_lookups
from projections.per_example import Gradient, fold_examples, merge_terms
from projections.replay import first_tensor, floating_tensors
from projections.sharded import put_away

Observer = Callable[[Gradient], None]


@dataclass
class Capture:
    """One capture over a model: hooks that live as long as its context.

    Args:
        model: The model.
        layout: Its components, from `find_components`.

    Example:
        >>> from projections import find_components
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
    _arrived: Counter[str] = field(default_factory=Counter)
    _without_graph: set[str] = field(default_factory=set)
    _emitted: set[str] = field(default_factory=set)
    _in_backward: bool = False
    _replaying: bool = False
    _observe: Observer | None = None

    def __post_init__(self) -> None:
        """Look up the components as layers give them."""
        self._wholes = self.layout.wholes

    @contextmanager
    def hooks(self) -> Iterator[None]:
        """Freeze the parameters and hook the layers; restore all of it at the end."""
        put_away(self.model)
        frozen = [p for p in self.model.parameters() if p.requires_grad]
        handles = []
        try:
            for parameter in frozen:
                parameter.requires_grad_(False)
            for module, served in self.layout.served:
                handles += self._hook(module, served)
            with differentiable_kernels(self.model):
                yield
        finally:
            for handle in handles:
                handle.remove()
            put_away(self.model)
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
        self._arrived.clear()
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

    def _hook(self, module: nn.Module, served: Served) -> list[RemovableHandle]:
        """Watch the calls of one module."""
        if not served.looks_up:
            after = self._after_layer if served.terms is None else self._after_call
            hook = partial(after, served)
            return [module.register_forward_hook(hook, with_kwargs=True)]
        return watch_lookups(
            module, lambda ids, rows: self._after_layer(served, module, (ids,), {}, rows)
        )

    def _after_layer(
        self, served: Served, module: nn.Module, args: tuple[Any, ...], kwargs: Any, output: Any
    ) -> Any:
        """Keep the first input of a layer, and wait for the gradient of its output."""
        inputs = first_tensor(args, kwargs)
        if self._replaying or not self._counts(served):
            return None
        if not isinstance(output, Tensor) or inputs is None:
            raise UnsupportedLayerError(
                "a layer must take a tensor as its first argument and return a tensor. "
                f"{served.name!r} does not. Leave it out with `layers=[...]` or "
                "`requires_grad_(False)`."
            )
        self._check_axes(served, output)
        axes = served.axes
        replaced = _wanting_gradient(self._repeated(output, axes and axes.outputs[0]))
        inputs = self._repeated(inputs.detach(), axes and axes.first_input)
        version = inputs._version
        key = None if self._in_backward else self._input_key(inputs)

        def keep(grads: Tensor) -> None:
            if inputs._version != version:
                raise _overwritten(served.name)
            with self._unwatched():
                terms = self._layer_terms(served, module, inputs, grads.detach(), key)
            self._receive(served, terms)

        replaced.register_hook(keep)
        return None if replaced is output else replaced

    def _after_call(
        self, served: Served, module: nn.Module, args: tuple[Any, ...], kwargs: Any, output: Any
    ) -> Any:
        """Keep all arguments of a call, and wait for the gradients of all it gave."""
        if self._replaying or not self._counts(served):
            return None
        leaves, structure = tree_flatten(output)
        places = floating_tensors(leaves)
        for number, place in enumerate(places):
            axis = served.axes and served.axes.outputs[number]
            leaves[place] = _wanting_gradient(self._repeated(leaves[place], axis))
        kept = tree_map_only(Tensor, torch.Tensor.detach, (args, kwargs))
        versions = [t._version for t in tree_flatten(kept)[0] if isinstance(t, Tensor)]
        context = _autocast_now(self._device)

        def keep(grads: Sequence[Tensor | None]) -> None:
            if versions != [t._version for t in tree_flatten(kept)[0] if isinstance(t, Tensor)]:
                raise _overwritten(served.name)
            call = Call(
                self._num_examples,
                *kept,
                output_grads=[None if grad is None else grad.detach() for grad in grads],
            )
            self._check_call(served, call)
            assert served.terms is not None
            with self._unwatched(), context():
                terms = served.terms(module, served.uses, call)
            self._receive(served, terms)

        if len(places) == 1:
            leaves[places[0]].register_hook(lambda grad: keep([grad]))
        elif places:
            register_multi_grad_hook([leaves[place] for place in places], keep)
            for place in places:
                # Such a hook does not see the root of a graph, as which checkpointing may start.
                leaves[place] = leaves[place].view_as(leaves[place])
        return tree_unflatten(leaves, structure)

    @contextmanager
    def _unwatched(self) -> Iterator[None]:
        """Let rules run modules again without that counting as a use."""
        self._replaying = True
        try:
            yield
        finally:
            self._replaying = False

    def _counts(self, served: Served) -> bool:
        """Count a call, and tell whether it has a graph to wait for."""
        names = {use.component.name for use in served.uses}
        if not self._in_backward:
            self._expected.update(names)
        if torch.is_grad_enabled():
            return True
        # The first forward of a checkpointed segment; the second one counts.
        self._without_graph.update(names)
        return False

    def _repeated(self, tensor: Tensor, axis: int | None) -> Tensor:
        """Return what was computed once for the whole batch once an example.

        Its gradient then still knows the examples apart.
        """
        if axis or self._num_examples <= 1 or not tensor.dim() or len(tensor) != 1:
            return tensor
        return tensor.expand(self._num_examples, *tensor.shape[1:])

    def _check_axes(self, served: Served, output: Tensor) -> None:
        """Refuse an output without examples that cannot be repeated for each of them."""
        shared = served.axes is not None and served.axes.outputs[:1] == (None,)
        if shared and len(output) != 1 and self._num_examples > 1:
            raise UnsupportedLayerError(
                "a layer's output must have the examples in every batch, or one row for all. "
                f"{served.name!r} had one row and now gives {tuple(output.shape)}. Call it with a "
                "batch axis, or leave it out with `layers=[...]` or `requires_grad_(False)`."
            )

    def _check_call(self, served: Served, call: Call) -> None:
        """Refuse the gradient of an output that has no examples, beside others that have."""
        axes = served.axes.outputs if served.axes is not None else ()
        for axis, grad in zip(axes, call.output_grads, strict=False):
            if axis is None and grad is not None and len(grad) != call.num_examples:
                raise UnsupportedLayerError(
                    "what a module gives must have the examples on an axis. An output of "
                    f"{served.name!r} of shape {tuple(grad.shape)} does not, and the loss depends "
                    "on it. Leave the module out with `layers=[...]` or `requires_grad_(False)`."
                )

    @property
    def _device(self) -> str:
        """Type of the model's device."""
        parameter = next(self.model.parameters(), None)
        return "cpu" if parameter is None else parameter.device.type

    def _input_key(self, inputs: Tensor) -> int:
        """Return the number of a tensor among those that layers read in this forward."""
        # All of them are alive until backward, so no two share an address.
        place = (inputs.data_ptr(), tuple(inputs.shape), inputs.stride(), inputs._version)
        return self._input_keys.setdefault(place, len(self._input_keys))

    def _layer_terms(
        self,
        served: Served,
        module: nn.Module,
        inputs: Tensor,
        grads: Tensor,
        key: int | None,
    ) -> list[tuple[Component, Term]]:
        """Make the terms of one use of a layer by its rule."""
        if served.axes is not None and served.axes.outputs[0]:
            # Positions before examples, as torch's own sequence layers have them.
            inputs = inputs.movedim(served.axes.first_input or 0, 0)
            grads = grads.movedim(served.axes.outputs[0], 0)
        inputs, grads = in_full_precision(module, inputs, grads)
        terms = []
        for use in served.uses:
            assert use.part.make_term is not None
            term = use.part.make_term(use.component, module, inputs, grads)
            if isinstance(term, OuterProducts) and term.inputs.data_ptr() == inputs.data_ptr():
                term = replace(term, input_key=key)
            terms.append((use.component, term))
        return terms

    def _receive(self, served: Served, terms: Sequence[tuple[Component, Term]]) -> None:
        """Keep the terms of one use, and hand on components that are complete."""
        count = self._num_examples
        for component, term in terms:
            rows = term.num_rows
            if rows != count and (count == 0 or rows % count):
                raise UnsupportedLayerError(
                    f"the first axis of a layer's output must hold the {count} examples of the "
                    f"batch. {served.name!r} gives {rows} rows."
                )
            if rows != count:
                # Examples and positions were flattened into one axis; preflight checks the order.
                term = fold_examples(term, count)
            self._received[component.name].append(term)
        for name in {component.name for component, _ in terms}:
            self._arrived[name] += 1
            if self._arrived[name] == self._expected[name]:
                self._emit(name)

    def _emit(self, name: str) -> None:
        """Hand one component, or the heads it has, to the observer."""
        assert self._observe is not None
        terms = self._received.pop(name)
        self._emitted.add(name)
        with torch.no_grad():
            gradient = merge_terms(self._wholes[name], terms)
            if name not in self.layout.heads:
                self._observe(gradient)
            for part in self.layout.heads.get(name, ()):
                self._observe(part.take(gradient))


def _wanting_gradient(output: Tensor) -> Tensor:
    """Return an output that backward will come to."""
    if output.requires_grad:
        return output
    return output + torch.zeros_like(output[:0].sum(), requires_grad=True)


def _overwritten(name: str) -> UnsupportedLayerError:
    """Say that the input of a layer has changed."""
    return UnsupportedLayerError(
        f"the input of a layer must stay as it is until backward. That of {name!r} was "
        "overwritten in place. Make that operation out of place "
        "(`x = x + y` for `x += y`, `inplace=False`)."
    )


def _autocast_now(device: str) -> Callable[[], Any]:
    """Return the context of autocast that this forward runs in, to be entered again."""
    enabled = torch.is_autocast_enabled(device)
    dtype = torch.get_autocast_dtype(device)
    return lambda: torch.autocast(device, dtype=dtype, enabled=enabled)
