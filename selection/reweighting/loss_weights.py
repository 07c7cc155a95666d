r"""Weights of examples from their losses, as a pure function.

Letters: ``n`` examples, or tokens; all of one optimiser step, over micro-batches and ranks.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from projections import check_at_least
from selection.reweighting.example_losses import at_least_float32
from selection.reweighting.loss_curves import Curve, FencedRange, LossRange, linupper
from selection.reweighting.temperatures import Temperature, as_temperature


@dataclass(frozen=True)
class ExampleWeights:
    """Weights of the examples of one step, which sum to one.

    Args:
        values: One weight an example, float32 at least; 0 for what was left out.
        excluded: Which examples were left out because their loss is NaN or infinite.
        temperature: The temperature that was used; infinite in the warm-up.
        low: The low end of the range of losses.
        high: The high end.
    """

    values: Float[Tensor, " n"]
    excluded: Bool[Tensor, " n"]
    temperature: Float[Tensor, ""]
    low: Float[Tensor, ""]
    high: Float[Tensor, ""]

    @property
    def effective_size(self) -> Float[Tensor, ""]:
        r"""Effective number of examples, :math:`1 / \sum w_i^2`; 0 without weights."""
        return self.values.sum() / self.values.square().sum().clamp(min=1e-30)


@dataclass(frozen=True, kw_only=True)
class LossReweighter:
    r"""Weigh the examples of a step by their losses.

    :math:`w_i = e^{f_i / r} / \sum_j e^{f_j / r}` with the scores :math:`f` of a curve and the
    temperature :math:`r`; the largest ratio of two weights is :math:`e^{1/r}` for the curves
    with scores in ``[0, 1]``. It solves :math:`\max_w \sum w_i f_i - r\, KL(w \| 1/n)`.

    Differences from the published code: all losses of the optimiser step count, whatever the
    number of micro-batches, ranks and nodes; `uniform` is uniform; the range is cut where
    outliers begin (`full_range` is the published one); a loss that is not finite has the
    weight 0 and is named in the result.

    Args:
        curve: From losses and their range to scores: `linupper`, `quadratic`, `extremes`,
            `upper`, `kl_dro`, `uniform`, or a function of the same arguments.
        temperature: A number, or a schedule.
        loss_range: Which losses count as usual.
        warmup: Number of steps with uniform weights at the start.

    Example:
        >>> reweighter = LossReweighter(curve=linupper, temperature=1.0)
        >>> reweighter.weights(torch.arange(5.0)).values
        tensor([0.0926, 0.1526, 0.2516, 0.2516, 0.2516])

    References:
        Sow et al., Dynamic loss-based sample reweighting for improved large language model
        pretraining (ICLR 2025), arXiv:2502.06733.
    """

    curve: Curve = linupper
    temperature: float | Temperature = 1.0
    loss_range: LossRange = FencedRange()  # noqa: RUF009  frozen
    warmup: int = 0

    def __post_init__(self) -> None:
        """Check the arguments."""
        as_temperature(self.temperature)
        check_at_least("warmup", self.warmup, 0)

    def weights(self, losses: Float[Tensor, " n"], *, step: int | None = None) -> ExampleWeights:
        """Return the weights of one step.

        Args:
            losses: The losses of all examples of the step. Their gradient is not followed.
            step: Number of the step, which decides on warm-up and temperature. By default
                the first after the warm-up.

        Returns:
            Weights in the order of the losses. They sum to one, and are all 0 where no loss
            is finite.
        """
        losses = at_least_float32(losses.detach())
        finite = losses.isfinite()
        usual = losses[finite]
        step = self.warmup if step is None else step
        nan = losses.new_tensor(torch.nan)
        if not len(usual):
            return ExampleWeights(torch.zeros_like(losses), ~finite, nan, nan, nan)
        low, high = self.loss_range(usual)
        scores = self._scores(usual, low, high)
        temperature = self._temperature(scores, step)
        values = torch.zeros_like(losses)
        values[finite] = ((scores - scores.max()) / temperature).softmax(0)
        return ExampleWeights(values, ~finite, temperature, low, high)

    def _scores(
        self, losses: Float[Tensor, " n"], low: Float[Tensor, ""], high: Float[Tensor, ""]
    ) -> Float[Tensor, " n"]:
        """Return the scores of the curve, checked by their shape."""
        scores = self.curve(losses, low, high)
        if scores.shape != losses.shape:
            raise ValueError(
                f"`curve` must return one score a loss, {tuple(losses.shape)}. "
                f"Got {tuple(scores.shape)}."
            )
        return scores

    def _temperature(self, scores: Float[Tensor, " n"], step: int) -> Float[Tensor, ""]:
        """Return the temperature of a step: infinite in the warm-up."""
        if step < self.warmup:
            return scores.new_tensor(torch.inf)
        chosen = as_temperature(self.temperature)(scores, step - self.warmup)
        return torch.as_tensor(chosen, dtype=scores.dtype, device=scores.device)
