"""Embedding tables: only the rows that were looked up, never the whole vocabulary.

Letters: ``n`` examples, ``t`` positions, ``o`` features of a row.

A table with no more rows than an example looks up (token types, the relative positions of
T5) is the smaller of the two, and becomes a vector.
"""

from jaxtyping import Float, Int
from torch import Tensor, nn

from projections.components import Component
from projections.errors import UnsupportedLayerError
from projections.factors import TableRows, Vectors
from projections.layers.base import Part, batch_positions
from projections.layers.registry import RULES


@RULES.register(nn.Embedding)
def embedding(module: nn.Module, attributes: frozenset[str]) -> list[Part]:
    """Return the table as one part."""
    assert isinstance(module, nn.Embedding)
    check_lookups(module)
    shape = (module.num_embeddings, module.embedding_dim)
    return [Part(("weight",), (shape,), looked_up, kind="table")] if "weight" in attributes else []


def check_lookups(module: nn.Embedding | nn.EmbeddingBag) -> None:
    """Refuse look-ups whose gradient is that of the whole batch.

    Raises:
        UnsupportedLayerError: Ids are counted over the batch, or rows are rescaled.
    """
    if module.scale_grad_by_freq or module.max_norm is not None:
        raise UnsupportedLayerError(
            "an embedding must have `scale_grad_by_freq=False` and `max_norm=None`: with them "
            "the gradient of one example depends on its batch. Got "
            f"scale_grad_by_freq={module.scale_grad_by_freq}, max_norm={module.max_norm}."
        )


def looked_up(
    component: Component, module: nn.Module, inputs: Tensor, output_grads: Tensor
) -> TableRows | Vectors:
    """Return ids and gradients of the rows that an embedding gave."""
    assert isinstance(module, nn.Embedding)
    ids, grads = inputs.unsqueeze(-1).flatten(1), batch_positions(output_grads)
    return table_term(component, ids, grads, module.padding_idx)


def table_term(
    component: Component,
    ids: Int[Tensor, "n t"],
    grads: Float[Tensor, "n t o"],
    padding: int | None,
) -> TableRows | Vectors:
    """Return the gradient of a table.

    Args:
        component: The table.
        ids: The rows that were looked up.
        grads: Gradient with respect to each of them.
        padding: A row that gets no gradient, as in torch.
    """
    if padding is not None:
        grads = grads * (ids != padding)[..., None]
    num_rows, width = component.parameters[0].shape
    if num_rows > ids.shape[1]:
        return TableRows(component, ids, grads)
    table = grads.new_zeros(len(ids), num_rows, width)
    table.scatter_add_(1, ids[..., None].expand_as(grads), grads)
    return Vectors(component, table.flatten(1))
