"""How far the gradient of each domain points where the target's does.

Letters: ``m`` domains, ``d`` dimensions of a gradient or of its sketch.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float


@dataclass(frozen=True)
class Products:
    r"""Inner products of gradients, from which every kind of alignment follows.

    Args:
        dots: :math:`\langle g_j, g_* \rangle` of each domain and the target.
        sq_norms: :math:`\|g_j\|^2`.
        target_sq_norm: :math:`\|g_*\|^2`.
        known: Which domains were seen; what the others have is not read.
    """

    dots: Float[np.ndarray, " m"]
    sq_norms: Float[np.ndarray, " m"]
    target_sq_norm: float
    known: Bool[np.ndarray, " m"]

    @classmethod
    def of(cls, domains: Float[np.ndarray, "m d"], target: Float[np.ndarray, " d"]) -> "Products":
        """Return the products of gradients that are there as vectors."""
        sq_norms = np.square(domains).sum(1)
        return cls(domains @ target, sq_norms, float(target @ target), np.ones(len(domains), bool))


def plain_alignments(products: Products) -> Float[np.ndarray, " m"]:
    r"""Return :math:`\langle g_j, g_* \rangle`, of the unit of a squared gradient."""
    return products.dots


def cosine_alignments(products: Products) -> Float[np.ndarray, " m"]:
    r"""Return :math:`\langle g_j, g_* \rangle / (\|g_j\| \|g_*\|)` of each domain.

    A zero gradient has the alignment 0 with everything.

    Example:
        >>> products = Products.of(np.array([[2.0, 0.0], [1.0, 1.0]]), np.array([1.0, 0.0]))
        >>> cosine_alignments(products).round(2)
        array([1.  , 0.71])
    """
    return _ratio(products.dots, np.sqrt(products.sq_norms * products.target_sq_norm))


def mean_norm_alignments(products: Products) -> Float[np.ndarray, " m"]:
    r"""Return :math:`\langle g_j, g_* \rangle` over the mean of :math:`\|g_i\| \|g_*\|`.

    Domains with larger gradients keep their larger say; only the common scale goes.

    Example:
        >>> products = Products.of(np.array([[3.0, 0.0], [0.0, 1.0]]), np.array([1.0, 0.0]))
        >>> mean_norm_alignments(products)
        array([1.5, 0. ])
    """
    norm = mean_norm(products) * np.sqrt(products.target_sq_norm)
    return _ratio(products.dots, np.full(len(products.dots), norm))


def mean_norm(products: Products) -> float:
    r"""Return the mean of :math:`\|g_i\|` over the known domains; 0 if there is none."""
    norms = np.sqrt(products.sq_norms[products.known])
    return float(norms.mean()) if len(norms) else 0.0


ALIGNMENTS: dict[str, Callable[[Products], Float[np.ndarray, " m"]]] = {
    "plain": plain_alignments,
    "cosine": cosine_alignments,
    "mean-norm": mean_norm_alignments,
}


def _ratio(
    products: Float[np.ndarray, " m"], norms: Float[np.ndarray, " m"]
) -> Float[np.ndarray, " m"]:
    """Divide, with 0 where a norm is 0: a domain without a gradient is not moved."""
    # NaN is not above 0 and must not become 0.
    return np.divide(products, norms, out=np.zeros(len(norms)), where=norms != 0)
