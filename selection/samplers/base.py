"""The seam of samplers: from the number of a batch to the rows in it.

Letters: ``n`` rows of a batch.

A batch here is what one optimiser step consumes, over all ranks and micro-batches. It is a
pure function of the seed, the number of the batch, and the weights that were set before it,
so a run that goes on draws what it would have drawn.
"""

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int

LAG = 32  # batches; more than most loaders read ahead


def check_seed(state: Mapping[str, Any], seed: int) -> None:
    """Refuse a state of draws with another seed, whose rows are others."""
    if state["seed"] != seed:
        raise ValueError(
            f"the state must be of draws with the seed {seed}. Got one of {state['seed']}. Make "
            "the draws with that seed."
        )


@runtime_checkable
class Draws(Protocol):
    """Rows by batch."""

    @property
    def batch_size(self) -> int:
        """Number ``n`` of rows of a batch, over all ranks."""
        ...

    @property
    def consumed(self) -> int:
        """Number of batches that were consumed."""
        ...

    def positions(self, batch: int) -> Int[np.ndarray, " n"]:
        """Return where the rows of a batch stand in the data."""
        ...

    def advance(self) -> None:
        """Count one batch as consumed; call it after each optimiser step."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return what has to be known to go on, as plain values that JSON keeps."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on after the batches that a state counts as consumed."""
        ...
