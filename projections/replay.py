"""Gradients of what no layer rule knows: the module is run again, example by example.

Letters: ``n`` examples, ``k`` rows of one example in a tensor.

A replay takes what went into a module and the gradients of what came out, and has
`torch.func` compute the vector-Jacobian product of each example: all examples at once by
``vmap`` where the module allows it, and one after the other where it does not (`nn.LSTM`,
control flow that looks at values). Gradients are formed: ``n`` times the parameters in
memory.

Layers inside the module whose output knows no examples (positions looked up once for the
whole batch) get their gradients from the same replay: a zero is added to their output for
each example, and the gradient of that zero is the output gradient their rule asks for.

Not handled: modules that draw random numbers or change state in their forward.
"""

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vjp, vmap
from torch.utils._pytree import keystr, tree_flatten, tree_flatten_with_path, tree_unflatten
from torch.utils.hooks import RemovableHandle

from projections.components import Component
from projections.errors import UnsupportedLayerError
from projections.factors import Term, Vectors
from projections.layers import Call, Part, Use, in_full_precision
from projections.lookups import watch_lookups

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Axes:
    """On which axis the examples are, for each tensor of a call in order; None for nowhere.

    Args:
        inputs: Of the tensors among the arguments, each with its place there.
        outputs: Of the floating-point tensors that come out.
    """

    inputs: tuple[tuple[str, int | None], ...]
    outputs: tuple[int | None, ...]

    @property
    def first_input(self) -> int | None:
        """The axis of the first tensor among the arguments."""
        return self.inputs[0][1] if self.inputs else None


@dataclass(frozen=True)
class SharedLayer:
    """A layer inside a replayed module, called once for all examples.

    Args:
        name: Its name, for messages.
        module: The layer.
        uses: The components that it serves.
        looks_up: Whether the look-ups inside it are what counts.
    """

    name: str
    module: nn.Module
    uses: tuple[Use, ...]
    looks_up: bool = False


@dataclass
class Replay:
    """Makes the terms of a module's parameters, and of layers in it that know no examples.

    Args:
        name: Name of the module, for messages.
        axes: Where the examples are; by the length of the first axis where not known.
        shared: The layers inside that are called once for all examples.
    """

    name: str
    axes: Axes | None = None
    shared: tuple[SharedLayer, ...] = ()
    _allows_vmap: bool = field(default=True, init=False)

    def __call__(
        self, module: nn.Module, uses: Sequence[Use], call: Call
    ) -> list[tuple[Component, Term]]:
        """Return the terms of one call."""
        own = [use for use in uses if use.part.kind == "replayed"]
        if call.num_examples == 0:
            like = next(module.parameters()).detach()
            return [
                (u.component, Vectors(u.component, like.new_zeros(0, u.component.size)))
                for u in own
            ]
        run = _Run(self, module, [use.part.attributes[0] for use in own], call)
        # Recurrent kernels keep what their backward needs only where gradients are on.
        with torch.enable_grad():
            grads, shifts, seen = self._all_examples(run)
        terms: list[tuple[Component, Term]] = []
        for use in own:
            values = grads[use.part.attributes[0]].reshape(call.num_examples, -1)
            terms.append((use.component, Vectors(use.component, values)))
        for (layer, inputs), shift in zip(seen, shifts, strict=True):
            inputs, shift = in_full_precision(layer.module, inputs, shift)
            repeated = inputs.expand(call.num_examples, *inputs.shape)
            for use in layer.uses:
                assert use.part.make_term is not None
                term = use.part.make_term(use.component, layer.module, repeated, shift)
                terms.append((use.component, term))
        return terms

    def _all_examples(
        self, run: "_Run"
    ) -> tuple[dict[str, Tensor], list[Tensor], list[tuple[SharedLayer, Tensor]]]:
        """Return gradients of parameters and of shared outputs, examples first."""
        try:
            seen, zeros = run.look_at_shared()
            if self._allows_vmap:
                try:
                    with warnings.catch_warnings():
                        # Without a batching rule vmap warns and loops; so it may as well not.
                        warnings.simplefilter("error")
                        grads, shifts = vmap(lambda i, g: run.one(i, g, zeros))(*run.pieces)
                    return grads, shifts, seen
                except torch.OutOfMemoryError:
                    raise
                except Exception as error:
                    logger.warning(
                        "%r is run again one example at a time, which is slow: vmap says %s",
                        self.name or "(the model itself)",
                        error,
                    )
                    self._allows_vmap = False
            found = [
                run.one([x[e] for x in run.pieces[0]], [x[e] for x in run.pieces[1]], zeros)
                for e in range(run.call.num_examples)
            ]
        except Exception as error:
            raise UnsupportedLayerError(
                "a layer without a rule must run again, one example at a time. "
                f"{self.name or '(the model itself)'!r} ({type(run.module).__name__}) does not: "
                f"{error}. Leave it out with `layers=[...]` or `requires_grad_(False)`, or "
                "register a rule for its class in `projections.layers.RULES`."
            ) from error
        grads = {key: torch.stack([g[key] for g, _ in found]) for key in found[0][0]}
        shifts = [torch.stack(shift) for shift in zip(*(s for _, s in found), strict=True)]
        return grads, shifts, seen


def replay_parts(own: Mapping[str, nn.Parameter], *, prefix: str = "") -> list[Part]:
    """Return a part for each parameter of a module that is to be replayed.

    Args:
        own: The tracked parameters by attribute.
        prefix: Put before the attributes, where an outer module is replayed.
    """
    return [
        Part((f"{prefix}{attribute}",), ((parameter.numel(),),), kind="replayed")
        for attribute, parameter in own.items()
    ]


