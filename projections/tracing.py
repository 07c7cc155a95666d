"""Where the examples are: found by running a model on a few of them, and on each twice.

What is twice as long on one axis has the examples there; what stays as it is, such as
positions looked up once for the whole batch, knows no examples. Layers whose output knows
none are handed to the module around them that does, which is then replayed.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import keystr, tree_flatten, tree_flatten_with_path

from projections.errors import UnsupportedLayerError
from projections.layers import Use
from projections.layout import Layout, Served
from projections.replay import Axes, Replay, SharedLayer, floating_tensors, replay_parts

Shape = tuple[int, ...]


@dataclass
class _Call:
    """The shapes of one call of a module.

    Args:
        module: Which.
        callers: Numbers of the calls that it was made in, outermost first.
        inputs: Shapes of the tensors among the arguments.
        outputs: Shapes of the floating-point tensors that came out; empty until then.
    """

    module: nn.Module
    callers: tuple[int, ...]
    inputs: dict[str, Shape]
    outputs: list[Shape] = field(default_factory=list)


@dataclass(frozen=True)
class _Traced:
    """One call with its axes."""

    module: nn.Module
    callers: tuple[int, ...]
    axes: Axes
    # An output of one row that was made of one row may be repeated for every example.
    repeats: bool


def trace(layout: Layout, model: nn.Module, run: Callable[[int], Any]) -> Layout:
    """Return a layout that knows where the examples are in every call.

    Args:
        layout: The components of the model.
        model: The model, without hooks of a capture.
        run: Runs the model on a batch that holds the same few examples so many times.

    Raises:
        UnsupportedLayerError: A layer's output knows no examples and nothing around it does.
    """
    calls = _compare(_record(model, run, 1), _record(model, run, 2))
    if calls is None:  # the model does other things for other batches
        return layout
    by_module: dict[nn.Module, list[_Traced]] = {}
    for call in calls:
        by_module.setdefault(call.module, []).append(call)
    uses: dict[nn.Module, Served] = {}
    lifted: dict[nn.Module, list[tuple[nn.Module, Served]]] = {}
    for module, served in layout.uses.items():
        own = by_module.get(module, [])
        if _needs_lifting(served, own):
            outer = _outer_module(model, served, own, calls, by_module)
            if outer is not None:
                lifted.setdefault(outer, []).append((module, served))
                continue
        uses[module] = _with_axes(served, own)
    replayed = {
        outer: _lift(model, outer, inner, by_module[outer]) for outer, inner in lifted.items()
    }
    return replace(layout, uses=uses, replayed=replayed)


def _needs_lifting(served: Served, calls: Sequence[_Traced]) -> bool:
    """Tell whether a module's calls do not give one output an example."""
    if not calls:  # what is never called is used by the module around it
        return isinstance(served.terms, Replay)
    return any(not call.repeats and call.axes.outputs[:1] == (None,) for call in calls)


def _outer_module(
    model: nn.Module,
    served: Served,
    calls: Sequence[_Traced],
    everything: Sequence[_Traced],
    by_module: dict[nn.Module, list[_Traced]],
) -> nn.Module | None:
    """Return the innermost module around a layer whose output has the examples."""

    def knows(call: _Traced) -> bool:
        return any(axis is not None for axis in call.axes.outputs)

    found: set[nn.Module] = set()
    for call in calls:
        callers = [everything[number] for number in reversed(call.callers)]
        found.update([c.module for c in callers if knows(c)][:1])
    if not calls:
        name = served.name
        while name and not found:
            name = name.rpartition(".")[0]
            outer = model.get_submodule(name)
            found.update([outer] if any(map(knows, by_module.get(outer, []))) else [])
        if not found:
            return None
    if len(found) != 1 or not isinstance(served.terms, Replay | None):
        raise UnsupportedLayerError(
            "a layer must give one output an example, or be called in one module that does. "
            f"{served.name!r} gives one for the whole batch, in {len(found)} such modules. Give "
            "its input a batch axis, call it in the forward of the model, or leave it out with "
            "`layers=[...]` or `requires_grad_(False)`."
        )
    return found.pop()


