"""DoGE: weights of domains by how well their gradients generalise.

Letters: ``m`` domains.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from projections import Task
from selection.mixtures.alignments import Products, mean_norm
from selection.mixtures.domain_gradients import DomainGradients
from selection.mixtures.mirror import MirrorDescent
from selection.mixtures.recorded import FixedMixture, RecordedMixture

STEP = MirrorDescent(step_size=0.1, clip=(0.0, 5.0))


class DoGE(RecordedMixture):
    r"""Domain reweighting with generalisation estimation, on a proxy model.

    Without a target, the score of a domain is :math:`\langle g_j, \sum_{i \ne j} g_i \rangle`:
    how much training on it helps the others. With one it is
    :math:`\langle g_j, g_* \rangle`. Scores are divided by the mean of :math:`\|g_j\|`
    and clipped to ``[0, 5]``. Train a proxy on examples drawn by ``weights``; the result,
    `result`, is their mean over the run, with which the real model is trained.

    Differences from the published code: it leaves no domain out of its own sum, though it
    means to; it takes the proxy's step along :math:`\sum_j w_j g_j`, of which examples drawn by
    the weights are an estimate; there, the learning rate is part of the step size.

    Args:
        task: The proxy that is being trained, and what its loss means.
        domains: Rows of each domain by name, or decks that draw them.
        target: Rows of what the model is to be good at; without, at all domains.
        every: Steps between two moves.
        batch_size: Rows of each domain, and of the target, at a move.
        rule: The mirror step; its size is the learning rate over :math:`\mu`.
        layers: Patterns of the components whose gradients count; default: all.
        weights: Weights at the start; default: uniform.
        seed: Decides which rows are drawn.

    References:
        Fan, Pagliardini and Jaggi, DoGE: Domain reweighting with generalization estimation
        (ICML 2024), arXiv:2310.15393, Algorithm 1.
    """

    def __init__(
        self,
        task: Task,
        domains: Mapping[str, Any],
        target: Any | None = None,
        *,
        every: int = 1,
        batch_size: int = 8,
        rule: MirrorDescent = STEP,
        layers: str | Sequence[str] | None = None,
        weights: Sequence[float] | None = None,
        seed: int,
    ) -> None:
        """Check the arguments."""
        super().__init__(tuple(domains), weights, rule=rule, every=every)
        self._score = generalization_scores if target is None else target_scores
        self._gradients = DomainGradients(
            task, domains, target, batch_size=batch_size, layers=layers, seed=seed
        )

    @property
    def result(self) -> FixedMixture:
        """The mean of the weights over the run."""
        return FixedMixture(self.names, self.mean_weights)

    def update(
        self,
        step: int,
        *,
        domains: Int[np.ndarray, " n"] | None = None,
        losses: Float[np.ndarray, " n"] | None = None,
    ) -> None:
        """Compare gradients on fresh batches, and move the weights.

        Args:
            step: Number of the step that was just taken.
            domains: Not needed.
            losses: Not needed.

        Raises:
            NonFiniteError: The gradient of a domain is not finite.
        """
        products = self._gradients.products(self.num_moves)
        self._move(step, self._score(products), products.known)


def target_scores(products: Products) -> Float[np.ndarray, " m"]:
    r"""Return :math:`\langle g_j, g_* \rangle` over the mean of :math:`\|g_i\|`."""
    norm = mean_norm(products)
    return products.dots / norm if norm != 0 else np.zeros(len(products.dots))


def generalization_scores(products: Products) -> Float[np.ndarray, " m"]:
    r"""Return :math:`\langle g_j, \sum_{i \ne j} g_i \rangle` over the mean of :math:`\|g_i\|`.

    Args:
        products: Those with the sum of all domains as the target.

    Example:
        >>> domains = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
        >>> generalization_scores(Products.of(domains, domains.sum(0)))
        array([1., 1., 0.])
    """
    norm = mean_norm(products)
    scores = products.dots - products.sq_norms
    return scores / norm if norm != 0 else np.zeros(len(scores))
