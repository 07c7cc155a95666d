"""Which domain each draw comes from, when a mixture says how much of each there is.

Letters: ``n`` rows of a batch, ``m`` domains.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from projections import check_at_least
from selection.keyed import keyed_uniforms
from selection.mixtures import Mixture
from selection.samplers.base import LAG, check_seed
from selection.samplers.timeline import Timeline


class DomainDraws:
    """Draw domains by the weights of a mixture, and number the draws of each.

    Call `advance` after each optimiser step, once the mixture was updated: it takes in the
    weights of then, for the batches from ``lag`` later on.

    Args:
        mixture: The mixture.
        batch_size: Rows of an optimiser step, over all ranks.
        seed: Seed of the draws.
        lag: Batches between a move of the mixture and the first that is drawn with it.

    Example:
        >>> from selection import FixedMixture
        >>> draws = DomainDraws(FixedMixture(("a", "b"), [0.9, 0.1]), batch_size=5, seed=1)
        >>> draws.batch(0)
        (array([0, 1, 1, 0, 0]), array([0, 0, 1, 1, 2]))
    """

    def __init__(self, mixture: Mixture, *, batch_size: int, seed: int, lag: int = LAG) -> None:
        """Start with the weights that the mixture has now."""
        check_at_least("batch_size", batch_size, 1)
        self.mixture = mixture
        self.batch_size = batch_size
        self.seed = seed
        self.timeline = Timeline(mixture.weights, lag=lag)
        zeros = np.zeros(len(mixture.names), dtype=np.int64)
        self._base = (0, zeros)  # a batch, and the draws of each domain before it
        self._next = self._base

    def batch(self, batch: int) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " n"]]:
        """Return the domain of each row of a batch, and its number among all of that domain.

        Raises:
            ValueError: The batch was consumed before the state that this run goes on from.
        """
        if batch < self._next[0]:
            self._next = self._base
        if batch < self._next[0]:
            raise ValueError(
                f"`batch` must be at least {self._next[0]}, where this run went on. Got {batch}. "
                "A trainer that skips batches itself must not: set `ignore_data_skip=True`."
            )
        while self._next[0] < batch:
            self._draw()
        return self._draw()

    def domains(self, batch: int) -> Int[np.ndarray, " n"]:
        """Return the domain of each row of a batch, by its place among the names."""
        return self._domains(batch, self.timeline.look(batch))

    def advance(self) -> None:
        """Count one batch as consumed, and take in the weights of the mixture."""
        batch, before = self._base
        counts = np.bincount(self.domains(batch), minlength=len(before))
        self._base = (batch + 1, before + counts)
        self.timeline.advance()
        weights = self.mixture.weights
        if not np.array_equal(weights, self.timeline.newest):
            self.timeline.change(weights)

    def state_dict(self) -> dict[str, Any]:
        """Return seed, consumed batches, draws of each domain in them, and weights needed.

        The state of the mixture is not in it; keep it beside.
        """
        counts = self._base[1].tolist()
        return {"seed": self.seed, "counts": counts, **self.timeline.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on after the consumed batches of a state."""
        check_seed(state, self.seed)
        self.timeline.load_state_dict(state)
        self._base = (self.timeline.consumed, np.array(state["counts"], dtype=np.int64))
        self._next = self._base

    def _draw(self) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " n"]]:
        """Return the next batch, and count it as drawn."""
        batch, before = self._next
        domains = self._domains(batch, self.timeline.at(batch))
        chosen = domains[:, None] == np.arange(len(before))
        numbers = (before + chosen.cumsum(0) - 1)[np.arange(len(domains)), domains]
        self._next = (batch + 1, before + chosen.sum(0))
        return domains, numbers

    def _domains(self, batch: int, weights: Float[np.ndarray, " m"]) -> Int[np.ndarray, " n"]:
        """Return the domains of a batch for these weights."""
        numbers = np.arange(batch * self.batch_size, (batch + 1) * self.batch_size)
        ends = np.cumsum(weights)
        ends[np.flatnonzero(weights)[-1] :] = np.inf
        uniforms = keyed_uniforms(self.seed, "domain", numbers)
        return np.searchsorted(ends, uniforms, side="right")
