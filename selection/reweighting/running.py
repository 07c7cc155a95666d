"""Losses of a running training become one weighted loss: steps, ranks, micro-batches, state.

Letters: ``n`` examples (or tokens) of one micro-batch.

A window is one optimiser step: one batch, or several micro-batches whose gradients are added
up, on all ranks. Weights sum to one over the window.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from projections import check_at_least
from selection.history import History
from selection.ranks import gather_rows, num_ranks
from selection.reweighting.example_losses import at_least_float32
from selection.reweighting.loss_weights import ExampleWeights, LossReweighter

logger = logging.getLogger(__name__)


class Reweighting:
    """A `LossReweighter` at work in one training run.

    Call it with the losses of a batch, and take the gradient of what it returns. Where
    gradients are added up over micro-batches, ask `window` for the weights of all of them
    first. Under `torch.distributed` the losses of all ranks are gathered, nothing else.

    Args:
        reweighter: How to weigh.
        group: The process group that shares each step; all ranks by default.
        record_every: Steps between two entries of the history.

    Attributes:
        step: Number of the next step.
        history: What the weights of some steps were like.
        own_losses: The mean loss of each example of this rank in the last step, NaN where
            nothing counted; a mixture may want to know.

    Example:
        >>> reweighting = Reweighting(LossReweighter(temperature=1.0))
        >>> losses = torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0], requires_grad=True)
        >>> reweighting(losses).backward()
        >>> losses.grad
        tensor([0.0926, 0.1526, 0.2516, 0.2516, 0.2516])
    """

    needs_window = True  # weights of one micro-batch depend on the others of its step

    def __init__(
        self, reweighter: LossReweighter, *, group: Any = None, record_every: int = 10
    ) -> None:
        """Start at step 0."""
        check_at_least("record_every", record_every, 1)
        self.reweighter = reweighter
        self.group = group
        self.record_every = record_every
        self.step = 0
        self.history = History()
        self._last: ExampleWeights | None = None
        self.own_losses: Float[Tensor, " n"] | None = None

    def __call__(
        self, losses: Float[Tensor, "*n"], counted: Bool[Tensor, "*n"] | None = None
    ) -> Float[Tensor, ""]:
        """Return the loss of a step that is one batch, and go on to the next step.

        Args:
            losses: One loss an example, or one a token: the tokens then compete for weight.
            counted: Which of them count; all by default.

        Returns:
            The weighted sum of the own losses, times the number of ranks, so that the mean
            over ranks that `DistributedDataParallel` takes is the weighted mean of all.
        """
        (weights,) = self.window([losses], None if counted is None else [counted])
        return self.weighted(losses, weights)

    def window(
        self,
        losses: Sequence[Float[Tensor, "*_"]],
        counted: Sequence[Bool[Tensor, "*_"]] | None = None,
    ) -> list[Float[Tensor, "*_"]]:
        """Return the weights of all micro-batches of a step, and go on to the next step.

        Args:
            losses: The losses of each micro-batch, from a forward without gradients.
            counted: Which of them count.

        Returns:
            Weights of the own examples, in the shapes of the losses. Over all micro-batches
            and ranks they sum to one.

        Raises:
            ValueError: The losses are reduced to one number.
        """
        if any(part.ndim == 0 for part in losses):
            raise ValueError(
                "`losses` must hold one loss an example. Got a single number, which is the mean or "
                "the sum of a batch. Compute it with `reduction='none'`."
            )
        masks = counted or [torch.ones_like(part, dtype=torch.bool) for part in losses]
        wide = [at_least_float32(part.detach()) for part in losses]
        own = torch.cat([part[mask] for part, mask in zip(wide, masks, strict=True)])
        self.own_losses = torch.cat(
            [_example_means(part, mask) for part, mask in zip(wide, masks, strict=True)]
        )
        everyone, place = gather_rows(own[:, None], self.group)
        found = self._weigh(everyone[:, 0])
        self._last = found
        self._record(found)
        self._count()
        parts = found.values[place].split([int(mask.sum()) for mask in masks])
        weights = [torch.zeros_like(part) for part in wide]
        for weight, mask, part in zip(weights, masks, parts, strict=True):
            weight[mask] = part
        return weights

    def weighted(
        self, losses: Float[Tensor, "*n"], weights: Float[Tensor, "*n"]
    ) -> Float[Tensor, ""]:
        """Return the weighted sum of the own losses, times the number of ranks.

        A loss with the weight 0 is left out, so that a NaN among them does not spread here.
        It spreads in the model all the same where it arose before the loss: take such an
        example, which ``last.excluded`` marks, out of the batch and run it again.
        """
        kept = torch.where(weights > 0, losses, torch.zeros_like(losses))
        return (kept * weights.to(losses.device)).sum() * num_ranks(self.group)

    @property
    def last(self) -> ExampleWeights:
        """The weights of the last step: by rank, and for each by micro-batch.

        Raises:
            ValueError: There was no step yet.
        """
        if self._last is None:
            raise ValueError("weights are known after the first step. There was none yet.")
        return self._last

    def state_dict(self) -> dict[str, Any]:
        """Return the step and the history, as plain values that JSON keeps."""
        return {"step": self.step, "history": self.history.state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state."""
        self.step = int(state["step"])
        self.history = History.from_state(state["history"])

    def _weigh(self, losses: Float[Tensor, " n"]) -> ExampleWeights:
        """Return the weights of the losses of all micro-batches and ranks."""
        return self.reweighter.weights(losses, step=self.step)

    def _count(self) -> None:
        """Go on to the next step."""
        self.step += 1

    def _record(self, found: ExampleWeights) -> None:
        """Write down a step; say which losses were not finite."""
        if self.step % self.record_every == 0:
            self.history.add(
                self.step,
                {
                    "effective_share": found.effective_size / max(len(found.values), 1),
                    "largest_weight": found.values.max() if len(found.values) else 0.0,
                    "low": found.low,
                    "high": found.high,
                    "excluded": float(found.excluded.sum()),
                },
            )
        if bool(found.excluded.any()):
            places = found.excluded.nonzero()[:10, 0].tolist()
            logger.warning(
                "step %d: %d of %d losses are not finite and have the weight 0, at the places %s "
                "among the losses of all micro-batches and ranks",
                self.step,
                int(found.excluded.sum()),
                len(found.excluded),
                places,
            )


def _example_means(losses: Float[Tensor, "n *_"], counted: Bool[Tensor, "n *_"]) -> Tensor:
    """Return the mean of what counts of each example; NaN where nothing does."""
    flat, mask = losses.reshape(len(losses), -1), counted.reshape(len(losses), -1)
    return torch.where(mask, flat, 0).sum(1) / mask.sum(1)
