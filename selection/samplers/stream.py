"""A stream of examples from several sources, mixed as a mixture says, for loaders with workers.

Letters: ``m`` domains.

Every worker of every rank knows the domain and the number of every draw, since these are
pure functions of the seed and the weights, and fetches only its own: so no example is
fetched twice, and what is drawn depends neither on the number of workers nor on that of
ranks. Weights that move reach the workers over shared memory.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import distributed
from torch.utils.data import IterableDataset, get_worker_info

from projections import DataError, check_at_least, check_between
from selection.mixtures import Mixture, OnlineMixture
from selection.samplers.base import LAG
from selection.samplers.domains import DomainDraws
from selection.samplers.sources import as_source
from selection.samplers.timeline import Timeline


class MixtureStream(IterableDataset):
    """Examples of several sources, in the proportions of a mixture.

    The loader has to be made with this stream's share of a batch: ``DataLoader(stream,
    batch_size=stream.loader_batch_size, num_workers=...)``. Each source with a length and an
    index is shuffled in each of its epochs; others are read in their own order, whole by
    every worker. A source that ends begins again.

    Args:
        sources: The data of each domain, by the names of the mixture.
        mixture: The mixture. If it moves, call `advance` after each optimiser step.
        batch_size: Rows of an optimiser step, over all ranks and micro-batches.
        seed: Seed of domains and orders.
        num_batches: Batches of an iteration; endless by default.
        num_parts: Micro-batches in which a rank takes its share of a batch.
        lag: Batches between a move of the mixture and the first that is drawn with it.
        rank: Number of this rank; that of `torch.distributed` by default. A trainer that
            shares an iterable dataset out itself (`accelerate` does) needs rank 0 of 1.
        num_ranks: Number of ranks.

    Raises:
        DataError: The sources are not those of the mixture.
        ValueError: The batch size is no multiple of ranks times parts.

    Example:
        >>> from selection import FixedMixture
        >>> mixture = FixedMixture(("letters", "digits"), [0.5, 0.5])
        >>> sources = {"letters": ["a", "b", "c"], "digits": [1, 2, 3]}
        >>> list(MixtureStream(sources, mixture, batch_size=3, seed=0, num_batches=2))
        ['a', 3, 'c', 2, 1, 2]
    """

    def __init__(
        self,
        sources: Mapping[str, Any],
        mixture: Mixture,
        *,
        batch_size: int,
        seed: int,
        num_batches: int | None = None,
        num_parts: int = 1,
        lag: int = LAG,
        rank: int | None = None,
        num_ranks: int | None = None,
    ) -> None:
        """Check that sources and mixture belong together."""
        if set(sources) != set(mixture.names):
            raise DataError(
                "`sources` must be those of the mixture. It has the domains "
                f"{sorted(mixture.names)}, the sources are {sorted(sources)}."
            )
        together = distributed.is_available() and distributed.is_initialized()
        self._rank = distributed.get_rank() if rank is None and together else rank or 0
        everyone = distributed.get_world_size() if together else 1
        self._num_ranks = everyone if num_ranks is None else num_ranks
        check_at_least("num_parts", num_parts, 1)
        check_between("rank", self._rank, 0, self._num_ranks - 1, "ranks count from 0")
        if batch_size % (self._num_ranks * num_parts):
            raise ValueError(
                f"`batch_size` must be a multiple of {self._num_ranks} ranks times {num_parts} "
                f"parts. Got {batch_size}."
            )
        self._draws = DomainDraws(mixture, batch_size=batch_size, seed=seed, lag=lag)
        self._sources = [as_source(sources[name], name=name, seed=seed) for name in mixture.names]
        self._moves = isinstance(mixture, OnlineMixture)
        self._num_batches, self._num_parts = num_batches, num_parts
        self._board = Board(len(mixture.names), size=2 * lag + 2)
        self._start = 0

    @property
    def loader_batch_size(self) -> int:
        """Rows of one micro-batch of one rank."""
        return self._draws.batch_size // (self._num_ranks * self._num_parts)

    @property
    def consumed(self) -> int:
        """Number of batches that were consumed."""
        return self._draws.timeline.consumed

    def __iter__(self) -> Iterator[Any]:
        """Yield the examples of this worker: every so-many-th micro-batch of this rank."""
        info = get_worker_info()
        worker, num_workers = (info.id, info.num_workers) if info else (0, 1)
        first = max(self._start, self.consumed)
        batch, part = first, 0
        length = self._num_batches
        end = None if length is None else (first // length + 1) * length
        turn = 0
        while end is None or batch < end:
            if turn % num_workers == worker:
                yield from self._fetch(batch, part, in_worker=info is not None)
            turn, part = turn + 1, part + 1
            if part == self._num_parts:
                batch, part = batch + 1, 0
        self._start = batch

    def domains(self, batch: int) -> Int[np.ndarray, " n"]:
        """Return the domain of each example of a batch of all ranks, by its place."""
        return self._draws.domains(batch)

    def advance(self) -> None:
        """Count one batch as consumed, and take in the weights of the mixture.

        Call it in the process of the training loop, after each optimiser step.
        """
        self._draws.advance()
        self._board.publish(self._draws.timeline)

    def set_epoch(self, epoch: int) -> None:
        """Begin the next iteration where this epoch begins, or after what is consumed."""
        if self._num_batches is not None:
            self._start = epoch * self._num_batches

    def state_dict(self) -> dict[str, Any]:
        """Return what the draws need to go on; the state of the mixture is kept beside it."""
        return self._draws.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on after the consumed batches of a state; make the loader's iterator after it."""
        self._draws.load_state_dict(state)
        self._start = self.consumed
        self._board.publish(self._draws.timeline)

    def _fetch(self, batch: int, part: int, *, in_worker: bool) -> Iterator[Any]:
        """Yield the examples of one micro-batch of this rank."""
        if in_worker:
            self._board.read(self._draws.timeline)
        if self._moves:
            self._draws.timeline.check_read_ahead(batch)
        domains, numbers = self._draws.batch(batch)
        size = self.loader_batch_size
        start = (part * self._num_ranks + self._rank) * size
        for place in range(start, start + size):
            yield from self._sources[domains[place]].draw(int(numbers[place]), 1)


class Board:
    """The last changes of a timeline in shared memory: one process writes, workers read.

    Args:
        num_weights: Number ``m`` of weights.
        size: Number of changes that are kept.
    """

    def __init__(self, num_weights: int, *, size: int) -> None:
        """Make an empty board."""
        self._rows = torch.zeros(size, 1 + num_weights, dtype=torch.float64).share_memory_()
        # What was consumed, and how many changes were written, ever.
        self._counts = torch.zeros(2, dtype=torch.int64).share_memory_()
        self._known = 0
        self._written: tuple[int, Any] | None = None

    def publish(self, timeline: Timeline) -> None:
        """Write the newest change, and then how much was consumed."""
        start, weights = timeline.changes[-1]
        if self._written is None or self._written[0] != start:
            number = int(self._counts[1])
            row = torch.from_numpy(np.concatenate([[start], weights]))
            self._rows[number % len(self._rows)] = row
            self._counts[1] = number + 1
            self._written = (start, weights)
        self._counts[0] = timeline.consumed

    def read(self, timeline: Timeline) -> None:
        """Bring a worker's timeline up to date."""
        consumed, written = self._counts.tolist()
        for number in range(max(self._known, written - len(self._rows)), written):
            start, *weights = self._rows[number % len(self._rows)].tolist()
            if start > timeline.changes[-1][0]:
                timeline.changes.append((int(start), np.array(weights)))
        self._known = written
        timeline.consumed = consumed