def first_tensor(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor | None:
    """Return what a layer reads: its first argument, by position or by name."""
    value = args[0] if args else next(iter(kwargs.values()), None)
    return value if isinstance(value, Tensor) else None


def floating_tensors(leaves: Sequence[Any]) -> list[int]:
    """Return the places of floating-point tensors, which are those that have gradients."""
    return [
        place
        for place, leaf in enumerate(leaves)
        if isinstance(leaf, Tensor) and leaf.is_floating_point()
    ]


def _has_examples(tensor: Tensor, axis: int, num_examples: int) -> bool:
    """Tell whether an axis is long enough for the examples."""
    size = tensor.shape[axis] if tensor.dim() > axis else 0
    return size > 0 and size % num_examples == 0


class _Run:
    """What the replays of all examples of one call share."""

    def __init__(
        self, replay: Replay, module: nn.Module, attributes: Sequence[str], call: Call
    ) -> None:
        """Cut inputs and output gradients into examples."""
        self.replay, self.module, self.call = replay, module, call
        self.parameters = {name: module.get_parameter(name).detach() for name in attributes}
        named, self.spec = tree_flatten_with_path((call.args, dict(call.kwargs)))
        self.leaves = [leaf for _, leaf in named]
        axes = replay.axes
        known = dict(axes.inputs) if axes is not None else {}
        self.places: list[tuple[int, int]] = []
        for place, (path, leaf) in enumerate(named):
            if isinstance(leaf, Tensor):
                axis = known.get(keystr(path), 0)
                # A mask may have the examples in one batch, and one row for all in another.
                if axis is not None and _has_examples(leaf, axis, call.num_examples):
                    self.places.append((place, axis))
        self.wanted = [
            (number, (axes.outputs[number] if axes is not None else None) or 0)
            for number, grad in enumerate(call.output_grads)
            if grad is not None
        ]

    @property
    def pieces(self) -> tuple[list[Tensor], list[Tensor]]:
        """Inputs and output gradients, the examples on an axis of their own in front."""
        count = self.call.num_examples
        grads = self.call.output_grads
        return (
            [_by_example(self.leaves[place], axis, count) for place, axis in self.places],
            [_by_example(grad, a, count) for p, a in self.wanted if (grad := grads[p]) is not None],
        )

    def one(
        self, inputs: Sequence[Tensor], grads: Sequence[Tensor], zeros: Sequence[Tensor]
    ) -> tuple[dict[str, Tensor], list[Tensor]]:
        """Return the gradients of parameters and of added zeros for one example."""

        def outputs(parameters: dict[str, Tensor], shifts: list[Tensor]) -> list[Tensor]:
            shift = iter(shifts)
            with self._watching(lambda layer, args, output: output + next(shift)):
                leaves = self._call(inputs, parameters)
            floating = floating_tensors(leaves)
            return [leaves[floating[number]] for number, _ in self.wanted]

        found, back, *_ = vjp(outputs, self.parameters, list(zeros))
        cotangents = [
            grad.movedim(0, axis).to(out.dtype)
            for grad, out, (_, axis) in zip(grads, found, self.wanted, strict=True)
        ]
        return back(cotangents)

    def look_at_shared(self) -> tuple[list[tuple[SharedLayer, Tensor]], list[Tensor]]:
        """Return what each call of a shared layer reads, and zeros of the shape it gives."""
        seen: list[tuple[SharedLayer, Tensor]] = []
        zeros: list[Tensor] = []

        def look(layer: SharedLayer, inputs: Tensor, output: Tensor) -> None:
            seen.append((layer, inputs.detach()))
            zeros.append(torch.zeros_like(output))

        if self.replay.shared:
            with torch.no_grad(), self._watching(look):
                self._call([x[0] for x in self.pieces[0]], self.parameters)
        return seen, zeros

    def _call(self, inputs: Sequence[Tensor], parameters: dict[str, Tensor]) -> list[Any]:
        """Run the module on one example; return what came out, flat."""
        leaves = list(self.leaves)
        for (place, axis), piece in zip(self.places, inputs, strict=True):
            leaves[place] = piece.movedim(0, axis)
        args, kwargs = tree_unflatten(leaves, self.spec)
        # Tied parameters are not swapped with these: their other uses are counted elsewhere.
        output = functional_call(self.module, parameters, args, kwargs, tie_weights=False)
        return tree_flatten(output)[0]

    @contextmanager
    def _watching(self, see: Callable[[SharedLayer, Tensor, Tensor], Any]) -> Iterator[None]:
        """Call ``see`` after each call of a shared layer."""

        def hook_of(layer: SharedLayer) -> Callable[..., Any]:
            def hook(module: nn.Module, args: tuple[Any, ...], kwargs: Any, output: Any) -> Any:
                inputs = first_tensor(args, kwargs)
                assert inputs is not None
                return see(layer, inputs, output)

            return hook

        handles: list[RemovableHandle] = []
        for layer in self.replay.shared:
            if layer.looks_up:
                handles += watch_lookups(layer.module, partial(see, layer))
            else:
                hook = layer.module.register_forward_hook(hook_of(layer), with_kwargs=True)
                handles.append(hook)
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def _by_example(tensor: Tensor, axis: int, count: int) -> Tensor:
    """Return ``... n*k ...`` as ``n k ...``."""
    return tensor.movedim(axis, 0).unflatten(0, (count, tensor.shape[axis] // count))
