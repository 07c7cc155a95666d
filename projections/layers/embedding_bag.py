"""`nn.EmbeddingBag`: rows of a table, summed, averaged or maximised by bag.

Letters: ``b`` bags, ``t`` positions of the longest bag, ``o`` features of a row.
"""

from collections.abc import Sequence
from inspect import signature
from typing import NamedTuple

import torch
from torch import Tensor, nn

from projections.components import Component
from projections.factors import Term
from projections.layers.base import Call, CallRule, Part, Use
from projections.layers.embedding import check_lookups, table_term
from projections.layers.registry import RULES


class _Bags(NamedTuple):
    """Look-ups by bag.

    Args:
        ids: The rows, ``b t``; 0 where there is none.
        there: Where there is one that counts, ``b t``: not padding.
        weights: What each is multiplied by, ``b t``; None for 1.
    """

    ids: Tensor
    there: Tensor
    weights: Tensor | None


def bag_parts(module: nn.Module, attributes: frozenset[str]) -> list[Part]:
    """Return the table as one part."""
    assert isinstance(module, nn.EmbeddingBag)
    check_lookups(module)
    shape = (module.num_embeddings, module.embedding_dim)
    return [Part(("weight",), (shape,), kind="table")] if "weight" in attributes else []


def bag_terms(module: nn.Module, uses: Sequence[Use], call: Call) -> list[tuple[Component, Term]]:
    """Return ids and the gradient of each row, from those of the bags."""
    assert isinstance(module, nn.EmbeddingBag)
    (use,), (grads,) = uses, call.output_grads
    assert grads is not None
    bound = signature(module.forward).bind(*call.args, **call.kwargs)
    bound.apply_defaults()
    bags = _bags(module, *bound.arguments.values())
    grads = grads.to(module.weight.dtype)
    rows = grads[:, None] * _shares(module, bags)
    return [(use.component, table_term(use.component, bags.ids, rows, None))]


RULES.register_call(nn.EmbeddingBag, CallRule(bag_parts, bag_terms))


def _bags(
    module: nn.EmbeddingBag,
    ids: Tensor,
    offsets: Tensor | None,
    per_sample_weights: Tensor | None,
) -> _Bags:
    """Return look-ups with an axis for the bags, however they were given."""
    if ids.dim() == 2:
        there, weights = torch.ones_like(ids, dtype=torch.bool), per_sample_weights
    else:
        assert offsets is not None
        if not module.include_last_offset:
            offsets = torch.cat([offsets, offsets.new_tensor([len(ids)])])
        starts, ends = offsets[:-1], offsets[1:]
        longest = int((ends - starts).max()) if len(starts) else 0
        places = starts[:, None] + torch.arange(longest, device=ids.device)
        there = places < ends[:, None]
        places = places.where(there, 0)
        ids = ids[places].where(there, 0)
        weights = None if per_sample_weights is None else per_sample_weights[places]
    if module.padding_idx is not None:
        there = there & (ids != module.padding_idx)
    return _Bags(ids, there, weights)


def _shares(module: nn.EmbeddingBag, bags: _Bags) -> Tensor:
    """Return the derivative of bags by their rows, ``b t 1``, or ``b t o`` of maxima."""
    there = bags.there[..., None]
    if module.mode == "max" and there.numel():
        rows = module.weight.detach()[bags.ids].masked_fill(~there, -torch.inf)
        largest = (rows == rows.amax(1, keepdim=True)) & there
        return (largest & (largest.cumsum(1) == 1)).to(rows.dtype)
    shares = there.to(module.weight.dtype)
    if module.mode == "mean":
        return shares / shares.sum(1, keepdim=True).clamp(min=1)
    return shares if bags.weights is None else shares * bags.weights[..., None].to(shares.dtype)
