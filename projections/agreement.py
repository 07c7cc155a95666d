r"""Which gradients point as the others do: the cosine of each with the sum of all others.

Letters: ``n`` examples.

Exact, over all components, in two passes: `GradientTotal` adds up :math:`S = \sum_n g_n`,
then `Agreement` needs of each example only :math:`\langle g_n, S \rangle` and
:math:`\|g_n\|`, since :math:`\|S - g_n\|^2 = \|S\|^2 - 2 \langle g_n, S \rangle + \|g_n\|^2`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from projections.base import Batch
from projections.directions import Direction, GradientSum
from projections.per_example import Gradient

COUNT = "num_examples"  # no parameter has this name: theirs end in what a module calls them


class GradientTotal:
    """An accumulator with the sum of the gradients of all examples, and their number.

    Example:
        >>> from projections import Regression, run_pass
        >>> total = GradientTotal()
        >>> rows = [(torch.ones(2), torch.zeros(1)), (torch.zeros(2), torch.ones(1))]
        >>> _ = run_pass(Regression(torch.nn.Linear(2, 1)), rows, accumulators=[total])
        >>> total.num_examples, total.parts["weight"].shape
        (2, torch.Size([1, 2]))
    """

    name = "gradient_total"

    def __init__(self) -> None:
        """Start with nothing."""
        self.parts: dict[str, Tensor] = {}
        self.num_examples = 0
        self._batch = GradientSum()

    def begin(self, batch: Batch) -> None:
        """Start a batch."""
        self._batch = GradientSum()

    def observe(self, gradient: Gradient) -> None:
        """Add a component."""
        for term in gradient.terms:
            self._batch.add(term)

    def end(self, batch: Batch) -> None:
        """Add the batch to what there is, in float32 at least."""
        self.num_examples += len(batch)
        self._add(self._batch.parts)

    def state(self) -> dict[str, Tensor]:
        """Return the sums by parameter, and the number of examples."""
        return {**self.parts, COUNT: torch.tensor(self.num_examples)}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a state."""
        self.parts, self.num_examples = {}, 0
        self.merge(state)

    def merge(self, state: Mapping[str, Tensor]) -> None:
        """Add the sums over other examples."""
        self.num_examples += int(state[COUNT])
        self._add({name: part for name, part in state.items() if name != COUNT})

    def is_sum(self, key: str) -> bool:
        """Say that every entry is a sum over examples."""
        return True

    def direction(self) -> Direction:
        """Return the sum as something that gradients are multiplied with."""
        found = GradientSum()
        found.parts = self.parts
        return Direction(found)

    def _add(self, parts: Mapping[str, Tensor]) -> None:
        """Add sums by parameter."""
        for name, part in parts.items():
            wide = part.to(torch.promote_types(part.dtype, torch.float32))
            kept = self.parts.get(name)
            # What was loaded is on the CPU until it is added to.
            self.parts[name] = wide if kept is None else kept.to(wide.device) + wide


@dataclass
class Agreement:
    r"""The cosine of each example's gradient with the sum of all others', :math:`S - g_n`.

    Negative where a step that helps the others on average hurts this example. 0 where the
    example or the others have no gradient. All components count, biases among them.

    Args:
        total: The sum over the same rows, from a pass before, with the same components.

    Example:
        >>> from projections import Regression, run_pass
        >>> task = Regression(torch.nn.Linear(1, 1, bias=False))
        >>> _ = task.model.weight.data.zero_()
        >>> rows = [(torch.ones(1), torch.tensor([y])) for y in (1.0, 2.0, -1.0)]
        >>> total = GradientTotal()
        >>> _ = run_pass(task, rows, accumulators=[total])
        >>> run_pass(task, rows, [Agreement(total)]).columns["agreement"]
        array([ 1.,  0., -1.], dtype=float32)
    """

    total: GradientTotal = field(repr=False)
    name: str = "agreement"
    needs_gradients: bool = field(default=True, init=False)

    def __post_init__(self) -> None:
        """Prepare the products."""
        self._direction: Any = self.total.direction()
        self._products = self._squares = torch.empty(0)

    def begin(self, batch: Batch) -> None:
        """Start from zero."""
        self._products = torch.zeros(len(batch), dtype=torch.float64, device=batch.device)
        self._squares = torch.zeros_like(self._products)

    def observe(self, gradient: Gradient) -> None:
        """Add a component.

        Raises:
            ValueError: The total was taken over other components.
        """
        for parameter in gradient.component.parameters:
            if parameter.name not in self.total.parts:
                raise ValueError(
                    "`total` must come from a pass over the same components. It has no "
                    f"{parameter.name!r}. Use the same `layers` in both passes."
                )
        self._products += self._direction.products_with(gradient)
        self._squares += gradient.sq_norms

    def values(self, batch: Batch) -> Float[Tensor, " n"]:
        """Return the cosines."""
        return cosines_with_others(
            self._products, self._squares, torch.full_like(self._products, self._direction.sq_norm)
        ).to(batch.dtype)


def cosines_with_others(
    products: Float[Tensor, " n"], squares: Float[Tensor, " n"], totals: Float[Tensor, " n"]
) -> Float[Tensor, " n"]:
    r"""Return :math:`\cos(g_n, S - g_n)`, and 0 where one of the two is zero.

    Args:
        products: :math:`\langle g_n, S \rangle`, in float64.
        squares: :math:`\|g_n\|^2`.
        totals: :math:`\|S\|^2`.
    """
    others = totals - 2 * products + squares
    # What is left of a difference that cancels is rounding, and has no direction.
    real = others > 1e-10 * (totals + squares)
    lengths = (squares * others.clamp(min=0)).sqrt()
    cosines = (products - squares) / torch.where(lengths > 0, lengths, 1.0)
    return torch.where(real & (lengths > 0), cosines, 0.0).clamp(-1, 1)
