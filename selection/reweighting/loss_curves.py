r"""From losses to scores: which losses of a batch deserve weight.

Letters: ``n`` examples (or tokens).

A curve takes losses and the range that counts as usual, and returns one score each; weights
are the softmax of the scores over a temperature. Four curves place the losses on
:math:`h = (2 \ell - low - high) / (high - low)`, cut to ``[-1, 1]``: those do not change when all
losses are shifted or scaled. `kl_dro` takes losses as they are: it does not change when all
are shifted. Not handled: losses that are not finite; `LossReweighter` takes them out first.

References:
    Sow et al., Dynamic loss-based sample reweighting for improved large language model
    pretraining (ICLR 2025), arXiv:2502.06733.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from projections import check_at_least, check_between

FEWEST_FOR_QUARTILES = 4  # below, nothing tells which of the losses is the outlier

Curve = Callable[[Float[Tensor, " n"], Float[Tensor, ""], Float[Tensor, ""]], Float[Tensor, " n"]]
"""From losses, low and high to scores."""

LossRange = Callable[[Float[Tensor, " n"]], tuple[Float[Tensor, ""], Float[Tensor, ""]]]
"""From losses to the low and the high end of what counts as usual."""


def full_range(losses: Float[Tensor, " n"]) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Return the least and the greatest loss, as published.

    One outlier then pushes all others to the low end.
    """
    return losses.min(), losses.max()


@dataclass(frozen=True, kw_only=True)
class FencedRange:
    """The full range, cut at Tukey's fences: what lies far outside the quartiles is an outlier.

    Without outliers this is `full_range`. It falls back to that for fewer than four losses
    and where half of them are equal.

    Args:
        reach: How many distances between the quartiles a loss may lie beyond them.

    Example:
        >>> low, high = FencedRange()(torch.tensor([0.0, 1.0, 2.0, 3.0, 1000.0]))
        >>> float(low), float(high)
        (0.0, 6.0)
    """

    reach: float = 1.5

    def __post_init__(self) -> None:
        """Check the arguments."""
        check_at_least("reach", self.reach, 0)

    def __call__(self, losses: Float[Tensor, " n"]) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """Return the low and the high end."""
        low, high = full_range(losses)
        if len(losses) < FEWEST_FOR_QUARTILES:
            return low, high
        # Quartiles are losses themselves and never the extreme ones, which may be outliers.
        ordered = losses.sort().values
        first, third = ordered[-(-(len(losses) - 1) // 4)], ordered[3 * (len(losses) - 1) // 4]
        reach = self.reach * (third - first)
        usual = reach > 0
        return (
            torch.where(usual, torch.maximum(low, first - reach), low),
            torch.where(usual, torch.minimum(high, third + reach), high),
        )


@dataclass(frozen=True, kw_only=True)
class QuantileRange:
    """The range between two quantiles.

    Args:
        low: Share of the losses below the range.
        high: Share of the losses below its upper end.

    Example:
        >>> low, high = QuantileRange(low=0.25, high=0.75)(torch.arange(5.0))
        >>> float(low), float(high)
        (1.0, 3.0)
    """

    low: float = 0.05
    high: float = 0.95

    def __post_init__(self) -> None:
        """Check the arguments."""
        check_between("low", self.low, 0, 1, "a quantile")
        check_between("high", self.high, self.low, 1, "a quantile above `low`")

    def __call__(self, losses: Float[Tensor, " n"]) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """Return the low and the high end."""
        return torch.quantile(losses, self.low), torch.quantile(losses, self.high)


def uniform(
    losses: Float[Tensor, " n"], low: Float[Tensor, ""], high: Float[Tensor, ""]
) -> Float[Tensor, " n"]:
    """Score all losses alike, so that every weight is ``1 / n``."""
    return torch.zeros_like(losses)


def linupper(
    losses: Float[Tensor, " n"], low: Float[Tensor, ""], high: Float[Tensor, ""]
) -> Float[Tensor, " n"]:
    r"""Score :math:`\min(h + 1, 1)`: weight falls below the middle of the range, flat above."""
    return (_placed(losses, low, high) + 1).clamp(max=1)


def quadratic(
    losses: Float[Tensor, " n"], low: Float[Tensor, ""], high: Float[Tensor, ""]
) -> Float[Tensor, " n"]:
    """Score :math:`1 - h^2`: the middle of the range has the most weight."""
    return 1 - _placed(losses, low, high).square()


def extremes(
    losses: Float[Tensor, " n"], low: Float[Tensor, ""], high: Float[Tensor, ""]
) -> Float[Tensor, " n"]:
    """Score :math:`|h|`: both ends of the range have the most weight."""
    return _placed(losses, low, high).abs()


def upper(
    losses: Float[Tensor, " n"], low: Float[Tensor, ""], high: Float[Tensor, ""]
) -> Float[Tensor, " n"]:
    """Score :math:`(h + 1) / 2`: weight grows with the loss over the whole range."""
    return (_placed(losses, low, high) + 1) / 2


def kl_dro(
    losses: Float[Tensor, " n"], low: Float[Tensor, ""], high: Float[Tensor, ""]
) -> Float[Tensor, " n"]:
    r"""Score the loss itself, cut to the range: weights :math:`\propto e^{\ell / r}`.

    The solution of :math:`\max_w \sum w_i \ell_i - r\, KL(w \| 1/n)`; the temperature has the
    unit of the loss.

    References:
        Sow et al., the inner problem without the attack: Doubly robust
        instance-reweighted adversarial training (ICLR 2024), arXiv:2308.00311.
    """
    return losses.clamp(low, high)


def _placed(
    losses: Float[Tensor, " n"], low: Float[Tensor, ""], high: Float[Tensor, ""]
) -> Float[Tensor, " n"]:
    """Return ``h`` in ``[-1, 1]``; 0 for all where the range has no width."""
    width = high - low
    placed = ((losses - low) - (high - losses)) / torch.where(width > 0, width, 1)
    return torch.where(width > 0, placed.clamp(-1, 1), 0)
