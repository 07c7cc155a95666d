r"""Group DRO: train for the worst of several groups.

Letters: ``n`` examples, ``k`` groups.
"""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from projections import check_at_least
from selection.history import History
from selection.ranks import num_ranks, sum_over_ranks
from selection.reweighting.example_losses import at_least_float32


class GroupDRO:
    r"""Weigh groups by exponentiated gradient ascent on their losses, in log space.

    With the mean loss :math:`L_g` of each group in the batch, :math:`\log q_g \leftarrow \log q_g +
    \eta (L_g + C / \sqrt{n_g})`, normalised; an example of group :math:`g` has the weight
    :math:`q_g` over the number of its group in the batch.

    Differences from the published code: :math:`q` is kept as logarithms, so that no group is
    lost for good; weights are normalised over the groups that are in the batch, so that
    they sum to one; under `torch.distributed` the 2k sums of all ranks count.

    Args:
        num_groups: Number ``k`` of groups, which are numbered from 0.
        step_size: :math:`\eta`.
        adjustment: :math:`C`, for small groups that are over-fitted.
        group_sizes: Examples of each group in the training set, which the adjustment needs.
        group: The process group; all ranks by default.

    Example:
        >>> dro = GroupDRO(num_groups=2, step_size=1.0)
        >>> loss = dro(torch.tensor([0.0, 0.0, 1.0]), torch.tensor([0, 0, 1]))
        >>> round(float(loss), 3), dro.weights
        (0.731, tensor([0.2689, 0.7311]))

    References:
        Sagawa et al., Distributionally robust neural networks for group shifts (ICLR 2020),
        arXiv:1911.08731, Alg. 1, with its group adjustments.
    """

    def __init__(
        self,
        *,
        num_groups: int,
        step_size: float = 0.01,
        adjustment: float = 0.0,
        group_sizes: Int[Tensor, " k"] | None = None,
        group: Any = None,
    ) -> None:
        """Start uniform."""
        check_at_least("num_groups", num_groups, 1)
        check_at_least("step_size", step_size, 0)
        check_at_least("adjustment", adjustment, 0)
        if adjustment > 0 and (group_sizes is None or len(group_sizes) != num_groups):
            raise ValueError(
                f"`group_sizes` must hold {num_groups} sizes, since `adjustment` is set. "
                f"Got {None if group_sizes is None else len(group_sizes)}."
            )
        self.step_size = step_size
        self.group = group
        self.step = 0
        self.history = History()
        self._logs = torch.full((num_groups,), 1 / num_groups, dtype=torch.float64).log()
        sizes = torch.ones(num_groups) if group_sizes is None else group_sizes
        self._adjustment = adjustment / sizes.double().sqrt()

    @property
    def weights(self) -> Float[Tensor, " k"]:
        """The weight of each group; they sum to one."""
        return self._logs.softmax(0).float()

    def __call__(self, losses: Float[Tensor, " n"], groups: Int[Tensor, " _"]) -> Tensor:
        """Update the weights of the groups and return the loss of the batch.

        Args:
            losses: One loss an example. Those that are not finite are left out.
            groups: The group of each.

        Returns:
            The weighted sum of the own losses, times the number of ranks.

        Raises:
            ValueError: A group is out of range, or they are not one a loss.
        """
        num_groups = len(self._logs)
        if len(groups) != len(losses):
            raise ValueError(
                f"`groups` must have one entry a loss, {len(losses)}. Got {len(groups)}."
            )
        if len(groups) and not 0 <= int(groups.min()) <= int(groups.max()) < num_groups:
            raise ValueError(
                f"`groups` must be in [0, {num_groups - 1}]. Got {int(groups.min())} to "
                f"{int(groups.max())}."
            )
        finite = losses.detach().isfinite()
        kept = torch.where(finite, at_least_float32(losses), 0)
        sums = torch.zeros(2, num_groups, dtype=torch.float64, device=losses.device)
        sums[0].index_add_(0, groups, kept.detach().double())
        sums[1].index_add_(0, groups, finite.double())
        totals, counts = sum_over_ranks(sums, self.group).cpu()
        self._ascend(totals, counts)
        present = (counts > 0) * self._logs.exp()
        shares = present / present.sum().clamp(min=1e-300) / counts.clamp(min=1)
        weights = shares.to(kept)[groups] * finite
        return (kept * weights).sum() * num_ranks(self.group)

    def _ascend(self, totals: Float[Tensor, " k"], counts: Float[Tensor, " k"]) -> None:
        """Move the weights; those of groups that are absent keep their proportion."""
        means = totals / counts.clamp(min=1) + self._adjustment
        self._logs = (self._logs + self.step_size * means * (counts > 0)).log_softmax(0)
        numbers = {f"group {place}": weight for place, weight in enumerate(self.weights)}
        self.history.add(self.step, numbers)
        self.step += 1

    def state_dict(self) -> dict[str, Any]:
        """Return step, log weights and history, as plain values that JSON keeps."""
        return {
            "step": self.step,
            "logs": self._logs.tolist(),
            "history": self.history.state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state.

        Raises:
            ValueError: It has another number of groups.
        """
        if len(state["logs"]) != len(self._logs):
            raise ValueError(
                f"the state must have {len(self._logs)} groups. Got {len(state['logs'])}."
            )
        self.step = int(state["step"])
        self._logs = torch.tensor(state["logs"], dtype=torch.float64)
        self.history = History.from_state(state["history"])
