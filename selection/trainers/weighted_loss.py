"""A Hugging Face `Trainer` whose loss is weighted by example or by token.

Letters: ``n`` examples of a micro-batch.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from selection.reweighting.example_losses import Losses, causal_losses, logits_of
from selection.reweighting.running import Reweighting
from selection.trainers.state_callback import StateCallback

# The methods that are called on `super()` are those of a `Trainer`.
# pyright: reportAttributeAccessIssue=false


class ReweightingMixin:
    """Weigh the losses of each optimiser step; put it before `Trainer` in a class.

    ``class Weighted(ReweightingMixin, Trainer): pass``, and then ``Weighted(model=...,
    args=..., train_dataset=..., reweighting=Reweighting(...))``. Weights span all
    micro-batches and ranks of a step. With gradient accumulation, a forward without
    gradients over the micro-batches comes first, with the same dropout as the second;
    `RunningReweighting` does without.
    Evaluation has the model's own loss. State is kept in the checkpoints.

    An example whose loss is not finite is taken out of its micro-batch, which is then run
    again without it, so that it does not spoil the gradient.

    Args:
        args: What a `Trainer` takes.
        reweighting: The weights.
        losses: From logits and labels to losses and which of them count:
            `causal_losses`, `causal_token_losses`, `token_losses`, `classification_losses`,
            `regression_losses` or a function of the same arguments.
        settings: What a `Trainer` takes.

    Raises:
        ValueError: The model is spread over devices by `DataParallel`.
    """

    def __init__(
        self,
        *args: Any,
        reweighting: Reweighting,
        losses: Callable[[Tensor, Tensor], Losses] = causal_losses,
        **settings: Any,
    ) -> None:
        """Make the trainer, and keep the state of the weights in its checkpoints."""
        super().__init__(*args, **settings)
        if self.args.n_gpu > 1:
            raise ValueError(
                f"a step must be one batch a process. Got {self.args.n_gpu} devices in one process "
                "(DataParallel). Start one process a device with `torchrun`."
            )
        self.loss_is_scaled_for_ga = True  # weights sum to one over the whole window
        self.reweighting = reweighting
        self.losses = losses
        self._window: Iterator[Tensor] | None = None
        state_callback(self).add(reweighting=reweighting)

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> Any:
        """Collect the micro-batches of a step, and weigh them together if there are several."""
        batches, count = super().get_batch_samples(epoch_iterator, num_batches, device)
        ahead = len(batches) > 1 and self.reweighting.needs_window
        self._window = iter(self._weigh(batches)) if ahead else None
        return batches, count

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Mapping[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Return the weighted loss in training, and the model's own in evaluation."""
        if not model.training:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        outputs, losses, counted = self._forward(model, inputs)
        if self._window is None:
            (weights,) = self.reweighting.window([losses], [counted])
        else:
            weights = next(self._window)
        usable = (losses.isfinite() | ~counted).reshape(len(losses), -1).all(1)
        if not bool(usable.all()):
            outputs, losses = self._without(model, inputs, usable)
            weights = weights[usable]
        loss = self.reweighting.weighted(losses, weights)
        return (loss, outputs) if return_outputs else loss

    def _weigh(self, batches: list[Any]) -> list[Tensor]:
        """Return the weights of all micro-batches of a step."""
        self.model.train()
        device = self.args.device
        devices = [device] if device.type == "cuda" else []
        # The numbers that dropout draws here are drawn again in the forward with gradients.
        same_draws = torch.random.fork_rng(devices=devices)
        with same_draws, torch.no_grad(), self.compute_loss_context_manager():
            found = [self._forward(self.model, self._prepare_inputs(part))[1:] for part in batches]
        losses, counted = zip(*found, strict=True)
        return self.reweighting.window(losses, counted)

    def _forward(self, model: nn.Module, inputs: Mapping[str, Any]) -> tuple[Any, Tensor, Tensor]:
        """Return outputs, losses and which of them count."""
        if "labels" not in inputs:
            raise ValueError(
                f"a batch must have 'labels' to be weighed. Got {sorted(inputs)}. Use a collator "
                "that makes them."
            )
        rest = {name: value for name, value in inputs.items() if name != "labels"}
        outputs = model(**rest)
        return outputs, *self.losses(logits_of(outputs), inputs["labels"])

    def _without(
        self, model: nn.Module, inputs: Mapping[str, Any], usable: Tensor
    ) -> tuple[Any, Tensor]:
        """Return outputs and losses of the usable examples alone, of which there may be none."""
        inner = self.accelerator.unwrap_model(model)  # ranks that rerun wait for no other
        if not bool(usable.any()):
            nothing = sum((parameter * 0).sum() for parameter in inner.parameters())
            return None, torch.as_tensor(nothing).expand(0)
        kept = {
            name: value[usable]
            if isinstance(value, Tensor) and len(value) == len(usable)
            else value
            for name, value in inputs.items()
        }
        outputs, losses, _ = self._forward(inner, kept)
        return outputs, losses


def state_callback(trainer: Any) -> StateCallback:
    """Return the callback of a trainer that keeps states, and make one if there is none."""
    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, StateCallback):
            return callback
    made = StateCallback()
    trainer.add_callback(made)
    return made
