"""The components of a model: what its trainable parameters make, and which modules serve them.

A component that several modules share is one component; its parts by attention head, where
they are asked for, are components of their own.
"""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor, nn

from projections.checks import matches, name_matches
from projections.components import Component, Parameter
from projections.errors import UnsupportedLayerError
from projections.factors import OuterProducts, Term, Vectors
from projections.heads import HeadPart, HeadSplit, split_component
from projections.layers import RULES, CallTerms, Part, Use
from projections.layers.base import TermMaker, overrides
from projections.layers.rms_norm import is_rms_norm, rms_norm_part
from projections.replay import Axes, Replay, replay_parts


@dataclass(frozen=True)
class Served:
    """What the calls of one module give.

    Args:
        name: Name of the module.
        uses: The components that it serves.
        terms: Makes the terms of all of them from a whole call; None where each part
            makes its own from the first tensor in and the tensor out.
        axes: Where the examples are in what goes in and comes out, once that is known.
        looks_up: Whether it is an embedding whose forward does more, so that the look-ups
            inside are what counts.
    """

    name: str
    uses: tuple[Use, ...]
    terms: CallTerms | None = None
    axes: Axes | None = None
    looks_up: bool = False


@dataclass(frozen=True)
class Layout:
    """The components of a model, in the order of its modules, and who serves them.

    Args:
        components: By name, as observers see them.
        uses: The modules with tracked parameters.
        replayed: Modules that are run again for parameters of modules inside them.
        heads: For each component that is handed on by attention head, its parts.
    """

    components: dict[str, Component]
    uses: dict[nn.Module, Served]
    replayed: dict[nn.Module, Served] = field(default_factory=dict)
    heads: Mapping[str, tuple[HeadPart, ...]] = field(default_factory=dict)

    def num_groups(self, name: str) -> int:
        """Return how many linear maps a component is: the groups of a convolution."""
        groups = [
            use.part.num_groups
            for served in self.uses.values()
            for use in served.uses
            if use.component.name == name
        ]
        return groups[0] if groups else 1  # one head is one map

    @property
    def served(self) -> list[tuple[nn.Module, Served]]:
        """The modules to be watched, and what their calls give."""
        return [*self.uses.items(), *self.replayed.items()]

    @property
    def wholes(self) -> dict[str, Component]:
        """The components by name, those that are handed on by head in one piece."""
        return {use.component.name: use.component for _, s in self.served for use in s.uses}

    @property
    def num_parameters(self) -> int:
        """Number ``d`` of tracked parameters."""
        return sum(component.size for component in self.components.values())


def find_components(
    model: nn.Module,
    layers: str | Sequence[str] | None = None,
    *,
    kinds: Collection[str] | None = None,
    heads: Sequence[HeadSplit] = (),
) -> Layout:
    """Return the components that a model's trainable parameters make.

    Args:
        model: The model; parameters that do not require gradients are left out.
        layers: Patterns such as ``"*.mlp.*"``; a module counts if its name, or the name
            of one of its parameters, matches one of them. Default: all.
        kinds: Kinds of components to keep, of those in `Component`; modules that no rule
            covers are then left out. Default: all.
        heads: Linear layers to be taken apart by attention head, as from `find_heads`.
            ``layers`` may then name single heads.

    Raises:
        UnsupportedLayerError: A trainable layer has no rule and cannot be replayed.
        ValueError: Nothing is left, or a layer cannot be taken apart as asked.

    Example:
        >>> layout = find_components(nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3)))
        >>> list(layout.components), layout.num_parameters
        (['0', '1.weight', '1.bias'], 15)
    """
    patterns = [layers] if isinstance(layers, str) else layers
    matching = _tracked_names(model, patterns)
    names = matching if not heads else _tracked_names(model, _outer_patterns(patterns))
    found = _Components(names, _sharing(model))
    claimed: set[nn.Module] = set()
    for module_name, module in model.named_modules():
        if module not in claimed:
            own = found.own_parameters(module, claimed)
            if own:
                found.add(module_name, module, own, kinds)
    components, uses = found.components, found.final_uses()
    if kinds is not None:
        components = {n: c for n, c in components.items() if c.kind in kinds}
        uses = {
            module: replace(s, uses=tuple(u for u in s.uses if u.component.name in components))
            for module, s in uses.items()
        }
    layout = Layout(components, uses)
    if heads:
        layout = _split_heads(layout, heads, patterns, matching.values(), kinds)
    uses = {module: served for module, served in layout.uses.items() if served.uses}
    layout = replace(layout, uses=uses)
    if not layout.components:
        raise ValueError(
            "the model must have at least one trainable parameter"
            + (f" in a layer that matches {patterns}" if patterns else "")
            + (f" of the kinds {sorted(kinds)}" if kinds else "")
            + ". Got none. Check `requires_grad` and the names in `model.named_modules()`."
        )
    return layout


