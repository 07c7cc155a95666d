"""Ready-made columns of a pass.

Letters: ``n`` examples, ``k`` projected dimensions.
"""

from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from projections.base import Batch, Projector
from projections.per_example import Gradient


@dataclass
class Statistic:
    """A number that the task computes in its forward: such as ``"loss"`` or ``"el2n"``.

    Args:
        name: Its name in ``task.statistics``.
    """

    name: str
    needs_gradients: bool = field(default=False, init=False)

    def begin(self, batch: Batch) -> None:
        """Do nothing."""

    def observe(self, gradient: Gradient) -> None:
        """Do nothing."""

    def values(self, batch: Batch) -> Float[Tensor, " n"]:
        """Return the statistic.

        Raises:
            ValueError: The task does not compute it.
        """
        if self.name not in batch.statistics:
            raise ValueError(
                f"the task must compute the statistic {self.name!r}. It computes "
                f"{sorted(batch.statistics)}. Override `statistics` to add it."
            )
        return batch.statistics[self.name]


@dataclass
class GradientNorm:
    """The exact Euclidean norm of each example's gradient over all components."""

    name: str = "grad_norm"
    needs_gradients: bool = field(default=True, init=False)
    _total: Tensor = field(default_factory=lambda: torch.empty(0), init=False, repr=False)

    def begin(self, batch: Batch) -> None:
        """Start from zero."""
        self._total = torch.zeros(len(batch), dtype=batch.dtype, device=batch.device)

    def observe(self, gradient: Gradient) -> None:
        """Add a component."""
        self._total += gradient.sq_norms

    def values(self, batch: Batch) -> Float[Tensor, " n"]:
        """Return the norms."""
        # A sum that cancels may end a rounding below zero; NaN stays NaN.
        return self._total.clamp(min=0).sqrt()


@dataclass
class Sketch:
    """The projected gradient of each example.

    Args:
        projector: The map.
        name: Name of the column.
    """

    projector: Projector
    name: str = "sketch"
    needs_gradients: bool = field(default=True, init=False)
    _out: Tensor = field(default_factory=lambda: torch.empty(0), init=False, repr=False)

    def begin(self, batch: Batch) -> None:
        """Start from zero."""
        shape = (len(batch), self.projector.num_dims)
        self._out = torch.zeros(shape, dtype=batch.dtype, device=batch.device)

    def observe(self, gradient: Gradient) -> None:
        """Add a component."""
        self.projector.project(gradient, self._out)

    def values(self, batch: Batch) -> Float[Tensor, "n k"]:
        """Return the rows."""
        return self._out
