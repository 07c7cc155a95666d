"""Mixtures of a few distributions over many domains.

Letters: ``m`` domains, ``b`` distributions.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from projections import Table
from selection.mixtures.base import OnlineMixture
from selection.mixtures.decks import MixedDeck
from selection.mixtures.mirror import check_weights
from selection.mixtures.recorded import check_names


class OverDistributions:
    r"""Weights of many domains from an online mixture of a few distributions over them.

    With thousands of domains, a batch of each is out of reach. Take instead :math:`b`
    distributions :math:`P` over the domains (cluster histograms of other tasks' data, say),
    let a mixture weigh *those*, on rows that `distribution_decks` draws, and train on
    :math:`w = P^T v`. The cost of a move is that of ``b`` domains, whatever ``m`` is.

    Args:
        inner: The mixture of the distributions.
        names: Names of the domains.
        distributions: One a row, in the order of the inner mixture's names.

    Example:
        >>> from selection import ODM
        >>> inner = ODM(("text", "code"))
        >>> OverDistributions(inner, ("a", "b", "c"), [[0.5, 0.5, 0], [0, 0, 1]]).weights
        array([0.25, 0.25, 0.5 ])

    References:
        Fan et al., Dynamic gradient alignment for online data mixing (2024),
        arXiv:2410.02498, Sec. on distribution reweighting.
    """

    def __init__(
        self,
        inner: OnlineMixture,
        names: Sequence[str],
        distributions: Sequence[Sequence[float]] | Float[np.ndarray, "b m"],
    ) -> None:
        """Check the distributions."""
        self.inner = inner
        self.names = check_names(names)
        given = np.asarray(distributions, dtype=float)
        shape = (len(inner.names), len(self.names))
        if given.shape != shape:
            raise ValueError(f"`distributions` must have the shape {shape}. Got {given.shape}.")
        self._distributions = np.stack([check_weights(row) for row in given])

    @property
    def weights(self) -> Float[np.ndarray, " m"]:
        """The share of each domain now."""
        return self.inner.weights @ self._distributions

    @property
    def history(self) -> Table:
        """The moves of the inner mixture, of which the domains' weights follow."""
        return self.inner.history

    def due(self, step: int) -> bool:
        """Tell whether the inner mixture is due."""
        return self.inner.due(step)

    def update(
        self,
        step: int,
        *,
        domains: Int[np.ndarray, " n"] | None = None,
        losses: Float[np.ndarray, " n"] | None = None,
    ) -> None:
        """Update the inner mixture, which must draw its own batches."""
        self.inner.update(step)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the inner mixture."""
        return self.inner.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state of a mixture of the same distributions."""
        self.inner.load_state_dict(state)


def distribution_decks(
    domains: Mapping[str, Any],
    names: Sequence[str],
    distributions: Sequence[Sequence[float]] | Float[np.ndarray, "b m"],
    *,
    seed: int,
) -> dict[str, MixedDeck]:
    """Return decks that draw from each distribution over the domains.

    Args:
        domains: Rows of each domain.
        names: Names of the distributions.
        distributions: One a row.
        seed: Decides which rows are drawn.
    """
    rows = list(domains.values())
    return {
        name: MixedDeck(rows, check_weights(np.asarray(row, dtype=float)), name=name, seed=seed)
        for name, row in zip(names, distributions, strict=True)
    }
