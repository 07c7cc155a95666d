"""States of one model: checkpoints along a training run, or models of several runs.

What is loaded for a while is taken back at the end, to the bit.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from projections import AdamState, StoreMismatchError, check_at_least, check_not_empty


@dataclass(frozen=True, kw_only=True)
class ModelCheckpoint:
    """A state of a model, and how far training stepped from it.

    Args:
        state: The ``state_dict()``; it may leave out what is frozen, as one of adapters does.
        learning_rate: Step size around it, which weighs it in a sum over checkpoints. Summed
            over the steps until the next checkpoint it gives influence in the unit of a run;
            averaged it only says how checkpoints compare.
        adam: The moments of Adam at it, for methods that ask for directions of Adam.

    Example:
        >>> model = nn.Linear(2, 1)
        >>> kept = ModelCheckpoint(state=copy_state(model), learning_rate=0.1)
        >>> _ = nn.init.zeros_(model.weight)
        >>> with at_checkpoint(model, kept.state):
        ...     bool((model.weight == 0).any())
        False
    """

    state: Mapping[str, Tensor] = field(repr=False)
    learning_rate: float = 1.0
    adam: AdamState | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        """Check the argument."""
        check_at_least("learning_rate", self.learning_rate, 0)


def copy_state(model: nn.Module) -> dict[str, Tensor]:
    """Return the state dict of a model, copied, so that training goes on without it."""
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


@contextmanager
def at_checkpoint(model: nn.Module, state: Mapping[str, Tensor]) -> Iterator[None]:
    """Load a state, and give the model its own back at the end.

    Args:
        model: The model.
        state: Its other state, with every trainable parameter.

    Raises:
        StoreMismatchError: The state is of another model.
    """
    check_state(model, state)
    kept = copy_state(model)
    try:
        model.load_state_dict(state, strict=False)
        yield
    finally:
        model.load_state_dict(kept)


def check_state(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Refuse a state that lacks a trainable parameter, or has what the model has not.

    Raises:
        StoreMismatchError: Names what is missing, unknown or of another shape.
    """
    own = model.state_dict()
    trained = {name for name, value in model.named_parameters() if value.requires_grad}
    missing = sorted((trained & set(own)) - set(state))
    unknown = sorted(set(state) - set(own))
    other = [name for name in state if name in own and state[name].shape != own[name].shape]
    if missing or unknown or other:
        raise StoreMismatchError(
            "a checkpoint must hold every trainable parameter of the model, and nothing else than "
            f"its state. Missing: {missing[:5]}; unknown: {unknown[:5]}; of another shape: "
            f"{other[:5]}. Take the `state_dict()` of the same model."
        )


def check_checkpoints(model: nn.Module, checkpoints: Sequence[ModelCheckpoint]) -> None:
    """Refuse an empty list of checkpoints, and any of another model, before the long work."""
    check_not_empty("checkpoints", len(checkpoints))
    for checkpoint in checkpoints:
        check_state(model, checkpoint.state)


def describe_checkpoints(checkpoints: Sequence[ModelCheckpoint]) -> list[dict[str, Any]]:
    """Return weights and moments of checkpoints as plain JSON values."""
    return [
        {
            "learning_rate": checkpoint.learning_rate,
            "adam": None if checkpoint.adam is None else checkpoint.adam.fingerprint,
        }
        for checkpoint in checkpoints
    ]
