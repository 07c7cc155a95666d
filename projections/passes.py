"""A pass: one walk over a dataset that feeds any number of columns and accumulators.

Letters: ``n`` examples in a batch.

Rows are read in shards. Within a shard, examples are packed into batches by length; what
comes out is in the order of the rows again. Columns are handed to a sink shard by shard,
or returned as one table. Values stay on the model's device until their shard is complete.
Under a launcher each rank takes its share of the shards, and all of them return the whole.
"""

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from projections.base import Accumulator, Batch, Column, Table
from projections.capture import Capture, check_complete, check_evaluation_mode
from projections.checks import check_at_least, check_one_of
from projections.columns import GradientNorm
from projections.data import Rows, as_rows, shard_ranges
from projections.errors import (
    NonDeterministicError,
    NonFiniteError,
    StoreMismatchError,
)
from projections.fingerprint import fingerprint_model
from projections.heads import HeadSplit
from projections.labels import Labels
from projections.layout import Layout, find_components
from projections.merging import begin_share, merge_shares
from projections.per_example import Gradient
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
from projections.sharded import is_sharded, precision
from projections.task import Task, to_device
from projections.tracing import trace

NUM_NAMED = 10  # ids that a message lists
NUM_TRACED = 8  # rows of which the longest and the shortest are traced


@dataclass(frozen=True, kw_only=True)
class PassSettings:
    """How a pass reads its data; no result depends on it beyond the order of sums.

    Args:
        batch_size: Most examples in a batch.
        max_tokens: Most positions in a batch, padding included. Default: no limit.
        shard_size: Rows read, and kept safe, at a time.
        layers: Patterns of the components to look at, as in `find_components`.
        kinds: Kinds of the components to look at, likewise.
        heads: Layers that are taken apart by attention head, as from `find_heads`.
        autocast: ``"bfloat16"`` to run the model under autocast. Gradients are then in the
            precision of the parameters, and as exact as the model's activations.
    """

    batch_size: int = 32
    max_tokens: int | None = None
    shard_size: int = 1024
    layers: tuple[str, ...] | None = None
    kinds: tuple[str, ...] | None = None
    heads: tuple[HeadSplit, ...] = ()
    autocast: str | None = None

    def __post_init__(self) -> None:
        """Check the arguments."""
        check_at_least("batch_size", self.batch_size, 1)
        check_at_least("shard_size", self.shard_size, 1)
        if self.autocast is not None:
            check_one_of("autocast", self.autocast, ("bfloat16",))
        if self.max_tokens is not None:
            check_at_least("max_tokens", self.max_tokens, 1)

    def with_batching(self, other: "PassSettings | None") -> "PassSettings":
        """Return the components and the precision of these settings, read as others say.

        Args:
            other: Whose batches and shards to take; these settings' own if None.
        """
        return replace(
            other or self,
            layers=self.layers,
            kinds=self.kinds,
            heads=self.heads,
            autocast=self.autocast,
        )

    def describe_gradients(self) -> dict[str, Any]:
        """Return as JSON values what changes gradients beside the choice of components."""
        heads = [asdict(split) | {"slots": list(split.slots)} for split in self.heads]
        return ({"heads": heads} if heads else {}) | (
            {"autocast": self.autocast} if self.autocast else {}
        )


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


