"""LoRA of an embedding, as PEFT has it: ``y = W[id] + s B A[:, id]``.

Letters: ``n`` examples, ``t`` positions, ``r`` rank, ``o`` features of a row.

The first factor is a table of ``r`` numbers an id and the second a linear map, so neither
gradient is ever as large as the vocabulary. PEFT is not imported: a module is known by the
parameters it has.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from projections.components import Component
from projections.factors import OuterProducts, Term
from projections.layers.base import Call, CallRule, Part, Use, batch_positions, overrides
from projections.layers.embedding import check_lookups, table_term
from projections.layers.registry import RULES

FIRST, SECOND = "lora_embedding_A", "lora_embedding_B"


def is_lora_embedding(module: nn.Module) -> bool:
    """Tell whether a module is a table with plain low-rank changes: no DoRA, not split."""
    first, base = getattr(module, FIRST, None), getattr(module, "base_layer", None)
    return (
        isinstance(first, nn.ParameterDict)
        and len(first) > 0
        and isinstance(base, nn.Embedding)
        and (not overrides(base, nn.Embedding) or hasattr(base, "embed_scale"))
        and not getattr(module, "lora_variant", None)
        and getattr(module, "tp_layer", None) is None
    )


def lora_parts(module: nn.Module, attributes: frozenset[str]) -> list[Part]:
    """Return both factors of every adapter, and the table itself if it is trained."""
    base = _base(module)
    check_lookups(base)
    parts = []
    for name in sorted(attributes):
        kind, _, adapter = name.partition(".")
        if kind == FIRST:
            rank, num_ids = getattr(module, FIRST)[adapter].shape
            parts.append(Part((name,), ((num_ids, rank),), kind="table", label=adapter))
        elif kind == SECOND:
            shape = tuple(getattr(module, SECOND)[adapter].shape)
            parts.append(Part((name,), (shape,), label=adapter))
        else:
            parts.append(Part((name,), ((base.num_embeddings, base.embedding_dim),), kind="table"))
    return parts


def lora_terms(module: nn.Module, uses: Sequence[Use], call: Call) -> list[tuple[Component, Term]]:
    """Return the look-ups of the tables and the factors of the maps, from one call."""
    (grad,) = call.output_grads
    assert grad is not None
    ids = call.args[0] if call.args else call.kwargs["x"]
    ids = ids.expand(grad.shape[:-1]).unsqueeze(-1).flatten(1)
    grads = batch_positions(grad.to(_base(module).weight.dtype))
    grads = grads * getattr(_base(module), "embed_scale", 1.0)
    return [(use.component, _term(module, use, ids, grads)) for use in uses]


RULES.register_call_when(is_lora_embedding, CallRule(lora_parts, lora_terms))


def _base(module: nn.Module) -> Any:
    """Return the embedding that is changed."""
    return module.base_layer


def _term(module: nn.Module, use: Use, ids: Tensor, grads: Tensor) -> Term:
    """Return the term of one parameter."""
    kind, _, adapter = use.part.attributes[0].partition(".")
    padding = _base(module).padding_idx
    if kind not in (FIRST, SECOND):
        return table_term(use.component, ids, grads, padding)
    first, second = (getattr(module, which)[adapter].detach() for which in (FIRST, SECOND))
    grads = (grads * _scale(module, adapter)).to(first.dtype)
    if kind == FIRST:
        return table_term(use.component, ids, grads @ second, padding)
    with torch.no_grad():
        rows = functional.embedding(ids, first.T)
    return OuterProducts(use.component, rows, grads)


def _scale(module: Any, adapter: str) -> float:
    """Return what an adapter's change is multiplied by; 0 if it has no part in the forward."""
    active = not module.disable_adapters and not module.merged
    return module.scaling[adapter] if active and adapter in module.active_adapters else 0.0