@dataclass
class _Components:
    """The components found so far.

    Args:
        names: Of the tracked parameters, by their identity.
        sharing: In how many layers with a rule each parameter is. Another module may have
            it too, as heads have the bias of their last layer, and is not replayed for it.
    """

    names: dict[int, str]
    sharing: Counter[int]
    components: dict[str, Component] = field(default_factory=dict)
    uses: dict[nn.Module, Served] = field(default_factory=dict)

    def own_parameters(self, module: nn.Module, claimed: set[nn.Module]) -> dict[str, nn.Parameter]:
        """Return the tracked parameters that a module's own forward uses."""
        rule = RULES.call_rule(module)
        if rule is not None:
            claimed.update(module.modules())
        return {
            attribute: parameter
            for attribute, parameter in module.named_parameters(recurse=rule is not None)
            if id(parameter) in self.names
            and (rule or RULES.knows(module) or id(parameter) not in self.sharing)
        }

    def add(
        self,
        module_name: str,
        module: nn.Module,
        own: Mapping[str, nn.Parameter],
        kinds: Collection[str] | None,
    ) -> None:
        """Add what one module serves, by its rule, or by replaying it."""
        parts, terms = _parts(module_name, module, own)
        if parts is None:
            if kinds is not None and "replayed" not in kinds:
                return
            if isinstance(module, nn.Embedding):
                raise UnsupportedLayerError(
                    "an embedding must have a table and nothing else, or its gradient would be "
                    f"as large as its vocabulary. {module_name!r} ({type(module).__name__}) has "
                    f"the parameters {sorted(own)}. Leave it out with `layers=[...]` or "
                    "`requires_grad_(False)`, or register a rule for its class in "
                    "`projections.layers.RULES`."
                )
            parts, terms = replay_parts(own), Replay(module_name)
        elif terms is None:
            parts = _split_shared(parts, own, self.sharing)
        uses = [self._use(module_name, part, own) for part in parts]
        # Scaled tables, and positions with an offset.
        looks_up = isinstance(module, nn.Embedding) and overrides(module, nn.Embedding)
        self.uses[module] = Served(module_name, tuple(uses), terms, looks_up=looks_up)

    def final_uses(self) -> dict[nn.Module, Served]:
        """Return who serves what, now that all uses of each component are known."""
        return {
            module: replace(
                served,
                uses=tuple(Use(self.components[u.component.name], u.part) for u in served.uses),
            )
            for module, served in self.uses.items()
        }

    def _use(self, module_name: str, part: Part, own: Mapping[str, nn.Parameter]) -> Use:
        """Return the use of one part, its component shared with other modules' if it is."""
        parameters = tuple(
            Parameter(self.names[id(own[attribute])], shape)
            for attribute, shape in zip(part.attributes, part.shapes, strict=True)
        )
        name = first = parameters[0].name
        if part.kind not in ("vector", "replayed"):
            name = first.rpartition(".")[0]
            name = f"{name}.{part.label}".lstrip(".") if part.label else name
        component = self.components.setdefault(name, Component(name, parameters, part.kind))
        if component.kind != part.kind:
            self.components[name] = replace(component, kind="mixed")
        if component.parameters != parameters:
            raise UnsupportedLayerError(
                f"modules that share a weight must use it in the same layout. {name!r} and "
                f"{module_name!r} do not. Freeze one with `requires_grad_(False)`."
            )
        return Use(component, part)


