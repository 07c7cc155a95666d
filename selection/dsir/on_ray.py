"""Passes over the blocks of a Ray dataset: workers add up, and what they have is merged.

The functions of a block are those of a walk on one machine. A worker adds the result of a
block to a state of its own, so that what travels is as small as a state.
"""

from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from projections import TextColumns, Texts, map_on_ray, ray_block, track


@dataclass(frozen=True)
class Part:
    """What states hold of one block.

    Args:
        states: The states.
        size: Number of rows.
    """

    states: Sequence[Any]
    size: int


@dataclass(frozen=True, kw_only=True)
class BlockWork:
    """A function of a block as one of an arrow table.

    Args:
        work: Takes a block and an argument; its result has ``size``.
        columns: Names of the columns.
        argument: The argument.
    """

    work: Callable[[Any], Any]
    columns: TextColumns
    argument: Any = None

    def __call__(self, table: pa.Table) -> Any:
        """Work on one block."""
        return self.work((ray_block(table, self.columns), self.argument))


@dataclass(frozen=True, kw_only=True)
class AddBlock:
    """What states hold of a block when nothing was before it.

    Args:
        work: Done with the block.
        empty: The states, empty.
    """

    work: BlockWork
    empty: Sequence[Any]

    def __call__(self, table: pa.Table) -> Part:
        """Add up one block."""
        result, states = self.work(table), deepcopy(self.empty)
        for state in states:
            state.add(result)
        return Part(states, result.size)


def merge_on_ray(
    texts: Texts, work: Callable[[Any], Any], states: Sequence[Any], description: str, argument: Any
) -> None:
    """Give the results of all blocks to each state, by way of states on the workers.

    Args:
        texts: Texts on Ray.
        work: Done with ``(block, argument)``.
        states: Empty ones, with ``add`` and ``merge``.
        description: What the pass does.
        argument: What ``work`` needs beside the block.
    """
    block_work = BlockWork(work=work, columns=texts.columns, argument=argument)
    parts = map_on_ray(texts.data, AddBlock(work=block_work, empty=deepcopy(list(states))))
    for part in track(parts, description, total=None, unit="rows", size=lambda part: part.size):
        for state, other in zip(states, part.states, strict=True):
            state.merge(other)


def results_on_ray(
    texts: Texts, work: Callable[[Any], Any], description: str, argument: Any
) -> Iterator[Any]:
    """Yield the result of each block, in the order of the blocks.

    Args:
        texts: Texts on Ray.
        work: Done with ``(block, argument)``.
        description: What the pass does.
        argument: What ``work`` needs beside the block.
    """
    results = map_on_ray(texts.data, BlockWork(work=work, columns=texts.columns, argument=argument))
    yield from track(results, description, total=None, unit="rows", size=lambda one: one.size)
