"""`nn.MultiheadAttention`, whose weights are used without their layers being called.

Letters: ``n`` examples, ``t`` positions, ``e`` features.

The projections of query, key and value are three linear maps with one weight or with
three, and the output projection is a fourth. Their output gradients are had by running the
attention between them again, with projections that are the identity, so that masks,
dropped weights and added keys mean what they mean to torch.
"""

from collections.abc import Sequence
from inspect import signature
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from projections.components import Component
from projections.errors import UnsupportedLayerError
from projections.factors import OuterProducts, Term, Vectors
from projections.layers.base import Call, CallRule, Part, Use
from projections.layers.registry import RULES

PROJECTIONS = ("q_proj", "k_proj", "v_proj")


class _Captured(NamedTuple):
    """What the maps of one attention read and the gradients of what they gave."""

    inputs: list[Tensor]  # of query, key and value, ``n t e``
    grads: list[Tensor]
    added: list[Tensor]  # gradients of the added key and value, ``n e``; may be none
    mixed: Tensor  # what the output projection reads
    output: Tensor  # gradient of what it gives


def attention_parts(module: nn.Module, attributes: frozenset[str]) -> list[Part]:
    """Return the three projections, the output projection and the added key and value."""
    assert isinstance(module, nn.MultiheadAttention)
    size, given = module.embed_dim, attributes
    parts = []
    bias_with_weight = {"in_proj_weight", "in_proj_bias"} <= given
    if bias_with_weight:
        shapes = ((3 * size, size), (3 * size,))
        names = ("in_proj_weight", "in_proj_bias")
        parts.append(Part(names, shapes, num_groups=3, label="in_proj"))
    elif "in_proj_weight" in given:
        shape = ((3 * size, size),)
        parts.append(Part(("in_proj_weight",), shape, num_groups=3, label="in_proj"))
    widths = (module.embed_dim, module.kdim, module.vdim)
    for name, width in zip(PROJECTIONS, widths, strict=True):
        if f"{name}_weight" in given:
            parts.append(Part((f"{name}_weight",), ((size, width),), label=name))
    if "in_proj_bias" in given and not bias_with_weight:
        parts.append(Part(("in_proj_bias",), ((3 * size,),), kind="vector"))
    parts += [
        Part((name,), ((size,),), kind="vector") for name in ("bias_k", "bias_v") if name in given
    ]
    weight, bias = "out_proj.weight" in given, "out_proj.bias" in given
    if weight:
        names, shapes = ("out_proj.weight",), ((size, size),)
        if bias:
            names, shapes = (*names, "out_proj.bias"), (*shapes, (size,))
        parts.append(Part(names, shapes))
    elif bias:
        parts.append(Part(("out_proj.bias",), ((size,),), kind="vector"))
    return parts


def attention_terms(
    module: nn.Module, uses: Sequence[Use], call: Call
) -> list[tuple[Component, Term]]:
    """Return the factors of every projection from one call."""
    assert isinstance(module, nn.MultiheadAttention)
    captured = _capture(module, call)
    return [(use.component, _term(use, captured)) for use in uses]


RULES.register_call(nn.MultiheadAttention, CallRule(attention_parts, attention_terms))


def _term(use: Use, captured: _Captured) -> Term:
    """Return the term of one component."""
    component, attribute = use.component, use.part.attributes[0]
    if attribute == "in_proj_weight":
        return OuterProducts(component, _stacked(captured.inputs), _stacked(captured.grads))
    for place, name in enumerate(PROJECTIONS):
        if attribute == f"{name}_weight":
            return OuterProducts(component, captured.inputs[place], captured.grads[place])
    if attribute == "in_proj_bias":
        return Vectors(component, torch.cat([grad.sum(1) for grad in captured.grads], 1))
    if attribute in ("bias_k", "bias_v"):
        return Vectors(component, captured.added[attribute == "bias_v"])
    if attribute == "out_proj.bias":
        return Vectors(component, captured.output.sum(1))
    return OuterProducts(component, captured.mixed, captured.output)


