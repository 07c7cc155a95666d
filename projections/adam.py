"""Directions in which Adam would step, instead of gradients.

Letters: ``n`` examples, ``k`` projected dimensions.

Adam divides each entry by its own number, so a gradient has to be formed: one component
and a few examples at a time. Rows of a table are scaled as they are, where that is enough.
What stands here goes around any projector.

With a gradient ``g``, moments ``m`` and ``v``, decay rates ``b1`` and ``b2`` and ``t``
steps taken; all operations are entry by entry.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor

from projections.adam_state import AdamState, Moments
from projections.base import Projector
from projections.factors import PIECE_ENTRIES, Formed, TableRows, Term
from projections.fingerprint import describe
from projections.per_example import Gradient, examples_of


@dataclass(frozen=True, kw_only=True)
class AdamScaled:
    r"""Project :math:`g / (\sqrt{v / (1 - b_2^t)} + \epsilon)`, which is linear in ``g``.

    Args:
        projector: What projects it.
        state: The optimizer's moments.

    References:
        Kingma and Ba, Adam (ICLR 2015), arXiv:1412.6980, Alg. 1; Chang et al., Scalable
        influence and fact tracing (2024), arXiv:2410.17413, for the scaled gradient.
    """

    projector: Projector
    state: AdamState

    @property
    def num_dims(self) -> int:
        """Number ``k`` of dimensions."""
        return self.projector.num_dims

    def project(self, gradient: Gradient, out: Float[Tensor, "n k"]) -> None:
        """Add the projection of one component, scaled.

        Args:
            gradient: The gradient of one component.
            out: Where to add it.
        """
        component = gradient.component
        scales = [scale_of(self.state.of(one.name)).to(out) for one in component.parameters]
        for term in gradient.terms:  # the map is linear, so terms need not be summed first
            if isinstance(term, TableRows):
                scale = scales[0].reshape(component.parameters[0].shape)[term.ids]
                rows = TableRows(component, term.ids, term.output_grads.to(out.dtype) * scale)
                self.projector.project(Gradient(component, (rows,)), out)
                continue
            for values, part in _formed(Gradient(component, (term,)), out):
                scaled = (v * s.reshape(v.shape[1:]) for v, s in zip(values, scales, strict=True))
                self.projector.project(_gradient(component, scaled), part)

    def describe(self) -> dict[str, Any]:
        """Return the settings as plain JSON values."""
        return _describe(self)


Direction = Callable[[Tensor, Moments], Tensor]
"""``direction(gradients, moments)``: `adam_direction` or `less_direction`."""


@dataclass(frozen=True, kw_only=True)
class AdamDirected:
    """Project the direction in which Adam would step, were each gradient its next.

    It is not linear in the gradient and not zero where that is. Weight decay is left out,
    and so are components that the backward pass of a batch does not reach.

    Args:
        projector: What projects it.
        state: The optimizer's moments.
        direction: The formula: `adam_direction`, or `less_direction` for the training
            examples of LESS, whose queries are plain gradients.
    """

    projector: Projector
    state: AdamState
    direction: Direction

    @property
    def num_dims(self) -> int:
        """Number ``k`` of dimensions."""
        return self.projector.num_dims

    def project(self, gradient: Gradient, out: Float[Tensor, "n k"]) -> None:
        """Add the projection of one component's direction.

        Args:
            gradient: The gradient of one component, whole.
            out: Where to add it.
        """
        component = gradient.component
        moments = [_like(self.state.of(one.name), one.shape, out) for one in component.parameters]
        for values, part in _formed(gradient, out):
            turned = (self.direction(v, m) for v, m in zip(values, moments, strict=True))
            self.projector.project(_gradient(component, turned), part)

    def describe(self) -> dict[str, Any]:
        """Return the settings as plain JSON values."""
        return {**_describe(self), "direction": self.direction.__name__}


def scale_of(moments: Moments) -> Float[Tensor, "..."]:
    """Return what Adam multiplies a gradient by, its learning rate left out."""
    _, b2 = moments.betas
    return 1 / ((moments.second / (1 - b2**moments.step)).sqrt() + moments.eps)


def adam_direction(grads: Float[Tensor, "n ..."], moments: Moments) -> Float[Tensor, "n ..."]:
    r"""Return the direction of Adam's next step, its learning rate left out.

    .. math:: \frac{(b_1 m + (1 - b_1) g) / (1 - b_1^{t+1})}
        {\sqrt{(b_2 v + (1 - b_2) g^2) / (1 - b_2^{t+1})} + \epsilon}

    Args:
        grads: Gradients of one parameter.
        moments: Its moments.

    References:
        Kingma and Ba, Adam (ICLR 2015), arXiv:1412.6980, Alg. 1.
    """
    (b1, b2), steps = moments.betas, moments.step + 1
    first = (b1 * moments.first + (1 - b1) * grads) / (1 - b1**steps)
    second = (b2 * moments.second + (1 - b2) * grads.square()) / (1 - b2**steps)
    return first / (second.sqrt() + moments.eps)


def less_direction(grads: Float[Tensor, "n ..."], moments: Moments) -> Float[Tensor, "n ..."]:
    r"""Return the direction that LESS takes for training examples.

    .. math:: \frac{b_1 m + (1 - b_1) g}{\sqrt{b_2 v + (1 - b_2) g^2 + \epsilon}}

    Unlike in `adam_direction`, nothing is corrected for the start of the moments, and the
    constant stands under the root, as in the authors' code.

    Args:
        grads: Gradients of one parameter.
        moments: Its moments.

    References:
        Xia et al., LESS: Selecting influential data for targeted instruction tuning (ICML
        2024), arXiv:2402.04333, Sec. 3.
    """
    b1, b2 = moments.betas
    first = b1 * moments.first + (1 - b1) * grads
    second = b2 * moments.second + (1 - b2) * grads.square()
    return first / (second + moments.eps).sqrt()


def _like(moments: Moments, shape: tuple[int, ...], out: Tensor) -> Moments:
    """Return moments in the shape of the gradient, in the dtype and on the device of ``out``."""
    first, second = (m.to(out).reshape(shape) for m in (moments.first, moments.second))
    return Moments(first, second, moments.step, moments.betas, moments.eps)


def _formed(gradient: Gradient, out: Tensor) -> Iterator[tuple[list[Tensor], Tensor]]:
    """Yield the gradient of a few examples by parameter, and their rows of ``out``."""
    height = max(1, PIECE_ENTRIES // gradient.component.size)
    for start in range(0, len(out), height):
        rows = slice(start, start + height)
        formed = examples_of(gradient, rows).materialize().values()
        yield [values.to(out.dtype) for values in formed], out[rows]


def _gradient(component: Any, values: Iterator[Tensor]) -> Gradient:
    """Return formed values as the gradient of a component."""
    term: Term = Formed(component, tuple(values))
    return Gradient(component, (term,))


def _describe(settings: AdamScaled | AdamDirected) -> dict[str, Any]:
    """Return the settings as plain JSON values."""
    inner = describe(settings.projector)
    return {
        "kind": type(settings).__name__,
        "state": settings.state.fingerprint,
        "projector": inner,
    }
