"""DoReMi: weights of domains by how far a proxy is behind a reference model.

Letters: ``m`` domains, ``n`` examples of a training batch, ``t`` tokens.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from projections import CausalLM
from selection.mixtures.batch_sums import BatchSums
from selection.mixtures.mirror import MirrorDescent
from selection.mixtures.recorded import FixedMixture, RecordedMixture
from selection.ranks import num_ranks, sum_over_ranks
from selection.reweighting.example_losses import token_losses

STEP = MirrorDescent(step_size=1.0, floor=1e-3)


class DoReMi(RecordedMixture):
    r"""Domain reweighting with minimax optimisation, on a proxy model.

    A reference model is trained on the domains as they are. The proxy is then trained on
    the loss that `loss` returns: the signal of a domain is the mean over its tokens of
    :math:`\max(\ell_{proxy} - \ell_{reference}, 0)`, its weight :math:`w_j` moves by one step of
    mirror descent, and its tokens count :math:`w_j / b_j`, where :math:`b_j` is its share of
    the examples. The result, `result`, is the mean of the weights over the run; the
    real model is trained on examples drawn by it. A domain that is not in a batch keeps
    the last signal it had.

    ``weights`` scale the loss and are not for drawing examples: draw them by ``base``.

    Args:
        task: The proxy that is being trained.
        reference: The trained reference model, of the same tokens.
        names: Names of the domains.
        rule: The mirror step; as published: ``step_size=1``, ``floor`` 0.001 or 0.0001.
        base: Shares :math:`b_j` by which examples are drawn; default: uniform. The weights
            start there too.

    References:
        Xie et al., DoReMi: Optimizing data mixtures speeds up language model pretraining
        (NeurIPS 2023), arXiv:2305.10429, Algorithm 1.
    """

    def __init__(
        self,
        task: CausalLM,
        reference: CausalLM,
        names: Sequence[str],
        *,
        rule: MirrorDescent = STEP,
        base: Sequence[float] | None = None,
    ) -> None:
        """Check the arguments."""
        super().__init__(names, base, rule=rule)
        if task.model is reference.model:
            raise ValueError(
                "`reference` must be another model than the proxy in `task`, trained before and "
                "left as it is. Got the same one twice."
            )
        self._task, self._reference = task, reference
        self._base = self.weights
        self._last = np.full(len(self.names), np.nan)

    @property
    def result(self) -> FixedMixture:
        """The mean of the weights over the run."""
        return FixedMixture(self.names, self.mean_weights)

    def loss(self, step: int, batch: Any, domains: Int[np.ndarray, " n"]) -> Float[Tensor, ""]:
        """Move the weights by what a batch shows, and return its loss for backward.

        Args:
            step: Number of the step that is being taken.
            batch: A batch of the task, of this rank.
            domains: The domain of each example, as its position in ``names``.

        Returns:
            The weighted mean loss a token; over ranks it averages to that of all of them.

        Raises:
            NonFiniteError: A loss is not finite.
        """
        self._reference.model.eval()
        losses, counted = token_losses(*self._task.logits_and_labels(batch))
        with torch.no_grad():
            reference, _ = token_losses(*self._reference.logits_and_labels(batch))
            excess = ((losses - reference).clamp(min=0) * counted).sum(1)
            num_tokens = counted.sum(1)
        sums = BatchSums(self.names)
        per_token = (excess / num_tokens.clamp(min=1)).double().cpu().numpy()
        sums.add(domains, per_token, num_tokens.double().cpu().numpy())
        means, known = sums.means()
        self._last = np.where(known, means, self._last)
        self._move(step, self._last, known | np.isfinite(self._last))
        return self._weighted(losses, counted, domains)

    def state_dict(self) -> dict[str, Any]:
        """Return all that changes during training, as plain values that JSON can hold."""
        last = [None if np.isnan(value) else value for value in self._last.tolist()]
        return {**super().state_dict(), "last": last}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state of a mixture of the same domains."""
        super().load_state_dict(state)
        self._last = np.array([np.nan if v is None else v for v in state["last"]], dtype=float)

    def _weighted(
        self,
        losses: Float[Tensor, "n t"],
        counted: Bool[Tensor, "n t"],
        domains: Int[np.ndarray, " n"],
    ) -> Float[Tensor, ""]:
        """Return the mean loss a token, a domain's tokens counting its weight over its share."""
        shares = torch.as_tensor((self.weights / self._base)[domains]).to(losses)
        factors = shares[:, None] * counted
        return (factors * losses).sum() / sum_over_ranks(factors.sum()) * num_ranks()
