"""DGA: a mixture that follows the alignment of gradients with a target's.

Letters: ``m`` domains.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from projections import Task, check_one_of
from selection.mixtures.alignments import ALIGNMENTS
from selection.mixtures.domain_gradients import DomainGradients
from selection.mixtures.mirror import MirrorDescent
from selection.mixtures.recorded import RecordedMixture

STEP = MirrorDescent(step_size=1.0, average=0.1, floor=1e-3)
STEP_WITHOUT_AVERAGE = MirrorDescent(step_size=1.0, floor=1e-3)


class DGA(RecordedMixture):
    r"""Dynamic gradient alignment: train more on domains that help the target now.

    Every few steps, one batch of each domain and one of the target give the alignments
    :math:`a_j = \langle \nabla L_j(\theta), \nabla L_*(\theta) \rangle`, and the weights take
    one step of mirror descent along them, averaged over time. To first order, that is
    the mixture whose next step lowers the target's loss most. With batches of :math:`b` rows
    beside a training batch of :math:`B`, it costs :math:`(m + 1) b / (T B)` of a step, and the
    memory of one gradient: 13 % for 12 domains with ``b = B`` and ``T = 100``, 3 % with a quarter
    of that. Small batches are noisy; averaging over moves takes most of that away.

    Differences from the paper: logarithms are kept, with a floor; alignments are cosines
    unless asked otherwise, since the unit of the plain ones drifts over training.

    Args:
        task: The model that is being trained, and what its loss means.
        domains: Rows of each domain by name, or decks that draw them.
        target: A few rows of what the model is to be good at.
        every: Steps ``T`` between two moves.
        batch_size: Rows ``b`` of each domain, and of the target, at a move.
        rule: The mirror step; default: ``step_size=1, average=0.1, floor=0.001``.
        alignment: ``"cosine"``; ``"mean-norm"``, which keeps the say of large gradients;
            or ``"plain"``, as in the paper.
        layers: Patterns of the components whose gradients count; default: all.
        weights: Weights at the start; default: uniform.
        seed: Decides which rows are drawn.

    Example:
        >>> import torch
        >>> from projections import Regression
        >>> task = Regression(torch.nn.Linear(1, 1))
        >>> rising = [(torch.tensor([x]), torch.tensor([9 * x])) for x in (1.0, 2.0)]
        >>> falling = [(x, -y) for x, y in rising]
        >>> mixture = DGA(task, {"up": rising, "down": falling}, rising, every=1, seed=0)
        >>> mixture.update(0)
        >>> up, down = mixture.weights
        >>> bool(up > down)
        True

    References:
        Fan et al., Dynamic gradient alignment for online data mixing (2024),
        arXiv:2410.02498, Algorithm 1.
    """

    def __init__(
        self,
        task: Task,
        domains: Mapping[str, Any],
        target: Any,
        *,
        every: int = 100,
        batch_size: int = 4,
        rule: MirrorDescent = STEP,
        alignment: str = "cosine",
        layers: str | Sequence[str] | None = None,
        weights: Sequence[float] | None = None,
        seed: int,
    ) -> None:
        """Check the arguments."""
        super().__init__(tuple(domains), weights, rule=rule, every=every)
        check_one_of("alignment", alignment, ALIGNMENTS)
        self._align = ALIGNMENTS[alignment]
        self._gradients = DomainGradients(
            task, domains, target, batch_size=batch_size, layers=layers, seed=seed
        )

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
        self._move(step, self._align(products), products.known)
