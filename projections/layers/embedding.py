"""Embedding tables: only the rows that were looked up, never the whole vocabulary.

Letters: ``n`` examples, ``t`` positions, ``o`` features of a row.
"""

from torch import Tensor, nn

from projections.errors import UnsupportedLayerError
from projections.layers.base import Part, batch_positions
from projections.layers.registry import RULES
from projections.per_example import Component, TableRows


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


def looked_up(
    component: Component, module: nn.Module, inputs: Tensor, output_grads: Tensor
) -> TableRows:
    """Return ids and gradients; the padding row gets no gradient, as in torch."""
    assert isinstance(module, nn.Embedding)
    count = len(output_grads)
    ids = inputs.reshape(count, -1)
    grads = batch_positions(output_grads, count)
    if module.padding_idx is not None:
        grads = grads * (ids != module.padding_idx)[..., None]
    return TableRows(component, ids, grads)
