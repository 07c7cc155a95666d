"""What is tried on a few rows before a pass: that an example's gradient is its own."""

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from projections.batch_runs import BatchRuns
from projections.columns import GradientNorm
from projections.completeness import check_complete, closeness
from projections.data import Rows
from projections.errors import NonDeterministicError
from projections.labels import Labels
from projections.layout import Layout
from projections.pass_settings import PassSettings
from projections.sharded import precision
from projections.task import Task, to_device
from projections.tracing import trace

NUM_TRACED = 8  # rows of which the longest and the shortest are traced


def preflight(
    task: Task, rows: Rows, settings: PassSettings, layout: Layout | None
) -> Layout | None:
    """Find where the examples are, and compare two in one batch with each of them alone.

    What has been checked is kept with the task, and not checked again.

    Args:
        task: The model and its loss.
        rows: The data, of which the first few rows are read.
        settings: Which components are looked at.
        layout: The components, or None where no gradients are wanted.

    Returns:
        The components, with the axes of the examples.

    Raises:
        NonDeterministicError: Losses or gradient norms differ.
        UnsupportedLayerError: Autograd finds another gradient than the layers' rules.
    """
    what = _what_is_checked(task, settings, layout)
    known = task.checked.get(what)
    modules = set(task.model.modules())
    if what in task.checked and (known is None or known.uses.keys() <= modules):
        return known
    task.checked[what] = _Trial(task, rows).run(layout)
    return task.checked[what]


def _what_is_checked(task: Task, settings: PassSettings, layout: Layout | None) -> Hashable:
    """Return what the outcome of the comparison hangs on, beside the data."""
    modes = tuple((type(module), module.training) for module in task.model.modules())
    tracked = tuple(parameter.requires_grad for parameter in task.model.parameters())
    chosen = (layout is not None, settings.layers, settings.kinds, settings.heads)
    losses = getattr(task.losses, "__func__", task.losses)
    return losses, chosen, modes, tracked


@dataclass(frozen=True)
class _Trial:
    """A few rows, run in full precision."""

    task: Task
    rows: Rows

    def run(self, layout: Layout | None) -> Layout | None:
        """Compare two examples in one batch with each of them alone."""
        shown = range(min(2, len(self.rows)))
        examples = self.task.encode(self.rows.fetch(shown))
        if layout is not None:
            # Of different lengths, so that there is a mask where there ever is one.
            several = self.task.encode(self.rows.fetch(range(min(NUM_TRACED, len(self.rows)))))
            ends = [choose(several, key=self.task.size) for choose in (max, min)]
            layout = trace(layout, self.task.model, lambda count: self._statistics(ends * count))
        runs = BatchRuns(self.task, layout)
        together = self._probe(runs, examples)
        alone = [self._probe(runs, [example]) for example in examples]
        for kind, values in together.items():
            single = torch.cat([probe[kind] for probe in alone])
            tolerance = closeness(values.dtype, self.task.device)
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
        if layout is not None:
            check_complete(self.task.model, layout, lambda: self._statistics(examples[:1])["loss"])
        return layout

    def _statistics(self, examples: list[Any]) -> Any:
        """Run the model on a few examples."""
        return self.task.statistics(self._batch(examples))

    def _batch(self, examples: list[Any]) -> Any:
        """Return examples as a batch on the model's device."""
        return to_device(self.task.collate(examples), self.task.device)

    def _probe(self, runs: BatchRuns, examples: list[Any]) -> dict[str, Tensor]:
        """Return losses and gradient norms of a few examples, as on the model's precision."""
        norm = [GradientNorm()] if runs.layout else []
        ids = np.arange(len(examples))
        record = runs.run(self._batch(examples), ids, norm, [], Labels())
        probe = {"loss": record.statistics["loss"]}
        if norm:
            probe["gradient norm"] = norm[0].values(record)
        dtype = precision(self.task.model) or record.dtype
        return {kind: value.cpu().to(dtype) for kind, value in probe.items()}
