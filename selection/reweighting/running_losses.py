"""Weights of micro-batches without a forward that comes first, from the losses of late.

Letters: ``n`` examples of one micro-batch, over all ranks.
"""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from projections import check_at_least
from selection.reweighting.loss_weights import ExampleWeights, LossReweighter
from selection.reweighting.running import Reweighting


class RunningReweighting(Reweighting):
    r"""Weigh each micro-batch among the last losses, its own included.

    The weight that an example has among the last :math:`M` losses, times :math:`M` over the number
    of examples of the step. So weights sum to one on average over steps, not in each, and
    a micro-batch of hard examples has a larger sum than one of easy examples: that is what
    weights that are normalised in each micro-batch lose. `Reweighting.window` is exact,
    and costs a forward.

    Args:
        reweighter: How to weigh.
        num_parts: Micro-batches of a step.
        num_remembered: Number :math:`M` of losses.
        group: The process group that shares each step; all ranks by default.
        record_every: Steps between two entries of the history.

    Example:
        >>> running = RunningReweighting(LossReweighter(), num_parts=2)
        >>> easy, hard = running(torch.tensor([1.0, 1.5])), running(torch.tensor([3.0, 4.0]))
        >>> round(float(hard), 3), running.step
        (2.429, 1)
    """

    needs_window = False

    def __init__(
        self,
        reweighter: LossReweighter,
        *,
        num_parts: int,
        num_remembered: int = 512,
        group: Any = None,
        record_every: int = 10,
    ) -> None:
        """Start at step 0, with no loss remembered."""
        check_at_least("num_parts", num_parts, 1)
        check_at_least("num_remembered", num_remembered, 1)
        super().__init__(reweighter, group=group, record_every=record_every)
        self.num_parts = num_parts
        self.num_remembered = num_remembered
        self._part = 0
        self._remembered: Float[Tensor, " _"] = torch.zeros(0)

    def state_dict(self) -> dict[str, Any]:
        """Return step, history and the remembered losses, as plain values."""
        losses = self._remembered.tolist()
        return {**super().state_dict(), "part": self._part, "remembered": losses}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state."""
        super().load_state_dict(state)
        self._part = int(state["part"])
        self._remembered = torch.tensor(state["remembered"], dtype=torch.float64)

    def _weigh(self, losses: Float[Tensor, " n"]) -> ExampleWeights:
        """Return the weights of one micro-batch."""
        finite = losses.isfinite()
        kept = max(self.num_remembered, len(losses))
        self._remembered = torch.cat([self._remembered.to(losses), losses[finite]])[-kept:]
        found = self.reweighter.weights(self._remembered, step=self.step)
        values = torch.zeros_like(losses)
        count = int(finite.sum())
        share = len(self._remembered) / max(count * self.num_parts, 1)
        values[finite] = found.values[len(self._remembered) - count :] * share
        return ExampleWeights(values, ~finite, found.temperature, found.low, found.high)

    def _record(self, found: ExampleWeights) -> None:
        """Write down the first micro-batch of a step."""
        if self._part == 0 or bool(found.excluded.any()):
            super()._record(found)

    def _count(self) -> None:
        """Go on to the next step after the last micro-batch."""
        self._part = (self._part + 1) % self.num_parts
        self.step += self._part == 0
