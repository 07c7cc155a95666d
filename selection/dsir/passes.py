"""The two passes of DSIR over text: counting n-grams, and weighing rows.

Letters: ``n`` rows, ``T`` targets, ``B`` buckets, ``l`` levels of the random sample.

Blocks are worked on by any number of workers and their results are taken in order, so that
sums have the same bits with one worker and with seven.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float, Int
from torch import Tensor

from projections import Block, FolderCheckpoint, TextBatch, Texts, ordered_map, track
from selection.dsir.ngrams import HashedNgrams
from selection.dsir.noise import row_uniforms
from selection.dsir.on_ray import merge_on_ray, results_on_ray
from selection.dsir.pieces import cut

NUM_LEVELS = 16  # the smallest sample is that share of two of the rows
SAVE_EVERY = 30.0  # seconds between two checkpoints
COMPLETE = "complete"  # a file that says that nothing is left to do


@dataclass(frozen=True, kw_only=True)
class Walk:
    """How a pass over texts is carried out; no result depends on it.

    Args:
        num_workers: Number of workers.
        processes: Whether they are processes, for tokenizers in Python, or threads.
        checkpoint: Where a killed pass goes on, if anywhere.
    """

    num_workers: int = 1
    processes: bool = False
    checkpoint: FolderCheckpoint | None = None

    def __call__(
        self,
        texts: Texts,
        work: Callable[[Any], Any],
        states: Sequence[Any],
        *,
        description: str,
        argument: Callable[[], Any] = lambda: None,
    ) -> None:
        """Give the results of ``work((block, argument()))`` to each state, in order.

        Args:
            texts: The texts.
            work: Done by a worker; its result has ``size``.
            states: Each has ``name``, ``add``, ``state`` and ``load``; and ``merge`` for Ray.
            description: What the pass does, in a few words.
            argument: Called as a block is handed out.
        """
        if texts.on_ray:
            merge_on_ray(texts, work, states, description, argument())
            return
        done = 0 if self.checkpoint is None else self.checkpoint.num_finished
        if self.checkpoint is not None:
            self.checkpoint.restore(states)
            if (self.checkpoint.folder / COMPLETE).exists():
                return
        results = self.results(texts, work, description=description, argument=argument, skip=done)
        last, saved = done - 1, time.monotonic()
        for last, result in enumerate(results, start=done):
            for state in states:
                state.add(result)
            if self.checkpoint is not None and time.monotonic() - saved >= SAVE_EVERY:
                self.checkpoint.save(last, states)
                saved = time.monotonic()
        if self.checkpoint is not None and self.checkpoint.num_finished <= last:
            self.checkpoint.save(last, states)
        if self.checkpoint is not None:
            self.checkpoint.folder.mkdir(parents=True, exist_ok=True)
            (self.checkpoint.folder / COMPLETE).touch()

    def results(
        self,
        texts: Texts,
        work: Callable[[Any], Any],
        *,
        description: str,
        argument: Callable[[], Any] = lambda: None,
        skip: int = 0,
    ) -> Iterator[Any]:
        """Yield the results of the blocks in order, but for the first ``skip``.

        Args:
            texts: The texts.
            work: Done by a worker.
            description: What the pass does.
            argument: Called as a block is handed out.
            skip: Blocks that were finished before.
        """
        if texts.on_ray:
            yield from results_on_ray(texts, work, description, argument())
            return
        blocks = texts.blocks()
        skipped = sum(block.size for block in islice(blocks, skip))
        results = ordered_map(
            work,
            ((block, argument()) for block in blocks),
            num_workers=self.num_workers,
            processes=self.processes,
        )
        total, unit = texts.extent
        yield from track(
            results, description, total=total, done=skipped, unit=unit, size=lambda one: one.size
        )


@dataclass(frozen=True)
class Counted:
    """N-grams of a block.

    Args:
        counts: By level, ``B`` numbers.
        num_rows: Rows that were counted.
        size: Size of the block.
    """

    counts: dict[int, Int[np.ndarray, " B"]]
    num_rows: dict[int, int]
    size: int


@dataclass(frozen=True, kw_only=True)
class CountRows:
    """Count the n-grams of a block by the level of their rows in the random sample.

    A row is of level ``l`` with probability ``2^-(l+1)``, by its id.

    Args:
        ngrams: The n-grams.
        seed: Seed of the sample.
        chunk_tokens: Length of the pieces that rows are cut into, if they are.
    """

    ngrams: HashedNgrams
    seed: int
    chunk_tokens: int | None = None

    def __call__(self, item: tuple[Block, int]) -> Counted:
        """Count the rows of a block from a level on."""
        block, lowest = item
        batch, _ = cut(block.batch(), self.chunk_tokens)
        levels = self._levels(batch.ids)
        present, slots = np.unique(levels[levels >= lowest], return_inverse=True)
        counts = np.zeros((len(present), self.ngrams.num_buckets), dtype=np.int64)
        places = np.full(len(levels), -1)
        places[levels >= lowest] = slots
        self.ngrams.count(batch.texts, places, counts)
        rows = np.bincount(slots, minlength=len(present)).tolist()
        by_level = present.tolist()
        return Counted(
            dict(zip(by_level, counts, strict=True)),
            dict(zip(by_level, rows, strict=True)),
            block.size,
        )

    def _levels(self, ids: pa.Array) -> Int[np.ndarray, " n"]:
        """Return the level of each row."""
        drawn = row_uniforms(ids, seed=self.seed, name="dsir/sample")
        return np.minimum(np.floor(-np.log2(drawn)), NUM_LEVELS - 1).astype(np.int64)


class LevelCounts:
    """Counts of n-grams, of the levels that are still sampled.

    When there are more n-grams than were asked for, the lowest level goes: what is left is a
    sample of rows by their ids, whatever order they come in.

    Args:
        name: Name of the state.
        num_buckets: Number ``B`` of buckets.
        most: Most n-grams to keep; None for all.
    """

    def __init__(self, name: str, num_buckets: int, most: int | None) -> None:
        """Start with nothing."""
        self.name, self.most = name, most
        self.lowest = 0
        self.levels = np.zeros((NUM_LEVELS, num_buckets), dtype=np.int64)
        self.rows = np.zeros(NUM_LEVELS, dtype=np.int64)

    @property
    def counts(self) -> Int[np.ndarray, " B"]:
        """Counts of the sample."""
        return self.levels[self.lowest :].sum(0)

    @property
    def num_rows(self) -> int:
        """Number of rows in the sample."""
        return int(self.rows[self.lowest :].sum())

    @property
    def share(self) -> float:
        """The share of the rows that is sampled."""
        return 0.5**self.lowest

    def add(self, result: Counted) -> None:
        """Add a block."""
        for level, counts in result.counts.items():
            self.levels[level] += counts
            self.rows[level] += result.num_rows[level]
        self._drop()

    def merge(self, other: "LevelCounts") -> None:
        """Add other blocks; levels that were dropped there are dropped here in the end."""
        self.levels += other.levels
        self.rows += other.rows
        self._drop()

    def _drop(self) -> None:
        """Drop levels while there is too much."""
        while self.most is not None and self.lowest < NUM_LEVELS - 1:
            if self.levels[self.lowest :].sum() <= self.most:
                break
            self.lowest += 1

    def state(self) -> dict[str, Tensor]:
        """Return all of it."""
        return {
            "levels": torch.from_numpy(self.levels),
            "rows": torch.from_numpy(self.rows),
            "lowest": torch.tensor(self.lowest),
        }

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a state."""
        self.levels, self.rows = state["levels"].numpy().copy(), state["rows"].numpy().copy()
        self.lowest = int(state["lowest"])


