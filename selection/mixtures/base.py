"""The seams of mixtures: what samplers read, and what a training loop calls.

Letters: ``m`` domains, ``n`` examples of a training batch.

A mixture gives each domain its share of the training examples. Static mixtures are decided
before training; online ones move while a model trains. Whoever trains does three things:

    weights = mixture.weights                    before each batch: which domains to draw from
    if mixture.due(step):                        after the optimizer's step number `step`
        mixture.update(step, domains=..., losses=...)

What a mixture needs besides (a model, batches of its own, the hooks that read gradients
off the training batch) it was given when it was made. All ranks of a distributed run make
the same calls; the weights are then the same on all of them.
"""

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int

from projections import Table


@runtime_checkable
class Mixture(Protocol):
    """Shares of named domains."""

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the ``m`` domains."""
        ...

    @property
    def weights(self) -> Float[np.ndarray, " m"]:
        """The share of each domain now, in float64 with the sum 1; the caller's own copy."""
        ...

    @property
    def history(self) -> Table:
        """The moves so far, one a row: ids are steps, columns have the domains on axis 1.

        ``"weights"`` are the weights after the move, ``"signal"`` is what moved them, with
        NaN for domains that it did not know of. The first row is the start, at step -1.
        """
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return all that changes during training, as plain values that JSON can hold."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state of a mixture of the same domains."""
        ...


@runtime_checkable
class OnlineMixture(Mixture, Protocol):
    """A mixture that moves while a model trains."""

    def due(self, step: int) -> bool:
        """Tell whether `update` is to be called after step number ``step``, the first being 0."""
        ...

    def update(
        self,
        step: int,
        *,
        domains: Int[np.ndarray, " n"] | None = None,
        losses: Float[np.ndarray, " n"] | None = None,
    ) -> None:
        """Take in what a training step saw, and move the weights if it is time.

        Args:
            step: Number of the optimizer's step that was just taken.
            domains: The domain of each example of this rank's batch, as its position in
                ``names``; mixtures that draw batches of their own do without.
            losses: Mean loss a token (or of the example) of each, from this step's forward;
                only mixtures that follow losses need them.
        """
        ...
