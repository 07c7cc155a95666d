"""ODM: a bandit that trains on the domains where the loss is still high.

Letters: ``m`` domains, ``n`` examples of a training batch.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from scipy.special import softmax

from projections import check_between
from selection.mixtures.batch_sums import BatchSums
from selection.mixtures.mirror import check_finite
from selection.mixtures.recorded import RecordedMixture


class ODM(RecordedMixture):
    r"""Online data mixing: Exp3 with the loss of a domain as its reward.

    At move :math:`t`, with :math:`\epsilon_t = \min(1/m, \sqrt{\ln m / (m t)})` and rewards
    :math:`\hat R_j \leftarrow \alpha \hat R_j + (1 - \alpha) L_j / w_j` of the domains in
    the batch, the weights are
    :math:`w_j = (1 - m \epsilon_t) \, \mathrm{softmax}(\epsilon_{t-1} \hat R)_j + \epsilon_t`.
    It needs the losses of the training step and nothing else.

    Differences from the published algorithm: a batch may hold several domains, each of which
    is then rewarded.

    Args:
        names: Names of the domains.
        smoothing: :math:`\alpha` in ``[0, 1]``.
        weights: Weights until the first move; default: uniform.
        every: Steps between two moves; losses between them are averaged.

    Example:
        >>> mixture = ODM(("easy", "hard"))
        >>> for step in range(20):
        ...     mixture.update(step, domains=np.array([0, 1]), losses=np.array([1.0, 4.0]))
        >>> easy, hard = mixture.weights
        >>> bool(hard > easy)
        True

    References:
        Albalak et al., Efficient online data mixing for language model pre-training
        (2023), arXiv:2312.02406, Algorithm 1.
    """

    def __init__(
        self,
        names: Sequence[str],
        *,
        smoothing: float = 0.9,
        weights: Sequence[float] | None = None,
        every: int = 1,
    ) -> None:
        """Begin without rewards."""
        super().__init__(names, weights, every=every)
        check_between("smoothing", smoothing, 0, 1)
        self._smoothing = smoothing
        self._rewards = np.zeros(len(self.names))
        self._sums = BatchSums(self.names)

    def due(self, step: int) -> bool:
        """Always: losses of every step count."""
        return True

    def update(
        self,
        step: int,
        *,
        domains: Int[np.ndarray, " n"] | None = None,
        losses: Float[np.ndarray, " n"] | None = None,
    ) -> None:
        """Take in the losses of a step, and move the weights if it is time.

        Args:
            step: Number of the step that was just taken.
            domains: The domain of each example, as its position in ``names``.
            losses: Mean loss a token of each example.

        Raises:
            NonFiniteError: The loss of a domain is not finite.
            ValueError: The domains or the losses are missing, or do not fit.
        """
        self._sums.add(domains, losses)
        if not super().due(step):
            return
        means, known = self._sums.means()
        check_finite(means, names=self.names, known=known)
        reward = means[known] / np.maximum(self.weights[known], np.finfo(float).tiny)
        kept = self._smoothing
        self._rewards[known] = kept * self._rewards[known] + (1 - kept) * reward
        self._record(step, exp3_weights(self._rewards, self.num_moves + 1), means)

    def state_dict(self) -> dict[str, Any]:
        """Return all that changes during training, as plain values that JSON can hold."""
        own = {"rewards": self._rewards.tolist(), "sums": self._sums.to_json()}
        return {**super().state_dict(), **own}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state of a mixture of the same domains."""
        super().load_state_dict(state)
        self._rewards = np.array(state["rewards"], dtype=float)
        self._sums.from_json(state["sums"])


def exp3_weights(rewards: Float[np.ndarray, " m"], move: int) -> Float[np.ndarray, " m"]:
    r"""Return the weights of Exp3 after move number ``move``, counted from 1.

    Example:
        >>> exp3_weights(np.array([0.0, 0.0, 6.0]), 1).round(3)
        array([0.333, 0.333, 0.333])
        >>> exp3_weights(np.array([0.0, 0.0, 6.0]), 100).round(3)
        array([0.298, 0.298, 0.403])
    """
    count = len(rewards)
    explored = _exploration(count, move)
    return (1 - count * explored) * softmax(_exploration(count, move - 1) * rewards) + explored


def _exploration(count: int, move: int) -> float:
    """Return the share that every domain keeps, which falls over the moves."""
    if move < 1:
        return 1 / count
    return min(1 / count, float(np.sqrt(np.log(count) / (count * move))))
