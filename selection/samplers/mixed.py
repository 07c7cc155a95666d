"""Rows of one dataset, drawn by the domain of each as a mixture says.

Letters: ``n`` rows of a batch, ``m`` rows of the data.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from projections import DataError
from selection.mixtures import Mixture, RowDeck
from selection.samplers.base import LAG
from selection.samplers.domains import DomainDraws


class MixtureDraws:
    """Draw domains by a mixture, and of each its rows in random order, none twice in an epoch.

    A domain that ends begins again, in another order; the epochs of domains are apart.

    Args:
        mixture: The mixture. Its weights may move; what was drawn ahead stays.
        row_domains: The domain of each row of the data, by name.
        batch_size: Rows of an optimiser step, over all ranks.
        seed: Seed of domains and orders.
        lag: Batches between a move of the mixture and the first that is drawn with it.

    Raises:
        DataError: A domain of the mixture has no row, or a row has no domain of it.

    Example:
        >>> from selection import FixedMixture
        >>> mixture = FixedMixture(("code", "news"), [0.5, 0.5])
        >>> draws = MixtureDraws(mixture, ["news", "code", "code"], batch_size=4, seed=0)
        >>> draws.positions(0).tolist()
        [2, 0, 1, 0]
    """

    def __init__(
        self,
        mixture: Mixture,
        row_domains: Sequence[str],
        *,
        batch_size: int,
        seed: int,
        lag: int = LAG,
    ) -> None:
        """Find the rows of each domain."""
        self._draws = DomainDraws(mixture, batch_size=batch_size, seed=seed, lag=lag)
        domains = np.asarray(row_domains)
        rows = {name: np.flatnonzero(domains == name).tolist() for name in mixture.names}
        empty = [name for name, own in rows.items() if not own]
        unknown = sorted(set(domains.tolist()) - set(mixture.names))
        if empty or unknown:
            raise DataError(
                "`row_domains` must name a domain of the mixture in each row, and each domain "
                f"somewhere. Without a row: {empty}; not in the mixture: {unknown[:5]}."
            )
        self._decks = [
            RowDeck(own, name=f"training/{name}", seed=seed) for name, own in rows.items()
        ]

    @property
    def batch_size(self) -> int:
        """Number ``n`` of rows of a batch."""
        return self._draws.batch_size

    @property
    def consumed(self) -> int:
        """Number of batches that were consumed."""
        return self._draws.timeline.consumed

    def positions(self, batch: int) -> Int[np.ndarray, " n"]:
        """Return the rows of a batch."""
        domains, numbers = self._draws.batch(batch)
        pairs = zip(domains.tolist(), numbers.tolist(), strict=True)
        return np.array([self._decks[domain].draw(number, 1)[0] for domain, number in pairs])

    def domains(self, batch: int) -> Int[np.ndarray, " n"]:
        """Return the domain of each row of a batch, by its place among the names."""
        return self._draws.domains(batch)

    def advance(self) -> None:
        """Count one batch as consumed, and take in the weights of the mixture."""
        self._draws.advance()

    def state_dict(self) -> dict[str, Any]:
        """Return what the draws need to go on; the state of the mixture is kept beside it."""
        return self._draws.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on after the consumed batches of a state."""
        self._draws.load_state_dict(state)
