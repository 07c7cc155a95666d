"""Rounds of a pass: which rank takes which shard, and how their rows come together.

The shards of a round are consecutive, one for each rank in order. What a shard holds hangs
neither on the rank that took it nor on how many there are, and shards are entered in their
order, so that a store has the same bytes with any number of ranks.
"""

from collections.abc import Mapping, Sequence
from itertools import chain, zip_longest
from typing import Any, Protocol, runtime_checkable

from projections.base import Accumulator, Table
from projections.fingerprint import differences
from projections.ranks import Ranks


@runtime_checkable
class Sink(Protocol):
    """Where the columns of finished shards go."""

    @property
    def num_finished(self) -> int:
        """Number of shards that are safe already and will be skipped."""
        ...

    def write(self, shard: int, table: Table) -> None:
        """Keep one shard."""
        ...


@runtime_checkable
class SharedSink(Sink, Protocol):
    """A sink that several ranks fill, in a folder that all of them reach."""

    def stage(self, shard: int, table: Table) -> Mapping[str, Any]:
        """Write a shard out of order, and return what `enter` is told about it."""
        ...

    def enter(self, shard: int, entry: Mapping[str, Any]) -> None:
        """Keep a staged shard, the next in order."""
        ...

    def follow(self, shard: int) -> None:
        """Know that another rank has entered a shard."""
        ...


@runtime_checkable
class Checkpoint(Protocol):
    """Where the state of accumulators goes after each shard."""

    @property
    def num_finished(self) -> int:
        """Number of shards that the saved state covers."""
        ...

    def restore(self, accumulators: Sequence[Accumulator]) -> None:
        """Load the saved state."""
        ...

    def save(self, shard: int, accumulators: Sequence[Accumulator]) -> None:
        """Replace the saved state by one that covers shards up to this one."""
        ...


@runtime_checkable
class SharedCheckpoint(Checkpoint, Protocol):
    """A checkpoint of several ranks, each with its share, in a folder that all of them reach."""

    def restore_share(self, accumulators: Sequence[Accumulator], ranks: Ranks) -> None:
        """Load this rank's share of what was saved, by whatever number of ranks."""
        ...

    def save_share(self, shard: int, accumulators: Sequence[Accumulator], ranks: Ranks) -> None:
        """Save the share of each rank, up to this shard."""
        ...

    def restore_all(self, accumulators: Sequence[Accumulator]) -> None:
        """Load the shares of all ranks."""
        ...

    def save_all(self, accumulators: Sequence[Accumulator], ranks: Ranks) -> None:
        """Replace the shares by what they were merged to."""
        ...


def make_rounds(finished: int, num_shards: int, size: int) -> list[range]:
    """Return the shards of each round.

    Args:
        finished: Number of shards that are finished already.
        num_shards: Number of shards in all.
        size: Number of ranks.

    Example:
        >>> make_rounds(1, 6, 3)
        [range(1, 4), range(4, 6)]
    """
    starts = range(finished, num_shards, size)
    return [range(start, min(start + size, num_shards)) for start in starts]


def own_shard(turn: range, ranks: Ranks) -> int | None:
    """Return the shard of a round that this rank takes, if there is one for it."""
    return turn[ranks.rank] if ranks.rank < len(turn) else None


def write_round(sink: Sink, turn: range, table: Table | None, ranks: Ranks) -> None:
    """Keep the shards of a round that are not safe yet: written by each rank, entered by one."""
    shard, entry = own_shard(turn, ranks), None
    if shard is not None and table is not None and shard >= sink.num_finished:
        if ranks.size == 1:
            sink.write(shard, table)
        else:
            assert isinstance(sink, SharedSink)
            entry = sink.stage(shard, table)
    if ranks.size == 1:
        return
    assert isinstance(sink, SharedSink)
    entries = ranks.gather(entry, "rows of a round")
    for number, entry in zip(turn, entries, strict=False):
        if entry is not None and ranks.is_first:
            sink.enter(number, entry)
        elif entry is not None:
            sink.follow(number)


def restore(
    checkpoint: Checkpoint | None, accumulators: Sequence[Accumulator], ranks: Ranks
) -> None:
    """Load what was saved, or this rank's share of it."""
    if checkpoint is None:
        return
    if ranks.size == 1:
        checkpoint.restore(accumulators)
    else:
        assert isinstance(checkpoint, SharedCheckpoint)
        checkpoint.restore_share(accumulators, ranks)


def save_round(
    checkpoint: Checkpoint | None, turn: range, accumulators: Sequence[Accumulator], ranks: Ranks
) -> None:
    """Save the state after a round."""
    if checkpoint is None:
        return
    if ranks.size == 1:
        checkpoint.save(turn[-1], accumulators)
    else:
        assert isinstance(checkpoint, SharedCheckpoint)
        checkpoint.save_share(turn[-1], accumulators, ranks)


def gather_tables(tables: Sequence[Table | None], ranks: Ranks) -> list[Table]:
    """Return the tables of all ranks, one a round each, in the order of the shards."""
    by_rank = ranks.gather(list(tables), "columns")
    return [table for table in chain(*zip_longest(*by_rank)) if table is not None]


def check_shared(sink: Sink | None, checkpoint: Checkpoint | None, ranks: Ranks) -> None:
    """Refuse what several ranks cannot fill together.

    Raises:
        TypeError: The sink or the checkpoint takes one rank only.
    """
    if ranks.size == 1:
        return
    for name, given, kind in (
        ("sink", sink, SharedSink),
        ("checkpoint", checkpoint, SharedCheckpoint),
    ):
        if given is not None and not isinstance(given, kind):
            raise TypeError(
                f"`{name}` must be a {kind.__name__} where {ranks.size} ranks share a pass. Got "
                f"{type(given).__name__}. Give it those methods, or run in `with alone():`."
            )


def check_alike(facts: Mapping[str, Any], ranks: Ranks) -> None:
    """Refuse ranks that do not work on the same pass.

    Args:
        facts: What all of them must agree on, as plain JSON values.
        ranks: The ranks.

    Raises:
        ValueError: Names the first rank that differs from rank 0, and in what.
    """
    first, *others = ranks.gather(dict(facts), "start of a pass")
    for rank, found in enumerate(others, start=1):
        if different := differences(first, found):
            raise ValueError(
                f"all ranks must make the same pass. Rank 0 and rank {rank} differ in: "
                f"{'; '.join(different)}. Seed the model alike and give all of them the whole "
                "data, or run passes of one rank in `with alone():`."
            )
