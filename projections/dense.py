"""What dense projections share: the product with a matrix that is drawn block by block.

Letters: ``n`` examples, ``d`` parameters, ``k`` projected dimensions, ``c`` entries of a
block, ``r`` rows of a table, ``o`` and ``i`` output and input features.

Neither the matrix nor a whole gradient is ever held: some rows of a weight are formed for
all examples, and multiplied with their part of the matrix, which is drawn once a batch.
"""

from collections.abc import Callable, Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor

from projections.factors import PIECE_ENTRIES, OuterProducts, TableRows, Term
from projections.per_example import Gradient
from projections.philox import Key, philox

BLOCK_ENTRIES = {"cpu": 1 << 20}  # entries of the matrix drawn at a time, by device
DRAWN = {"cpu": 1 << 14}  # counters at a time, by device

Draw = Callable[[str, Int[Tensor, " c"]], Float[Tensor, "c k"]]
"""``draw(name, columns)`` -> these columns of the matrix of a parameter, transposed."""

Block = tuple[str, Int[Tensor, " c"], Float[Tensor, "n c"]]
"""A parameter's name, which of its entries, and the gradient there."""


def add_product(gradient: Gradient, out: Float[Tensor, "n k"], draw: Draw, *, scale: float) -> None:
    """Add the product of a component's gradient with a drawn matrix.

    Args:
        gradient: The gradient of one component.
        out: Where to add it.
        draw: Gives the matrix; it is not asked twice for the same entry of a term.
        scale: Factor of the matrix.
    """
    width = max(1, BLOCK_ENTRIES.get(out.device.type, 1 << 26) // out.shape[1])
    for term in gradient.terms:  # the map is linear, so terms need not be summed first
        for name, columns, values in _blocks(term, width):
            out.addmm_(values.to(out.dtype), draw(name, columns).to(out), alpha=scale)


def draw_words(key: Key, columns: Int[Tensor, " c"], num_words: int) -> Int[Tensor, "c w"]:
    """Return ``4 * num_words`` words of 32 bits for each column, as int32.

    Args:
        key: Key of the matrix.
        columns: First word of the counters.
        num_words: Number of counters a column; their second words are ``0, 1, ...``.
    """
    words = torch.empty(len(columns), 4 * num_words, dtype=torch.int32, device=columns.device)
    high = torch.arange(num_words, device=columns.device)
    # On a CPU a part's intermediate results stay in the cache.
    height = max(1, DRAWN.get(columns.device.type, 1 << 22) // num_words)
    for low, part in zip(columns.split(height), words.split(height), strict=True):
        part.copy_(philox(key, low[:, None].expand(-1, num_words), high).flatten(1))
    return words


def _blocks(term: Term, width: int) -> Iterator[Block]:
    """Yield the gradient in blocks of about ``width`` entries, for all examples."""
    parameters = list(term.component.parameters)
    if isinstance(term, TableRows):
        yield from _table_blocks(term, width)
        return
    if isinstance(term, OuterProducts) and term.inputs.dim() == 3:
        yield from _weight_blocks(term, width)
        values = [term.bias_vector] if term.has_bias else []
        parameters = parameters[1:]
    else:
        values = term.blocks()
    for parameter, value in zip(parameters, values, strict=True):
        columns = torch.arange(parameter.size, device=value.device)
        parts = zip(columns.split(width), value.flatten(1).split(width, 1), strict=True)
        yield from ((parameter.name, *part) for part in parts)


def _weight_blocks(term: OuterProducts, width: int) -> Iterator[Block]:
    """Form some rows of the gradient of a weight at a time."""
    weight = term.component.parameters[0]
    count, num_in = len(term.inputs), term.inputs.shape[-1]
    height = max(1, min(width, PIECE_ENTRIES // max(1, count)) // num_in)
    columns = torch.arange(weight.size, device=term.inputs.device).split(height * num_in)
    for part, grads in zip(columns, term.output_grads.split(height, -1), strict=True):
        yield weight.name, part, (grads.mT @ term.inputs).flatten(1)


def _table_blocks(term: TableRows, width: int) -> Iterator[Block]:
    """Add up some of the rows of a table that were looked up at a time."""
    (table,) = term.component.parameters
    # NOTE: this waits for a GPU, for microseconds where the draws that it saves take seconds.
    rows, places = term.ids.unique(return_inverse=True)
    count, features = len(term.ids), table.shape[1]
    height = max(1, min(width, PIECE_ENTRIES // max(1, count)) // features)
    for start in range(0, len(rows), height):
        some = rows[start : start + height]
        # Positions of other rows go to one more row, which is left out.
        inside = places - start
        inside = torch.where((inside >= 0) & (inside < len(some)), inside, len(some))
        values = term.output_grads.new_zeros(count, len(some) + 1, features)
        values.scatter_add_(1, inside[..., None].expand_as(term.output_grads), term.output_grads)
        columns = some[:, None] * features + torch.arange(features, device=some.device)
        yield table.name, columns.flatten(), values[:, :-1].flatten(1)
