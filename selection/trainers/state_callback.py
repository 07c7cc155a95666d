"""What runs beside a Hugging Face `Trainer`: mixtures move, draws advance, states are kept.

States travel inside ``trainer_state.json`` of each checkpoint, wherever that lies.
"""

from typing import Any

import numpy as np
from jaxtyping import Float, Int
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from projections import StoreMismatchError
from selection.mixtures import OnlineMixture

NAME = "StateCallback"


class StateCallback(TrainerCallback, ExportableState):
    """Keep parts of a training run in its checkpoints, and move them after each step.

    After each optimiser step, a mixture that is due is updated, with the domains of the
    examples if the draws know them and their losses if a `Reweighting` saw them; then draws
    advance. When a run is resumed, every part goes on from the checkpoint.

    Args:
        parts: Objects with ``state_dict`` and ``load_state_dict``, by any name: a
            `Reweighting`, a `GroupDRO`, a mixture, draws, a stream.

    Raises:
        TypeError: A part has no state.

    Example:
        >>> from selection import LossReweighter, Reweighting
        >>> callback = StateCallback(reweighting=Reweighting(LossReweighter()))
        >>> callback.state()["attributes"]["states"]["reweighting"]["step"]
        0
    """

    def __init__(self, **parts: Any) -> None:
        """Keep the parts."""
        self.parts: dict[str, Any] = {}
        self.add(**parts)

    def add(self, **parts: Any) -> None:
        """Keep further parts.

        Raises:
            TypeError: A part has no state.
        """
        for name, part in parts.items():
            if not hasattr(part, "state_dict") or not hasattr(part, "load_state_dict"):
                raise TypeError(
                    f"`{name}` must have `state_dict` and `load_state_dict`. "
                    f"Got {type(part).__name__}."
                )
        self.parts.update(parts)

    def state(self) -> dict[str, Any]:
        """Return the states of all parts, in the form in which a `Trainer` saves them."""
        states = {name: part.state_dict() for name, part in self.parts.items()}
        return {"args": {}, "attributes": {"states": states}}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Check the settings; go on from the checkpoint where there is one.

        Raises:
            ValueError: The settings would restore or skip twice.
            StoreMismatchError: The checkpoint does not have the states of these parts.
        """
        if args.restore_callback_states_from_checkpoint:
            raise ValueError(
                "`restore_callback_states_from_checkpoint` must be False: it would replace this "
                "callback by one without its parts. This callback restores itself."
            )
        if self._draws() and not args.ignore_data_skip:
            raise ValueError(
                "`ignore_data_skip` must be True in the training arguments: the draws go on from "
                "the checkpoint themselves, and the trainer would skip their batches again."
            )
        if state.global_step > 0:
            self._restore(state)
        # NOTE: the trainer expects the entry when it saves, and makes it at a fresh start only.
        saved: Any = state.stateful_callbacks
        saved[NAME] = self.state()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Move the mixtures that are due, then advance the draws."""
        step = state.global_step - 1
        for part in self.parts.values():
            if isinstance(part, OnlineMixture) and part.due(step):
                domains, losses = self._domains(args, step), self._losses()
                if domains is not None and losses is not None:
                    known = np.isfinite(losses)
                    domains, losses = domains[known], losses[known]
                part.update(step, domains=domains, losses=losses)
        for part in self._draws():
            part.advance()

    def _restore(self, state: TrainerState) -> None:
        """Load the states of a checkpoint."""
        saved: Any = state.stateful_callbacks
        states = saved[NAME]["attributes"]["states"] if NAME in saved else {}
        if set(states) != set(self.parts):
            raise StoreMismatchError(
                f"the checkpoint at step {state.global_step} must have the states of "
                f"{sorted(self.parts)}. It has those of {sorted(states)}. Go on with the same "
                "parts under the same names, or start anew."
            )
        for name, part in self.parts.items():
            part.load_state_dict(states[name])

    def _draws(self) -> list[Any]:
        """Return the parts that count consumed batches."""
        return [part for part in self.parts.values() if hasattr(part, "advance")]

    def _domains(self, args: TrainingArguments, step: int) -> Int[np.ndarray, " n"] | None:
        """Return the domains of this rank's examples, in the order of its micro-batches."""
        known = [part for part in self._draws() if hasattr(part, "domains")]
        if not known:
            return None
        parts = args.gradient_accumulation_steps
        shares = known[0].domains(step).reshape(parts, args.world_size, -1)
        return shares[:, args.process_index].reshape(-1)

    def _losses(self) -> Float[np.ndarray, " n"] | None:
        """Return the losses of this rank's examples."""
        for part in self.parts.values():
            losses = getattr(part, "own_losses", None)
            if losses is not None:
                return losses.double().cpu().numpy()
        return None
