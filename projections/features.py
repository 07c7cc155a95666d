"""What goes into a layer, as one vector a row, from the pass that computes gradients anyway.

Letters: ``n`` examples, ``t`` positions, ``i`` input features.
"""

from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor, nn

from projections.base import Batch
from projections.output_layer import find_weight, outer_products
from projections.per_example import Gradient


@dataclass
class LayerInputs:
    """The inputs of one linear layer, averaged over the real positions of each example.

    Of the output layer these are the features that the model sees the example by: an
    embedding that depends on the input and not on the label.

    Args:
        model: The model of the task.
        layer: Name of the layer; the last linear one unless given.

    Raises:
        ValueError: The layer has no trainable weight matrix.

    Example:
        >>> from projections import Classification, run_pass
        >>> model = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 3))
        >>> table = run_pass(Classification(model), [(torch.ones(2), 0)], [LayerInputs(model)])
        >>> table.columns["features"].shape
        (1, 4)
    """

    model: nn.Module = field(repr=False)
    layer: str | None = None
    name: str = "features"
    needs_gradients: bool = field(default=True, init=False)

    def __post_init__(self) -> None:
        """Find the layer."""
        self._parameter, _ = find_weight(self.model, self.layer)
        self._inputs: Tensor | None = None

    def begin(self, batch: Batch) -> None:
        """Start with nothing."""
        self._inputs = None

    def observe(self, gradient: Gradient) -> None:
        """Take the inputs of the layer."""
        for term in outer_products(gradient, self._parameter):
            self._inputs = term.inputs

    def values(self, batch: Batch) -> Float[Tensor, "n i"]:
        """Return the means.

        Raises:
            ValueError: The pass did not look at the layer, or its positions are not the tokens.
        """
        if self._inputs is None:
            raise ValueError(
                f"the pass must look at the weight {self._parameter!r}. It did not. Leave out "
                "`layers`, or name the layer there too."
            )
        mask, positions = batch.token_mask, self._inputs.shape[1]
        if mask is None or positions == 1:
            return self._inputs.mean(1).to(batch.dtype)
        if mask.shape[1] != positions:
            raise ValueError(
                f"the positions of the layer must be the {mask.shape[1]} tokens. The layer of "
                f"{self._parameter!r} has {positions}. Name another layer."
            )
        weights = mask.to(self._inputs)[..., None]
        # What stands at padded positions may be anything, so it is left out and not weighed 0.
        kept = torch.where(weights > 0, self._inputs, 0.0)
        return (kept.sum(1) / weights.sum(1).clamp(min=1)).to(batch.dtype)
