"""A pass: one walk over a dataset that feeds any number of columns and accumulators.

Letters: ``n`` examples in a batch.

Rows are read in shards. Within a shard, examples are packed into batches by length; what
comes out is in the order of the rows again. Columns are handed to a sink shard by shard,
or returned as one table. Values stay on the model's device until their shard is complete.
Under a launcher each rank takes its share of the shards, and all of them return the whole.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from projections.base import Accumulator, Column, Table
from projections.batch_runs import BatchRuns
from projections.data import Rows, as_rows, shard_ranges
from projections.errors import NonFiniteError, StoreMismatchError
from projections.evaluation_mode import check_evaluation_mode
from projections.fingerprint import fingerprint_model
from projections.freed_memory import freed_memory_kept
from projections.labels import Labels
from projections.layout import Layout, find_components
from projections.merging import begin_share, merge_shares
from projections.pass_settings import PassSettings, pack
from projections.preflight import preflight
from projections.progress import track
from projections.ranks import Ranks, current_ranks, num_processes
from projections.rounds import (
    Checkpoint,
    Sink,
    check_alike,
    check_shared,
    gather_tables,
    make_rounds,
    own_shard,
    restore,
    save_round,
    write_round,
)
from projections.sharded import is_sharded
from projections.task import Task, to_device

NUM_NAMED = 10  # ids that a message lists


def run_pass(
    task: Task,
    data: Any,
    columns: Sequence[Column] = (),
    *,
    accumulators: Sequence[Accumulator] = (),
    labels: Labels | None = None,
    settings: PassSettings | None = None,
    sink: Sink | None = None,
    checkpoint: Checkpoint | None = None,
    description: str = "pass",
) -> Table:
    """Walk the data once and compute columns and accumulators from it.

    Under `torchrun` all ranks make the same call, with the same model and all of the data.

    Args:
        task: The model and its loss.
        data: A dataset, or `Rows`.
        columns: What to compute for each row.
        accumulators: What to compute over all rows; updated in place.
        labels: Labels other than the data's, for a Fisher matrix; columns are then refused.
        settings: How to read the data.
        sink: Takes each shard's columns as it is complete; the returned table is then empty.
        checkpoint: Keeps the accumulators' state, so that a killed pass can go on.
        description: What the progress display says.

    Returns:
        The columns of all rows, in their order.

    Raises:
        LostRankError: Another rank died, or stopped with an error.
        NonDeterministicError: Losses or gradients depend on chance or on the batch.
        NonFiniteError: A value is NaN or infinite; earlier shards are safe in the sink.
        UnsupportedLayerError: A trainable layer has no rule.
        ValueError: The data is empty, or a setting is out of range.

    Example:
        >>> from projections import Classification, GradientNorm, Statistic
        >>> task = Classification(torch.nn.Linear(2, 3))
        >>> data = [(torch.ones(2), 0), (torch.zeros(2), 1)]
        >>> table = run_pass(task, data, [Statistic("loss"), GradientNorm()])
        >>> table.columns["grad_norm"].shape
        (2,)
    """
    rows = as_rows(data)
    settings = settings or PassSettings()
    if labels is not None and columns:
        raise ValueError(
            "`columns` must be empty when labels are drawn: they are about the data's own labels."
        )
    names = [column.name for column in columns]
    if len(set(names)) < len(names):
        raise ValueError(f"`columns` must have different names. Got {names}.")
    ranks = current_ranks()
    with ranks.telling():
        walk = _Walk(task, rows, settings, columns, accumulators, labels or Labels(), ranks)
        tables = walk.all_shards(sink, checkpoint, description)
    return concatenate_tables(tables, [column.name for column in columns])


def concatenate_tables(tables: Sequence[Table], names: Sequence[str] = ()) -> Table:
    """Return the rows of several tables as one.

    Args:
        tables: Tables with the same columns.
        names: Columns of the result where there is no table at all.
    """
    if not tables:
        return Table(np.empty(0, dtype=np.int64), {name: np.empty(0) for name in names})
    columns = {
        name: np.concatenate([table.columns[name] for table in tables])
        for name in tables[0].columns
    }
    return Table(np.concatenate([table.ids for table in tables]), columns)


def _resume_point(
    sink: Sink | None,
    checkpoint: Checkpoint | None,
    has_columns: bool,
    accumulators: Sequence[Accumulator],
    ranks: Ranks,
) -> int:
    """Return how many shards both the sink and the checkpoint have, and load that state.

    Raises:
        StoreMismatchError: The checkpoint covers shards that the sink lacks.
    """
    saved = sink.num_finished if sink is not None and has_columns else None
    if checkpoint is not None:
        if saved is not None and saved < checkpoint.num_finished:
            raise StoreMismatchError(
                f"a checkpoint must not be ahead of the rows beside it. It covers "
                f"{checkpoint.num_finished} shards and there are {saved}. Remove the checkpoint, "
                "and the rows, and start again."
            )
        restore(checkpoint, accumulators, ranks)
        return checkpoint.num_finished
    # Without a checkpoint, accumulators start anew, and shards in the sink stay as they are.
    return 0 if accumulators or saved is None else saved


@dataclass
class _Walk:
    """What stays the same over the shards of one pass."""

    task: Task
    rows: Rows
    settings: PassSettings
    columns: Sequence[Column]
    accumulators: Sequence[Accumulator]
    labels: Labels
    ranks: Ranks

    def __post_init__(self) -> None:
        """Check the model before any data is read."""
        check_evaluation_mode(self.task.model)
        if is_sharded(self.task.model) and self.ranks.size < num_processes():
            raise ValueError(
                "a model that is fully sharded must be run by all ranks together, since each has a "
                "part of it. This pass is of one rank. Leave `with alone():`."
            )
        self.layout: Layout | None = None
        if self.accumulators or any(column.needs_gradients for column in self.columns):
            self.layout = find_components(
                self.task.model,
                self.settings.layers,
                kinds=self.settings.kinds,
                heads=self.settings.heads,
            )

    def all_shards(
        self, sink: Sink | None, checkpoint: Checkpoint | None, description: str
    ) -> list[Table]:
        """Walk the shards that are not finished; return their columns where there is no sink."""
        ranks, accumulators = self.ranks, self.accumulators
        check_shared(sink, checkpoint, ranks)
        begin_share(accumulators, ranks)
        finished = _resume_point(sink, checkpoint, bool(self.columns), accumulators, ranks)
        shards = shard_ranges(len(self.rows), self.settings.shard_size)
        if ranks.size > 1:
            check_alike(self._facts(finished), ranks)
        if finished < len(shards):
            layout = preflight(self.task, self.rows, self.settings, self.layout)
            self.runs = BatchRuns(self.task, layout, self.settings.autocast is not None)
        remaining = track(
            make_rounds(finished, len(shards), ranks.size),
            description,
            total=len(self.rows),
            done=sum(map(len, shards[:finished])),
            size=lambda turn: sum(len(shards[shard]) for shard in turn),
        )
        tables = []
        for turn in remaining:
            shard = own_shard(turn, ranks)
            table = self.shard(() if shard is None else shards[shard])
            if sink is None:
                tables.append(table)
            else:
                write_round(sink, turn, table, ranks)
            save_round(checkpoint, turn, accumulators, ranks)
        merge_shares(accumulators, ranks, checkpoint)
        ranks.barrier("end of a pass")
        return gather_tables(tables, ranks)

    def _facts(self, finished: int) -> dict[str, Any]:
        """Return what all ranks must agree on."""
        return {
            "model": fingerprint_model(self.task.model),
            "data": self.rows.fingerprint,
            "shard_size": self.settings.shard_size,
            "columns": [column.name for column in self.columns],
            "accumulators": [accumulator.name for accumulator in self.accumulators],
            "finished shards": finished,
        }

    def shard(self, positions: Sequence[int]) -> Table | None:
        """Compute the columns of one shard; of no rows, run along with the other ranks."""
        examples = self.task.encode(self.rows.fetch(positions)) if positions else []
        groups = list(pack([self.task.size(example) for example in examples], self.settings))
        counts = self.ranks.gather(len(groups), "batches of a round") if self._in_step else [0]
        # A single batch, such as one query, has no next one in its shard to keep memory for.
        keeps = len(groups) > 1 and self.task.device.type == "cpu"
        with freed_memory_kept() if keeps else nullcontext():
            table = self._compute(positions, examples, groups) if positions else None
        for _ in range(len(groups), max(counts)):
            self._run_along()
        return table

    def _compute(
        self, positions: Sequence[int], examples: list[Any], groups: Sequence[list[int]]
    ) -> Table:
        """Compute the columns of some rows, batch by batch."""
        ids = self.rows.ids[np.asarray(positions)]
        results: dict[str, Tensor] = {}
        for group in groups:
            batch = to_device(self.task.collate([examples[p] for p in group]), self.task.device)
            record = self.runs.run(batch, ids[group], self.columns, self.accumulators, self.labels)
            index = torch.tensor(group, device=self.task.device)
            values = {column.name: column.values(record) for column in self.columns}
            for name, value in {**values, "": record.statistics["loss"]}.items():
                if name not in results:
                    results[name] = value.new_empty((len(positions), *value.shape[1:]))
                results[name][index] = value
        losses = results.pop("")
        columns = {name: value.cpu().numpy() for name, value in results.items()}
        check_finite("loss", losses.cpu().numpy(), ids)
        for name, value in columns.items():
            check_finite(name, value, ids)
        return Table(ids, columns)

    @cached_property
    def _in_step(self) -> bool:
        """Whether all ranks must run the model equally often."""
        return self.ranks.size > 1 and is_sharded(self.task.model)

    def _run_along(self) -> None:
        """Run the model on the first row, for the sake of the other ranks alone."""
        examples = self.task.encode(self.rows.fetch([0]))
        batch = to_device(self.task.collate(examples), self.task.device)
        self.runs.run(batch, self.rows.ids[:1], [], [], self.labels)


def check_finite(name: str, values: np.ndarray, ids: np.ndarray) -> None:
    """Refuse NaN and infinities, with the ids of their rows.

    Raises:
        NonFiniteError: At least one value is not finite.
    """
    bad = ~np.isfinite(values.reshape(len(values), -1)).all(axis=1)
    if bad.any():
        named = ids[bad][:NUM_NAMED].tolist()
        raise NonFiniteError(
            f"every {name} must be finite. {int(bad.sum())} of {len(values)} rows of this shard "
            f"are not; their ids: {named}{' ...' if bad.sum() > NUM_NAMED else ''}. Look at these "
            "rows, and leave them out; what was finished before is kept."
        )
