"""Several projections side by side in one row.

Letters: ``n`` examples, ``k`` dimensions.
"""

from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor

from projections.base import Projector
from projections.fingerprint import describe
from projections.per_example import Gradient


@dataclass(frozen=True)
class Concatenated:
    """Write the dimensions of several projectors one after the other.

    With a `Selected` for each group of layers, every group keeps dimensions of its own.
    Inner products of rows are sums over the projectors, so two that see the same
    component count it twice.

    Args:
        projectors: The projectors, at least one.

    Example:
        >>> from projections import SJLT, Selected
        >>> sketch = SJLT(num_dims=8, seed=0)
        >>> attention = Selected(projector=sketch, patterns=("*.attn.*",))
        >>> rest = Selected(projector=sketch, patterns=("*.mlp.*", "lm_head"))
        >>> Concatenated((attention, rest)).num_dims
        16
    """

    projectors: tuple[Projector, ...]

    def __post_init__(self) -> None:
        """Check the arguments."""
        if not self.projectors:
            raise ValueError("`projectors` must hold at least one projector. Got none.")

    @property
    def num_dims(self) -> int:
        """Number ``k`` of dimensions of all together."""
        return sum(projector.num_dims for projector in self.projectors)

    def project(self, gradient: Gradient, out: Float[Tensor, "n k"]) -> None:
        """Add the projections of one component.

        Args:
            gradient: The gradient of one component.
            out: Where to add them.
        """
        parts = out.split([projector.num_dims for projector in self.projectors], dim=1)
        for projector, part in zip(self.projectors, parts, strict=True):
            projector.project(gradient, part)

    def describe(self) -> dict[str, Any]:
        """Return the settings as plain JSON values."""
        return {"kind": "Concatenated", "projectors": [describe(p) for p in self.projectors]}
