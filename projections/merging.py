"""Accumulators of several ranks become one, the same on each of them.

Sums are reduced in place by the collectives of torch; other states are gathered and merged
in the order of the ranks. Where a checkpoint has the shares of all ranks on disk and they are
large, they are read from there one after the other, so that no more than two are held.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from projections.base import Accumulator, Summed
from projections.ranks import Ranks
from projections.rounds import Checkpoint, SharedCheckpoint

MOST_REDUCED = 4 << 30  # bytes of a state that still goes through the network


def begin_share(accumulators: Sequence[Accumulator], ranks: Ranks) -> None:
    """Let ranks after the first start from zero, so that what was there before counts once."""
    if ranks.is_first:
        return
    for accumulator in accumulators:
        if isinstance(accumulator, Summed):
            state = accumulator.state()
            accumulator.load(
                {
                    key: torch.zeros_like(value) if accumulator.is_sum(key) else value
                    for key, value in state.items()
                }
            )


def merge_shares(
    accumulators: Sequence[Accumulator], ranks: Ranks, checkpoint: Checkpoint | None
) -> None:
    """Give every rank the state over all of the data.

    Args:
        accumulators: Those of this rank, over its share.
        ranks: The ranks.
        checkpoint: Where the shares were saved last, if they were.
    """
    if ranks.size == 1 or not accumulators:
        return
    states = [accumulator.state() for accumulator in accumulators]
    num_bytes = max(ranks.gather(sum(map(_num_bytes, states)), "sizes of states"))
    if num_bytes > MOST_REDUCED and isinstance(checkpoint, SharedCheckpoint):
        del states
        checkpoint.restore_all(accumulators)
        ranks.barrier("reading the shares of all ranks")
    else:
        _merge_states(accumulators, states, ranks)
    if isinstance(checkpoint, SharedCheckpoint):
        checkpoint.save_all(accumulators, ranks)


def _merge_states(
    accumulators: Sequence[Accumulator], states: Sequence[Mapping[str, Tensor]], ranks: Ranks
) -> None:
    """Merge the states of all ranks through the network."""
    for accumulator, state in zip(accumulators, states, strict=True):
        if isinstance(accumulator, Summed):
            accumulator.load(_reduced(accumulator, state, ranks))
        else:
            own = {key: value.cpu() for key, value in state.items()}
            first, *others = ranks.gather(own, accumulator.name)
            accumulator.load(first)
            for other in others:
                accumulator.merge(other)


def _reduced(accumulator: Summed, state: Mapping[str, Tensor], ranks: Ranks) -> dict[str, Tensor]:
    """Return the state with sums over all ranks; what is no sum is that of the first with it."""
    shapes = {
        key: (tuple(value.shape), value.dtype, value.device.type) for key, value in state.items()
    }
    by_rank = ranks.gather(shapes, accumulator.name)
    wanted: dict[str, tuple[Any, int]] = {}
    for rank, found in enumerate(by_rank):
        for key, shape in found.items():
            wanted.setdefault(key, (shape, rank))
    reduced = {}
    for key, ((shape, dtype, device), source) in wanted.items():
        # A state that was loaded is on the CPU until it is added to; ranks must not differ.
        own = state.get(key)
        zero = torch.zeros(() if own is not None else shape, dtype=dtype, device=device)
        value = zero if own is None else own.to(zero.device)
        if accumulator.is_sum(key):
            reduced[key] = ranks.sum_(value.contiguous(), key)
        else:
            reduced[key] = ranks.broadcast_(value.contiguous(), source, key)
    return reduced


def _num_bytes(state: Mapping[str, Tensor]) -> int:
    """Return the bytes of a state."""
    return sum(value.numel() * value.element_size() for value in state.values())
