"""A Hugging Face `Trainer` whose rows are drawn by weights or by a mixture."""

from typing import Any

import torch

from selection.samplers import Draws, DrawSampler
from selection.trainers.weighted_loss import state_callback

# The methods that are called on `super()` are those of a `Trainer`.
# pyright: reportAttributeAccessIssue=false


class DrawsMixin:
    """Draw the training rows; put it before `Trainer` in a class.

    The training arguments need ``ignore_data_skip=True``, since draws go on by themselves,
    and ``max_steps``; one epoch of the trainer then has that many steps. For a selection, draws
    of one batch size serve any number of epochs.

    Args:
        args: What a `Trainer` takes.
        draws: What to draw; a batch of them is one optimiser step of all ranks.
        mixture: The mixture behind the draws, if it moves; it is kept in the checkpoints.
        settings: What a `Trainer` takes.

    Raises:
        ValueError: The batch size of the draws is not that of an optimiser step.
    """

    def __init__(self, *args: Any, draws: Draws, mixture: Any = None, **settings: Any) -> None:
        """Make the trainer, and keep the state of the draws in its checkpoints."""
        super().__init__(*args, **settings)
        arguments = self.args
        micro, ranks = arguments.train_batch_size, arguments.world_size
        expected = micro * ranks * arguments.gradient_accumulation_steps
        if draws.batch_size != expected:
            raise ValueError(
                f"`batch_size` of the draws must be {expected}: {micro} a device, {ranks} ranks, "
                f"{arguments.gradient_accumulation_steps} micro-batches. Got {draws.batch_size}."
            )
        if arguments.max_steps <= 0:
            raise ValueError(
                "`max_steps` must be set in the training arguments, since draws have no end. "
                f"Got {arguments.max_steps}."
            )
        self.draws = draws
        parts = {"draws": draws} if mixture is None else {"mixture": mixture, "draws": draws}
        state_callback(self).add(**parts)

    def get_train_dataloader(self) -> Any:
        """Return the loader, with random numbers of its own.

        A loader takes a seed for its workers when it starts. Taken from the numbers that
        dropout draws, it would give a resumed run other masks than one that was not stopped.
        """
        loader = super().get_train_dataloader()
        inner = getattr(loader, "base_dataloader", loader)  # inside that of accelerate
        inner.generator = torch.Generator().manual_seed(self.args.seed)
        return loader

    def _get_train_sampler(self, train_dataset: Any = None) -> DrawSampler:
        """Return the draws as a sampler; one epoch is the whole run."""
        return DrawSampler(self.draws, num_batches=self.args.max_steps)