@dataclass(frozen=True)
class Weighed:
    """Rows of a block with their weights.

    Args:
        batch: Ids, texts and domains.
        origin: Which row of the block each was cut from.
        log_weights: Logarithm of the weight for each target, ``n T``.
        num_tokens: Number of tokens.
        size: Size of the block.
    """

    batch: TextBatch
    origin: Int[np.ndarray, " n"]
    log_weights: Float[np.ndarray, "n T"]
    num_tokens: Int[np.ndarray, " n"]
    size: int


@dataclass(frozen=True, kw_only=True)
class WeighRows:
    """Weigh the rows of a block.

    Args:
        ngrams: The n-grams.
        table: Log ratio of each bucket for each target, ``T B``.
        mean: Whether weights are divided by the number of n-grams.
        chunk_tokens: Length of the pieces that rows are cut into, if they are.
        keep_texts: Whether texts are in the result.
    """

    ngrams: HashedNgrams
    table: Float[np.ndarray, "T B"]
    mean: bool
    chunk_tokens: int | None = None
    keep_texts: bool = False

    def __call__(self, item: tuple[Block, Any]) -> Weighed:
        """Weigh the rows of a block."""
        block, _ = item
        batch, origin = cut(block.batch(), self.chunk_tokens)
        weights, num_tokens = self.weights(batch.texts)
        kept = batch if self.keep_texts else replace(batch, texts=batch.texts[:0])
        return Weighed(kept, origin, weights, num_tokens, block.size)

    def weights(self, texts: pa.Array) -> tuple[Float[np.ndarray, "n T"], Int[np.ndarray, " n"]]:
        """Return the log weights of rows, and their numbers of tokens."""
        sums, num_tokens = self.ngrams.sums(texts, self.table)
        if self.mean:
            sums /= np.maximum(self.ngrams.num_ngrams(num_tokens), 1)[:, None]
        return sums, num_tokens
