"""What all ranks of a run share: a few numbers an example, gathered in the order of the ranks.

Letters: ``n`` examples, ``c`` numbers each. One process without `torch.distributed` is one rank.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, distributed


def num_ranks(group: Any = None) -> int:
    """Return the number of ranks."""
    return distributed.get_world_size(group) if distributed.is_initialized() else 1


def gather_rows(
    rows: Float[Tensor, "n c"], group: Any = None
) -> tuple[Float[Tensor, "all c"], slice]:
    """Return the rows of all ranks, and where the own ones stand.

    Ranks may have different numbers of rows, or none. The place is by the rank in the whole
    group, not by that on the node.

    Args:
        rows: The own rows; only their values travel, no gradient.
        group: A process group; all ranks by default.
    """
    rows = rows.detach()
    if num_ranks(group) == 1:
        return rows, slice(0, len(rows))
    own = torch.tensor([len(rows)], device=rows.device)
    lengths = [torch.zeros_like(own) for _ in range(num_ranks(group))]
    distributed.all_gather(lengths, own, group=group)
    sizes = [int(length) for length in lengths]
    padded = rows.new_zeros(max(sizes), rows.shape[1])
    padded[: len(rows)] = rows
    parts = [torch.empty_like(padded) for _ in sizes]
    distributed.all_gather(parts, padded, group=group)
    start = sum(sizes[: distributed.get_rank(group)])
    kept = [part[:size] for part, size in zip(parts, sizes, strict=True)]
    return torch.cat(kept), slice(start, start + len(rows))


def sum_over_ranks(values: Tensor, group: Any = None) -> Tensor:
    """Return the sum of a tensor over the ranks."""
    values = values.detach().clone()
    if num_ranks(group) > 1:
        distributed.all_reduce(values, group=group)
    return values