def _tracked_names(model: nn.Module, patterns: Sequence[str] | None) -> dict[int, str]:
    """Return the names of trainable parameters that match, by identity of the parameter."""
    names: dict[int, str] = {}
    matching = set()
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if isinstance(parameter, nn.UninitializedParameter):
            raise UnsupportedLayerError(
                f"every parameter must have a shape. {name!r} is that of a lazy layer before its "
                "first call. Run the model once on a batch."
            )
        if parameter.requires_grad:
            names.setdefault(id(parameter), name)  # a tied parameter has several; the first counts
            if patterns is None or matches(name, patterns):
                matching.add(id(parameter))
    return {key: name for key, name in names.items() if key in matching}


def _sharing(model: nn.Module) -> Counter[int]:
    """Return in how many layers with a rule each parameter is."""
    return Counter(
        id(parameter)
        for module in model.modules()
        if RULES.knows(module)
        for parameter in module.parameters(recurse=False)
    )


def _parts(
    name: str, module: nn.Module, own: Mapping[str, nn.Parameter]
) -> tuple[list[Part] | None, CallTerms | None]:
    """Return the parts that a rule makes of a module, if one does."""
    rule = RULES.call_rule(module)
    try:
        if rule is not None:
            return rule.parts(module, frozenset(own)), rule.terms
        parts = RULES.parts(module, set(own))
    except UnsupportedLayerError as error:
        raise UnsupportedLayerError(f"{error} The layer is {name!r}.") from None
    if parts is None and not RULES.knows(module) and is_rms_norm(module):
        parts = rms_norm_part(module)
    return parts, None


def _split_shared(
    parts: list[Part], own: Mapping[str, nn.Parameter], sharing: Counter[int]
) -> list[Part]:
    """Take weight and bias apart where one of them is shared with another module."""
    split: list[Part] = []
    for part in parts:
        shared = [sharing[id(own[attribute])] > 1 for attribute in part.attributes]
        if len(part.attributes) == 2 and any(shared):
            (weight, bias), (weight_shape, bias_shape) = part.attributes, part.shapes
            split.append(replace(part, attributes=(weight,), shapes=(weight_shape,)))
            split.append(Part((bias,), (bias_shape,), _bias_of(part), kind="vector"))
        else:
            split.append(part)
    return split


def _bias_of(part: Part) -> TermMaker:
    """Return the rule of the bias of a part that was taken apart."""

    def make_term(
        component: Component, module: nn.Module, inputs: Tensor, output_grads: Tensor
    ) -> Term:
        assert part.make_term is not None
        term = part.make_term(component, module, inputs, output_grads)
        assert isinstance(term, OuterProducts)
        return Vectors(component, term.bias_vector.flatten(1))

    return make_term


def _split_heads(
    layout: Layout,
    heads: Sequence[HeadSplit],
    patterns: Sequence[str] | None,
    matching: Collection[str],
    kinds: Collection[str] | None,
) -> Layout:
    """Put the heads of layers in the place of the layers.

    Args:
        layout: The components, also those of which only heads match the patterns.
        heads: How layers are taken apart.
        patterns: What was asked for.
        matching: Names of the parameters that match as a whole.
        kinds: Kinds to keep; a bias that belongs to no head is a vector.
    """
    components: dict[str, Component] = {}
    parts: dict[str, tuple[HeadPart, ...]] = {}
    for name, component in layout.components.items():
        whole = any(parameter.name in matching for parameter in component.parameters)
        split = next((s for s in heads if name_matches(name, [s.layers])), None)
        if split is None and whole:
            components[name] = component
        elif split is not None:
            pieces = split_component(component, split, layout.num_groups(name))
            kept = [
                piece
                for piece in pieces
                if (whole or name_matches(piece.component.name, patterns or ()))
                and (kinds is None or piece.component.kind in kinds)
            ]
            parts[name] = tuple(kept)
            components.update((piece.component.name, piece.component) for piece in kept)
    dropped = set(layout.components) - set(components) - {n for n, kept in parts.items() if kept}
    uses = {
        module: replace(s, uses=tuple(u for u in s.uses if u.component.name not in dropped))
        for module, s in layout.uses.items()
    }
    return replace(layout, components=components, uses=uses, heads=parts)


def _outer_patterns(patterns: Sequence[str] | None) -> Sequence[str] | None:
    """Return patterns of single heads as those of their layers."""
    if patterns is None:
        return None
    return [p.rpartition("[")[0] if p.endswith("]") else p for p in patterns]
