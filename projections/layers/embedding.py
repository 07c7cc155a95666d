"""Embedding tables: only the rows that were looked up, never the whole vocabulary.

Letters: ``n`` examples, ``t`` positions, ``o`` features of a row.

A table with no more rows than an example looks up (token types, the relative positions of
T5) is the smaller of the two, and becomes a vector.
"""

from torch import Tensor, nn

from projections.errors import UnsupportedLayerError
from projections.layers.base import Part, batch_positions
from projections.layers.registry import RULES
from projections.per_example import Component, TableRows, Vectors


@RULES.register(nn.Embedding)
def embedding(module: nn.Module, attributes: frozenset[str]) -> list[Part]:
    """Return the table as one part."""
    assert isinstance(module, nn.Embedding)
    if module.scale_grad_by_freq or module.max_norm is not None:
        raise UnsupportedLayerError(
            "an embedding must have `scale_grad_by_freq=False` and `max_norm=None`: with them "
            "the gradient of one example depends on its batch. Got "
            f"scale_grad_by_freq={module.scale_grad_by_freq}, max_norm={module.max_norm}."
        )
    shape = (module.num_embeddings, module.embedding_dim)
    return [Part(("weight",), (shape,), looked_up, kind="table")] if "weight" in attributes else []


@RULES.register(nn.EmbeddingBag)
def embedding_bag(module: nn.Module, attributes: frozenset[str]) -> list[Part]:
    """Refuse a bag, of which only dense gradients could be had."""
    raise UnsupportedLayerError(
        "a table must be looked up by `nn.Embedding`: an `nn.EmbeddingBag` sums its rows before "
        "they can be told apart, and a gradient of the whole table an example is too large. Sum "
        "the rows of an `nn.Embedding`, or leave the layer out with `layers=[...]` or "
        "`requires_grad_(False)`."
    )


def looked_up(
    component: Component, module: nn.Module, inputs: Tensor, output_grads: Tensor
) -> TableRows | Vectors:
    """Return ids and gradients; the padding row gets no gradient, as in torch."""
    assert isinstance(module, nn.Embedding)
    ids, grads = inputs.unsqueeze(-1).flatten(1), batch_positions(output_grads)
    if module.padding_idx is not None:
        grads = grads * (ids != module.padding_idx)[..., None]
    if module.num_embeddings > ids.shape[1]:
        return TableRows(component, ids, grads)
    table = grads.new_zeros(len(ids), module.num_embeddings, module.embedding_dim)
    table.scatter_add_(1, ids[..., None].expand_as(grads), grads)
    return Vectors(component, table.flatten(1))
