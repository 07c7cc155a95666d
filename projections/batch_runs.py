"""One batch of a pass: a forward, and a backward for each draw of its labels."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from projections.base import Accumulator, Batch, Column
from projections.capture import Capture
from projections.columns import GradientNorm
from projections.errors import NonDeterministicError
from projections.labels import Labels
from projections.layout import Layout
from projections.per_example import Gradient
from projections.task import Task


@dataclass(frozen=True)
class BatchRuns:
    """How batches are run.

    Args:
        task: The model and its loss.
        layout: The components whose gradients are wanted; None where losses are enough.
        autocast: Whether the model runs in bfloat16.
    """

    task: Task
    layout: Layout | None
    autocast: bool = False

    def run(
        self,
        batch: Any,
        ids: np.ndarray,
        columns: Sequence[Column],
        accumulators: Sequence[Accumulator],
        labels: Labels,
    ) -> Batch:
        """Run one forward and, where anyone wants gradients, a backward for each draw.

        Args:
            batch: The batch, on the model's device.
            ids: The rows that it is of.
            columns: Told of the batch and of the gradients they need.
            accumulators: Likewise, and of its end.
            labels: Labels of the losses.

        Returns:
            What columns read their values from.

        Raises:
            NonDeterministicError: A statistic is not one number an example.
        """
        count = self.task.num_examples(batch)
        mask = self.task.token_mask(batch)
        precision = torch.autocast(self.task.device.type, torch.bfloat16, enabled=self.autocast)
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