def _lift(
    model: nn.Module,
    outer: nn.Module,
    inner: Sequence[tuple[nn.Module, Served]],
    calls: Sequence[_Traced],
) -> Served:
    """Return the replay of a module for the sake of layers inside it."""
    name = _name_in(model, outer)
    uses: list[Use] = []
    shared: list[SharedLayer] = []
    for module, served in inner:
        if not isinstance(served.terms, Replay):
            shared.append(SharedLayer(served.name, module, served.uses, served.looks_up))
            uses += served.uses
            continue
        prefix = f"{_name_in(outer, module)}."
        for use in served.uses:
            attribute = use.part.attributes[0]
            (part,) = replay_parts({attribute: module.get_parameter(attribute)}, prefix=prefix)
            uses.append(Use(use.component, part))
    replay = Replay(name, shared=tuple(shared))
    return _with_axes(Served(name, tuple(uses), replay), calls)


def _with_axes(served: Served, calls: Sequence[_Traced]) -> Served:
    """Return what a module serves with the axes of its calls, if they are all the same."""
    found = {call.axes for call in calls}
    if len(found) != 1 or served.looks_up:
        return served
    (axes,) = found
    terms = served.terms
    if isinstance(terms, Replay):
        terms = replace(terms, axes=axes)
    return replace(served, axes=axes, terms=terms)


def _name_in(model: nn.Module, module: nn.Module) -> str:
    """Return the name of a module inside another."""
    return next(name for name, found in model.named_modules() if found is module)


def _record(model: nn.Module, run: Callable[[int], Any], count: int) -> list[_Call]:
    """Return the calls of one forward pass, in the order in which they begin."""
    calls: list[_Call] = []
    active: list[int] = []

    def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        leaves = tree_flatten_with_path((args, kwargs))[0]
        shapes = {keystr(p): tuple(leaf.shape) for p, leaf in leaves if isinstance(leaf, Tensor)}
        calls.append(_Call(module, tuple(active), shapes))
        active.append(len(calls) - 1)

    def leave(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        leaves = tree_flatten(output)[0]
        calls[active.pop()].outputs = [tuple(leaves[p].shape) for p in floating_tensors(leaves)]

    with _hooks(model, enter, leave), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the pass itself will say it again
        run(count)
    return calls


@contextmanager
def _hooks(
    model: nn.Module, enter: Callable[..., None], leave: Callable[..., None]
) -> Iterator[None]:
    """Watch every call of every module."""
    handles = []
    try:
        for module in model.modules():
            handles.append(module.register_forward_pre_hook(enter, with_kwargs=True))
            handles.append(module.register_forward_hook(leave))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _compare(once: Sequence[_Call], twice: Sequence[_Call]) -> list[_Traced] | None:
    """Return the axes of each call, or None if the two runs made different calls."""
    traced = []
    if len(once) != len(twice):
        return None
    for single, double in zip(once, twice, strict=True):
        alike = (
            single.module is double.module
            and single.inputs.keys() == double.inputs.keys()
            and len(single.outputs) == len(double.outputs)
        )
        if not alike:
            return None
        axes = Axes(
            tuple((p, _axis(shape, double.inputs[p])) for p, shape in single.inputs.items()),
            tuple(map(_axis, single.outputs, double.outputs)),
        )
        firsts = [*list(double.inputs.values())[:1], *double.outputs[:1]]
        one_row = len(firsts) == 2 and all(shape[:1] == (1,) for shape in firsts)
        repeats = axes.outputs[:1] == (None,) and one_row
        traced.append(_Traced(single.module, single.callers, axes, repeats))
    return traced


def _axis(one: Shape, two: Shape) -> int | None:
    """Return the axis that is twice as long, or None."""
    if len(one) != len(two):
        return None
    longer = [axis for axis, (a, b) in enumerate(zip(one, two, strict=True)) if b == 2 * a and a]
    return longer[0] if longer else None
