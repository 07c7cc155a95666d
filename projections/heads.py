"""Attention heads as components of their own.

Letters: ``n`` examples, ``t`` positions, ``i`` inputs, ``o`` outputs, ``r`` groups.

Query, key and value are taken apart on their output side, where each head has its rows of
the weight and its entries of the bias; the output projection on its input side, where each
head has its columns, and the bias belongs to no head and is a component by itself.
"""

from dataclasses import dataclass
from typing import Any

from torch import nn

from projections.checks import check_one_of
from projections.components import Component, Parameter
from projections.factors import OuterProducts, Term, Vectors
from projections.per_example import Gradient

FUSED = ("c_attn", "qkv_proj", "query_key_value", "in_proj")
SEPARATE = {
    **dict.fromkeys(("q_proj", "query", "q"), "q"),
    **dict.fromkeys(("k_proj", "key", "k"), "k"),
    **dict.fromkeys(("v_proj", "value", "v"), "v"),
}
OUTPUTS = ("o_proj", "out_proj", "o", "attn.c_proj", "attention.output.dense", "attention.dense")
INTERLEAVED = ("gpt_neox", "bloom")  # query, key and value of one head side by side


@dataclass(frozen=True, kw_only=True)
class HeadSplit:
    """How the linear layers of one name are taken apart.

    Args:
        layers: Pattern of component names, such as ``"*.attn.c_attn"``.
        slots: Names of the heads in the order in which they lie along the axis, all of one
            width: ``("q,0", "q,1", "k,0", ...)``.
        side: ``"output"`` for what makes queries, keys and values, ``"input"`` for the
            projection of the heads' results.

    Example:
        >>> HeadSplit(layers="*.c_attn", slots=head_slots(q=2, k=1, v=1)).slots
        ('q,0', 'q,1', 'k,0', 'v,0')
    """

    layers: str
    slots: tuple[str, ...]
    side: str = "output"

    def __post_init__(self) -> None:
        """Check the arguments."""
        check_one_of("side", self.side, ("output", "input"))
        if not self.slots or len(set(self.slots)) < len(self.slots):
            raise ValueError(f"`slots` must be different names, at least one. Got {self.slots}.")


@dataclass(frozen=True)
class HeadPart:
    """One head of a component, or the bias that belongs to none.

    Args:
        component: The head, as observers see it.
        side: On which side the component was taken apart.
        start: Its first entry along that side; None for the bias.
        width: Number of its entries.
    """

    component: Component
    side: str
    start: int | None = None
    width: int = 0

    def take(self, gradient: Gradient) -> Gradient:
        """Return this head's part of the gradient of the whole component."""
        return Gradient(self.component, tuple(self._take_term(term) for term in gradient.terms))

    def _take_term(self, term: Term) -> Term:
        """Return this head's part of one term."""
        assert isinstance(term, OuterProducts)
        if self.start is None:
            return Vectors(self.component, term.output_grads.sum(-2).flatten(1))
        inputs, grads = term.inputs, term.output_grads
        if self.side == "input":
            inputs = inputs[..., self.start : self.start + self.width]
            return OuterProducts(self.component, inputs, grads)
        first = self.start
        if inputs.dim() == 4:
            group, first = divmod(self.start, grads.shape[-1])
            inputs, grads = inputs[:, group], grads[:, group]
        grads = grads[..., first : first + self.width]
        return OuterProducts(self.component, inputs, grads, term.input_key)


def head_slots(**counts: int) -> tuple[str, ...]:
    """Return the slots of heads that lie one kind after the other.

    Args:
        counts: Number of heads of each kind; with grouped queries there are fewer keys.

    Example:
        >>> head_slots(q=2, kv=1)
        ('q,0', 'q,1', 'kv,0')
    """
    return tuple(f"{kind},{head}" for kind, count in counts.items() for head in range(count))


