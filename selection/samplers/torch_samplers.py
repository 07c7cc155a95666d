"""Draws as samplers of PyTorch: row by row, or batch by batch.

An iteration covers ``num_batches`` batches; the next goes on after it. A sampler whose draws
were restored begins after what was consumed, and ends where that iteration would have ended.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeVar

from torch.utils.data import Sampler

from projections import check_at_least
from selection.samplers.base import Draws

Item = TypeVar("Item")


class DrawSampler(Sampler[int]):
    """One row at a time, for a loader that makes the batches, such as that of a trainer.

    Ranks have to share the rows out, as `accelerate` does: every rank gets all of them here.

    Args:
        draws: What to draw.
        num_batches: Batches (of the draws) of an iteration.

    Example:
        >>> import numpy as np
        >>> from selection import WeightedDraws
        >>> draws = WeightedDraws(np.ones(2), batch_size=2, seed=0)
        >>> list(DrawSampler(draws, num_batches=3))
        [1, 1, 0, 0, 0, 0]
    """

    def __init__(self, draws: Draws, *, num_batches: int) -> None:
        """Start at batch 0."""
        check_at_least("num_batches", num_batches, 1)
        self.draws = draws
        self.num_batches = num_batches
        self._start = draws.consumed

    def __len__(self) -> int:
        """Return the number of rows of an iteration."""
        return self.num_batches * self.draws.batch_size

    def __iter__(self) -> Iterator[int]:
        """Yield the rows of an iteration; each batch is drawn when its first row is."""
        for batch in self._batches():
            yield from self.draws.positions(batch).tolist()

    def set_epoch(self, epoch: int) -> None:
        """Begin the next iteration where this epoch begins, or later if part is consumed."""
        self._start = epoch * self.num_batches

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the draws."""
        return self.draws.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on after the consumed batches of a state."""
        self.draws.load_state_dict(state)
        self._start = self.draws.consumed

    def _batches(self) -> Iterator[int]:
        """Yield the numbers of the batches of this iteration."""
        start = max(self._start, self.draws.consumed)
        end = (start // self.num_batches + 1) * self.num_batches
        yield from range(start, end)
        self._start = end


class DrawBatchSampler(Sampler[list[int]]):
    """One list of rows at a time: the own share of a batch, in one or more parts.

    Args:
        draws: What to draw.
        num_batches: Batches of an iteration.
        rank: Number of this rank.
        num_ranks: Number of ranks, which share each batch out evenly.
        num_parts: Micro-batches in which a rank takes its share.

    Raises:
        ValueError: The batch size is no multiple of ranks times parts.

    Example:
        >>> import numpy as np
        >>> from selection import WeightedDraws
        >>> draws = WeightedDraws(np.ones(2), batch_size=4, seed=0)
        >>> list(DrawBatchSampler(draws, num_batches=1, rank=1, num_ranks=2))
        [[0, 0]]
    """

    def __init__(
        self,
        draws: Draws,
        *,
        num_batches: int,
        rank: int = 0,
        num_ranks: int = 1,
        num_parts: int = 1,
    ) -> None:
        """Check that shares are even."""
        check_at_least("num_parts", num_parts, 1)
        if draws.batch_size % (num_ranks * num_parts):
            raise ValueError(
                f"`batch_size` must be a multiple of {num_ranks} ranks times {num_parts} parts. "
                f"Got {draws.batch_size}."
            )
        if not 0 <= rank < num_ranks:
            raise ValueError(f"`rank` must be in [0, {num_ranks - 1}]. Got {rank}.")
        self._rows = DrawSampler(draws, num_batches=num_batches)
        self._rank, self._num_ranks, self._num_parts = rank, num_ranks, num_parts

    def __len__(self) -> int:
        """Return the number of lists of an iteration."""
        return self._rows.num_batches * self._num_parts

    def __iter__(self) -> Iterator[list[int]]:
        """Yield the own rows, part by part."""
        draws = self._rows.draws
        size = draws.batch_size // (self._num_ranks * self._num_parts)
        for batch in self._rows._batches():
            rows = draws.positions(batch).tolist()
            for part in range(self._num_parts):
                # Parts alternate between ranks, as a loader of `accelerate` shares them out.
                start = (part * self._num_ranks + self._rank) * size
                yield rows[start : start + size]

    def set_epoch(self, epoch: int) -> None:
        """Begin the next iteration where this epoch begins, or later if part is consumed."""
        self._rows.set_epoch(epoch)

    def follow(self, loader: Iterable[Item]) -> Iterator[Item]:
        """Yield what a loader over this sampler yields, and count each batch as consumed.

        A batch counts when it is handed out, so a state that is taken after the step on it
        goes on with the next.
        """
        for number, item in enumerate(loader, start=1):
            if number % self._num_parts == 0:
                self._rows.draws.advance()
            yield item

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the draws."""
        return self._rows.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on after the consumed batches of a state."""
        self._rows.load_state_dict(state)