def pack(sizes: Sequence[int], settings: PassSettings) -> Iterator[list[int]]:
    """Yield groups of positions of similar size, the longest first.

    Args:
        sizes: Length of each example.
        settings: Limits of a batch. A single example above ``max_tokens`` is a batch.

    Example:
        >>> list(pack([1, 9, 2, 8], PassSettings(max_tokens=18)))
        [[1, 3], [2, 0]]
    """
    group: list[int] = []
    for position in sorted(range(len(sizes)), key=lambda p: (-sizes[p], p)):
        longest = sizes[group[0]] if group else sizes[position]
        full = len(group) == settings.batch_size
        if settings.max_tokens is not None:
            full = full or (len(group) + 1) * longest > settings.max_tokens
        if group and full:
            yield group
            group = []
        group.append(position)
    if group:
        yield group


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
            self.preflight()
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
            record = self._run(batch, ids[group], self.columns, self.accumulators, self.labels)
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
        self._run(batch, self.rows.ids[:1], [], [], self.labels)

    def preflight(self) -> None:
        """Compare two examples in one batch with each of them alone, once for each task.

        Raises:
            NonDeterministicError: Losses or gradient norms differ.
            UnsupportedLayerError: Autograd finds another gradient than the layers' rules.
        """
        what = self._what_is_checked()
        layout = self.task.checked.get(what)
        modules = set(self.task.model.modules())
        if what in self.task.checked and (layout is None or layout.uses.keys() <= modules):
            self.layout = layout
            return
        self._compare()
        self.task.checked[what] = self.layout

    def _what_is_checked(self) -> Hashable:
        """Return what the outcome of the comparison hangs on, beside the data."""
        model, settings = self.task.model, self.settings
        modes = tuple((type(module), module.training) for module in model.modules())
        tracked = tuple(parameter.requires_grad for parameter in model.parameters())
        chosen = (self.layout is not None, settings.layers, settings.kinds, settings.heads)
        losses = getattr(self.task.losses, "__func__", self.task.losses)
        return losses, chosen, modes, tracked

    def _compare(self) -> None:
        """Compare two examples in one batch with each of them alone, in full precision."""
        shown = range(min(2, len(self.rows)))
        examples = self.task.encode(self.rows.fetch(shown))
        if self.layout is not None:
            # Of different lengths, so that there is a mask where there ever is one.
            several = self.task.encode(self.rows.fetch(range(min(NUM_TRACED, len(self.rows)))))
            ends = [choose(several, key=self.task.size) for choose in (max, min)]
            self.layout = trace(
                self.layout, self.task.model, lambda count: self._only_run(ends * count)
            )
        together = self._probe(examples)
        alone = [self._probe([example]) for example in examples]
        for kind, values in together.items():
            single = torch.cat([probe[kind] for probe in alone])
            tolerance = 10 * torch.finfo(values.dtype).eps ** 0.5
            if not torch.allclose(
                values, single, rtol=tolerance, atol=tolerance * 1e-3, equal_nan=True
            ):
                raise NonDeterministicError(
                    f"the {kind} of an example must not depend on chance or on the rest of its "
                    f"batch. Rows {self.rows.ids[list(shown)].tolist()} give {values.tolist()} "
                    f"together and {single.tolist()} alone. Sum the loss over the tokens of each "
                    "example and never average it over the batch; turn off dropout and batch "
                    "statistics; keep the examples on the first axis."
                )
        if self.layout is not None:
            batch = to_device(self.task.collate(examples[:1]), self.task.device)
            check_complete(
                self.task.model, self.layout, lambda: self.task.statistics(batch)["loss"]
            )

    def _only_run(self, examples: list[Any]) -> None:
        """Run the model on a few examples."""
        self.task.statistics(to_device(self.task.collate(examples), self.task.device))

    def _probe(self, examples: list[Any]) -> dict[str, Tensor]:
        """Return losses and gradient norms of a few examples, as on the model's precision."""
        batch = to_device(self.task.collate(examples), self.task.device)
        norm = [GradientNorm()] if self.layout else []
        record = self._run(batch, np.arange(len(examples)), norm, [], Labels(), autocast=False)
        probe = {"loss": record.statistics["loss"]}
        if norm:
            probe["gradient norm"] = norm[0].values(record)
        dtype = precision(self.task.model) or record.dtype
        return {kind: value.cpu().to(dtype) for kind, value in probe.items()}

    def _run(
        self,
        batch: Any,
        ids: np.ndarray,
        columns: Sequence[Column],
        accumulators: Sequence[Accumulator],
        labels: Labels,
        *,
        autocast: bool = True,
    ) -> Batch:
        """Run one forward and, where anyone wants gradients, a backward for each draw."""
        count = self.task.num_examples(batch)
        mask = self.task.token_mask(batch)
        shortened = autocast and self.settings.autocast is not None
        precision = torch.autocast(self.task.device.type, torch.bfloat16, enabled=shortened)
        if self.layout is None:
            with torch.no_grad(), precision:
                statistics = self._statistics(batch, count)
            return Batch(ids, self.task.device, statistics["loss"].dtype, mask, statistics)

        @precision
        def compute() -> tuple[list[Tensor], Mapping[str, Tensor]]:
            if labels.kind == "data":
                statistics = self._statistics(batch, count)
                return [statistics["loss"]], statistics
            losses = self.task.fisher_losses(batch, labels, ids)
            return losses, {"loss": losses[0]}

        capture = Capture(self.task.model, self.layout)
        watching = [*(column for column in columns if column.needs_gradients), *accumulators]
        # Norms come last, since whoever forms a gradient has its norm on the way.
        watching.sort(key=lambda consumer: isinstance(consumer, GradientNorm))

        def observe(gradient: Gradient) -> None:
            for consumer in watching:
                consumer.observe(gradient)

        with capture.hooks():
            losses, statistics = capture.forward(compute, count)
            detached = {name: value.detach() for name, value in statistics.items()}
            record = Batch(ids, self.task.device, losses[0].dtype, mask, detached)
            for draw, loss in enumerate(losses):
                record = replace(record, draw=draw)
                for consumer in [*columns, *accumulators]:
                    consumer.begin(record)
                capture.backward(loss, observe, again=draw + 1 < len(losses))
                for accumulator in accumulators:
                    accumulator.end(record)
        return record

    def _statistics(self, batch: Any, count: int) -> Mapping[str, Tensor]:
        """Return the task's statistics, one number an example each."""
        statistics = self.task.statistics(batch)
        for name, value in statistics.items():
            if tuple(value.shape) != (count,):
                raise NonDeterministicError(
                    f"the task must give one {name} an example, a tensor of shape ({count},). Got "
                    f"shape {tuple(value.shape)}. Use reduction='none' and sum over tokens; a mean "
                    "over the batch mixes the examples."
                )
        return statistics


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