def split_component(
    component: Component, split: HeadSplit, num_groups: int = 1
) -> tuple[HeadPart, ...]:
    """Return the heads of a linear layer.

    Args:
        component: Its weight, and the bias if there is one.
        split: How it is taken apart.
        num_groups: Number of linear maps that it is.

    Raises:
        ValueError: It is not linear, or its width is not a multiple of the heads.
    """
    name, slots = component.name, split.slots
    weight, *bias = component.parameters
    axis = 0 if split.side == "output" else 1
    size = weight.shape[axis]
    group = size // num_groups if axis == 0 else size
    width = size // len(slots)
    fits = width > 0 and size % len(slots) == 0 and group % width == 0
    if component.kind != "linear" or not fits or (axis == 1 and num_groups > 1):
        raise ValueError(
            f"a layer that is taken apart by head must be linear, and its {split.side} side a "
            f"multiple of its heads. {name!r} is {component.kind}, {size} wide in {num_groups} "
            f"group(s), and there are {len(slots)} heads. Change `heads`."
        )
    parts = []
    for place, slot in enumerate(slots):
        shapes = [(width, weight.shape[1])] if axis == 0 else [(weight.shape[0], width)]
        whole = [weight]
        if bias and axis == 0:
            shapes, whole = [*shapes, (width,)], [weight, *bias]
        parameters = tuple(
            Parameter(f"{p.name}[{slot}]", shape) for p, shape in zip(whole, shapes, strict=True)
        )
        head = Component(f"{name}[{slot}]", parameters)
        parts.append(HeadPart(head, split.side, place * width, width))
    if bias and axis == 1:
        parts.append(HeadPart(Component(bias[0].name, tuple(bias), "vector"), split.side))
    return tuple(parts)


def find_heads(model: nn.Module) -> tuple[HeadSplit, ...]:
    """Return how the attention layers of a model are taken apart, as far as that is known.

    Layers are known by the names that Hugging Face's models give them, and numbers of
    heads from the model's configuration; `nn.MultiheadAttention` knows its own.

    Args:
        model: The model.

    Raises:
        ValueError: There is no attention layer whose heads are known. Write `HeadSplit`s.

    Example:
        >>> [split.layers for split in find_heads(nn.MultiheadAttention(4, 2))]
        ['in_proj', 'out_proj']
    """
    splits: list[HeadSplit] = []
    config = getattr(model, "config", None)
    heads = getattr(config, "num_attention_heads", None)
    for name, module in model.named_modules():
        if isinstance(module, nn.MultiheadAttention):
            splits += _torch_attention(name, module)
        elif isinstance(heads, int) and isinstance(getattr(module, "weight", None), nn.Parameter):
            slots, side = _known_slots(name, config)
            if slots:
                splits.append(HeadSplit(layers=name, slots=slots, side=side))
    if not splits:
        raise ValueError(
            "the model must have attention layers of known names and a configuration with "
            f"`num_attention_heads`. {type(model).__name__} has none. Give `heads` as `HeadSplit`s."
        )
    return tuple(splits)


def _torch_attention(name: str, module: nn.MultiheadAttention) -> list[HeadSplit]:
    """Return how torch's own attention is taken apart."""
    heads, dot = module.num_heads, f"{name}." if name else ""
    if module.in_proj_weight is not None:
        slots = head_slots(q=heads, k=heads, v=heads)
        splits = [HeadSplit(layers=f"{dot}in_proj", slots=slots)]
    else:
        splits = [
            HeadSplit(layers=f"{dot}{kind}_proj", slots=head_slots(**{kind: heads}))
            for kind in ("q", "k", "v")
        ]
    slots = head_slots(o=heads)
    return [*splits, HeadSplit(layers=f"{dot}out_proj", slots=slots, side="input")]


def _known_slots(name: str, config: Any) -> tuple[tuple[str, ...], str]:
    """Return the heads of a layer with this name, none if it is no projection of attention."""
    heads = config.num_attention_heads
    shared = getattr(config, "num_key_value_heads", None) or heads
    if getattr(config, "multi_query", False):
        shared = 1
    last = name.rpartition(".")[2]
    if last in SEPARATE and _in_attention(name):
        kind = SEPARATE[last]
        return head_slots(**{kind: heads if kind == "q" else shared}), "output"
    if last in FUSED:
        if config.model_type in INTERLEAVED:
            kinds = ("q", "k", "v")
            return tuple(f"{kind},{head}" for head in range(heads) for kind in kinds), "output"
        return head_slots(q=heads, k=shared, v=shared), "output"
    if any(name == known or name.endswith(f".{known}") for known in OUTPUTS):
        return head_slots(o=heads), "input"
    return (), "output"


def _in_attention(name: str) -> bool:
    """Tell whether a layer is inside a module that is called attention."""
    return any("att" in part.lower() for part in name.split(".")[:-1])
