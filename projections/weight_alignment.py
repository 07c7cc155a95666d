r"""Along which weights a gradient points: the cosine of :math:`-\nabla_W \ell` and ``W``.

Letters: ``n`` examples, ``o`` output features, ``i`` input features.

An example that the model has learnt as it learns the rest asks for more of the weights that
are there; one whose label contradicts them asks for less, and has a negative alignment.
"""

from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float
from scipy.stats import kurtosis
from torch import Tensor, nn

from projections.base import Batch
from projections.output_layer import find_weight, outer_products
from projections.per_example import Gradient

LEAST_KURTOSIS = -1.2  # that of numbers spread evenly, where the summary has its pole


@dataclass
class WeightAlignment:
    r"""Gradient-weight alignment, :math:`\cos(-\nabla_W \ell_n, W)`, of one linear layer.

    From the factors of the gradient, without forming it; of the output layer of a classifier
    it is :math:`-h^\top W^\top e / (\|h\| \|e\| \|W\|)` with ``e`` the softmax less the label.
    A row whose gradient is zero has the alignment 0. The bias is left out.

    Args:
        model: The model of the task.
        layer: Name of the layer; the last linear one unless given.

    Raises:
        ValueError: The layer has no trainable weight matrix.

    Example:
        >>> from projections import Classification, run_pass
        >>> model = nn.Linear(2, 2, bias=False)
        >>> _ = model.weight.data.copy_(torch.eye(2))
        >>> rows = [(torch.tensor([3.0, 0.0]), 0), (torch.tensor([3.0, 0.0]), 1)]
        >>> table = run_pass(Classification(model), rows, [WeightAlignment(model)])
        >>> table.columns["weight_alignment"].round(3)
        array([ 0.5, -0.5], dtype=float32)

    References:
        Hölzl et al., Gradient-weight alignment as a train-time proxy for generalization in
        classification tasks (NeurIPS 2025), arXiv:2510.25480.
    """

    model: nn.Module = field(repr=False)
    layer: str | None = None
    name: str = "weight_alignment"
    needs_gradients: bool = field(default=True, init=False)

    def __post_init__(self) -> None:
        """Find the weight."""
        self._parameter, self._weight = find_weight(self.model, self.layer)
        self._out: Tensor | None = None

    def begin(self, batch: Batch) -> None:
        """Start with nothing."""
        self._out = None

    def observe(self, gradient: Gradient) -> None:
        """Take the component of the weight."""
        for term in outer_products(gradient, self._parameter):
            weight = self._weight.to(term.inputs)
            products = ((term.output_grads @ weight) * term.inputs).sum((1, 2))
            lengths = (term.sq_norm().clamp(min=0) * weight.square().sum()).sqrt()
            self._out = torch.where(lengths > 0, -products / lengths, 0.0)

    def values(self, batch: Batch) -> Float[Tensor, " n"]:
        """Return the cosines.

        Raises:
            ValueError: The pass did not look at the layer.
        """
        if self._out is None:
            raise ValueError(
                f"the pass must look at the weight {self._parameter!r}. It did not. Leave out "
                "`layers`, or name the layer there too."
            )
        return self._out.to(batch.dtype)


def summarize_alignment(alignments: Float[np.ndarray, " n"]) -> float:
    r"""Return :math:`\mathrm{mean}(\gamma) / (\mathrm{kurtosis}(\gamma) + 1.2)` of an epoch.

    Its largest value over training is where the paper stops. The kurtosis is that of Fisher,
    0 for a normal distribution.

    Args:
        alignments: The alignment of each example.

    Raises:
        ValueError: There is no example, or the kurtosis is not above -1.2, as where the
            alignments fall into two heaps: the summary has no sign then.

    Example:
        >>> values = np.random.default_rng(0).normal(0.3, 0.1, 1000)
        >>> round(summarize_alignment(values), 2)
        0.2

    References:
        As for `WeightAlignment`.
    """
    values = np.asarray(alignments, dtype=np.float64)
    spread = float(kurtosis(values)) if len(values) and np.ptp(values) > 0 else float("nan")
    if not spread > LEAST_KURTOSIS:
        raise ValueError(
            f"`alignments` must have a kurtosis above {LEAST_KURTOSIS}, or this has no sign. "
            f"Got {spread:.3g} of {len(values)} rows. Look at their histogram instead."
        )
    return float(values.mean()) / (spread - LEAST_KURTOSIS)