def _capture(module: nn.MultiheadAttention, call: Call) -> _Captured:
    """Run the attention again between its projections, with gradients."""
    bound = signature(module.forward).bind(*call.args, **call.kwargs)
    bound.apply_defaults()
    given = bound.arguments
    inputs = [given[name] for name in ("query", "key", "value")]
    if inputs[0].dim() != 3:
        raise UnsupportedLayerError(
            "attention must have examples, positions and features. Got a query of shape "
            f"{tuple(inputs[0].shape)}. Call `nn.MultiheadAttention` with a batch axis."
        )
    grad, *weights = call.output_grads
    assert grad is not None
    if not module.batch_first:
        inputs, grad = [x.transpose(0, 1) for x in inputs], grad.transpose(0, 1)
    with torch.enable_grad():
        projected = [x.requires_grad_() for x in _project(module, inputs)]
        mixed, attended = _attend(module, projected, given)
    into_mixed = grad.to(mixed.dtype) @ module.out_proj.weight.to(mixed.dtype)
    outputs, grads = [mixed], [into_mixed]
    if weights and weights[0] is not None and attended is not None:
        outputs, grads = [*outputs, attended], [*grads, weights[0].to(attended.dtype)]
    found = list(torch.autograd.grad(outputs, projected, grads))
    added = []
    if module.bias_k is not None:
        added = [g[:, -1] for g in found[1:]]
        found[1:] = [g[:, :-1] for g in found[1:]]
    dtype = module.out_proj.weight.dtype  # under autocast all of these are shorter
    return _Captured(
        inputs=[x.to(dtype) for x in inputs],
        grads=[g.to(dtype) for g in found],
        added=[g.to(dtype) for g in added],
        mixed=mixed.detach().to(dtype),
        output=grad.to(dtype),
    )


def _project(module: nn.MultiheadAttention, inputs: Sequence[Tensor]) -> list[Tensor]:
    """Return query, key and value, the latter two with the added position if there is one."""
    if module.in_proj_weight is not None:
        weights = list(module.in_proj_weight.detach().chunk(3))
    else:
        weights = [getattr(module, f"{name}_weight").detach() for name in PROJECTIONS]
    bias = module.in_proj_bias
    biases = [None] * 3 if bias is None else list(bias.detach().chunk(3))
    rows = [functional.linear(*triple) for triple in zip(inputs, weights, biases, strict=True)]
    for place, extra in ((1, module.bias_k), (2, module.bias_v)):
        if extra is not None:
            last = extra.detach().to(rows[place].dtype).expand(len(rows[place]), 1, -1)
            rows[place] = torch.cat([rows[place], last], 1)
    return rows


def _attend(
    module: nn.MultiheadAttention, projected: Sequence[Tensor], given: dict[str, Any]
) -> tuple[Tensor, Tensor | None]:
    """Return what the output projection reads, ``n t e``, and the attention weights."""
    identity = torch.eye(module.embed_dim, dtype=projected[0].dtype, device=projected[0].device)
    masks = [given["attn_mask"], given["key_padding_mask"]]
    if module.bias_k is not None:
        masks = [None if mask is None else functional.pad(mask, (0, 1)) for mask in masks]
    query, key, value = (x.transpose(0, 1) for x in projected)
    mixed, attended = functional.multi_head_attention_forward(
        query,
        key,
        value,
        embed_dim_to_check=module.embed_dim,
        num_heads=module.num_heads,
        in_proj_weight=None,
        in_proj_bias=None,
        bias_k=None,
        bias_v=None,
        add_zero_attn=module.add_zero_attn,
        dropout_p=0.0,
        out_proj_weight=identity,
        out_proj_bias=None,
        training=False,
        key_padding_mask=masks[1],
        need_weights=given["need_weights"],
        attn_mask=masks[0],
        use_separate_proj_weight=True,
        q_proj_weight=identity,
        k_proj_weight=identity,
        v_proj_weight=identity,
        average_attn_weights=given["average_attn_weights"],
        is_causal=given["is_causal"],
    )
    return mixed.transpose(0, 1), attended


def _stacked(rows: Sequence[Tensor]) -> Tensor:
    """Return ``n t e`` of each projection as ``n 3 t e``, zeros behind the shorter ones."""
    first = rows[0]
    if (
        all(
            x is first or (x.data_ptr(), x.stride()) == (first.data_ptr(), first.stride())
            for x in rows
        )
        and len({x.shape for x in rows}) == 1
    ):
        return first.unsqueeze(1).expand(-1, 3, -1, -1)
    longest = max(x.shape[1] for x in rows)
    return torch.stack([functional.pad(x, (0, 0, 0, longest - x.shape[1])) for x in rows], 1)
