"""Eigendecompositions of all covariances of a model, spread over the ranks of a run by cost.

Each is computed by one rank and sent to the others, so that all have the same bits. A
decomposition costs the cube of the width of its blocks; the most expensive ones are dealt
out first, each to the rank that has least to do.
"""

import heapq
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from influence.covariances import Covariances
from influence.kfac_math import Rotation, eigendecompose
from projections import Ranks, current_ranks

Spectrum = tuple[Float[Tensor, " i"], Rotation]


def decompose(
    covariances: Covariances,
) -> dict[str, tuple[Rotation, Rotation, Float[Tensor, "o i"]]]:
    """Return ``U_G``, ``U_A`` and the products of eigenvalues of each linear map.

    Args:
        covariances: Over all of the data, the same on each rank.

    Raises:
        NonFiniteError: An entry is not finite.
    """
    owners = {name: covariances.owners[name] for name in covariances.names}
    wanted = {f"{owner}, inputs": covariances.input_sizes(owner) for owner in owners.values()}
    wanted |= {f"{name}, output gradients": covariances.grad_sizes(name) for name in owners}

    def blocks(what: str) -> list[Tensor]:
        name, _, side = what.rpartition(", ")
        is_inputs = side == "inputs"
        return covariances.input_blocks(name) if is_inputs else covariances.grad_blocks(name)

    ranks = current_ranks()
    costs = [sum(width**3 for width in sizes) for sizes in wanted.values()]
    found: dict[str, Spectrum] = {}
    with ranks.telling():
        workers = dict(zip(wanted, deal_out(costs, ranks.size), strict=True))
        for what, worker in workers.items():
            if worker == ranks.rank:
                found[what] = eigendecompose(blocks(what), what)
        for what, worker in workers.items():
            if ranks.size > 1:
                found[what] = _sent(found.get(what), blocks(what), worker, ranks, what)
    result = {}
    for name, owner in owners.items():
        (alphas, right), (gammas, left) = (
            found[f"{owner}, inputs"],
            found[f"{name}, output gradients"],
        )
        result[name] = (left, right, gammas[:, None] * alphas)
    return result


def deal_out(costs: Sequence[float], size: int) -> list[int]:
    """Return the rank for each of some tasks: the most expensive first, to the least busy.

    Args:
        costs: Cost of each task.
        size: Number of ranks.

    Example:
        >>> deal_out([1, 5, 4, 2], 2)
        [0, 0, 1, 1]
    """
    loads = [(0.0, rank) for rank in range(size)]
    chosen = [0] * len(costs)
    for task in sorted(range(len(costs)), key=lambda task: -costs[task]):
        load, rank = heapq.heappop(loads)
        chosen[task] = rank
        heapq.heappush(loads, (load + costs[task], rank))
    return chosen


def _sent(
    own: Spectrum | None, like: Sequence[Tensor], source: int, ranks: Ranks, what: str
) -> Spectrum:
    """Return a decomposition as the rank that computed it has it."""
    if own is not None:
        values, vectors = own[0], own[1].blocks
    else:
        values = torch.cat([block.new_empty(len(block)) for block in like])
        vectors = tuple(torch.empty_like(block) for block in like)
    values = ranks.broadcast_(values, source, what)
    vectors = tuple(ranks.broadcast_(block, source, what) for block in vectors)
    return values, Rotation(vectors, len(values))
