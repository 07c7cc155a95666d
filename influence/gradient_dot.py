"""Gradient dot product and cosine: influence with the identity for a Hessian.

Letters: ``q`` queries, ``n`` rows, ``k`` dimensions of a row.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from projections import StoredRows


@dataclass(frozen=True)
class GradientDot:
    """The inner product of two gradients: how much a step on one lowers the loss of the other.

    References:
        Pruthi et al., Estimating training data influence by tracing gradient descent
        (NeurIPS 2020), arXiv:2002.08484, one checkpoint and learning rate 1.
    """

    def fit(self, store: StoredRows) -> "FittedGradientDot":
        """Keep the exact norms of the rows."""
        return FittedGradientDot(store.column("grad_norm"))


@dataclass(frozen=True)
class FittedGradientDot:
    """The gradient dot product on one store.

    Args:
        norms: Exact norm of each row's gradient.
    """

    norms: Float[np.ndarray, " n"]

    def map_queries(self, queries: Float[np.ndarray, "q k"]) -> Float[np.ndarray, "q k"]:
        """Return the queries as they are."""
        return queries

    def row_scales(self) -> None:
        """Rows are not scaled."""
        return

    def self_scores(self) -> Float[np.ndarray, " n"]:
        """Return the exact squared norms."""
        return self.norms**2


@dataclass(frozen=True)
class GradientCosine:
    """The cosine of two gradients, with the exact norms of the rows and not the sketched ones.

    References:
        Charpiat et al., Input similarity from the neural network perspective (NeurIPS 2019).
    """

    def fit(self, store: StoredRows) -> "FittedGradientCosine":
        """Keep the exact norms of the rows."""
        return FittedGradientCosine(store.column("grad_norm"))


@dataclass(frozen=True)
class FittedGradientCosine:
    """The gradient cosine on one store.

    Args:
        norms: Exact norm of each row's gradient.
    """

    norms: Float[np.ndarray, " n"]

    def map_queries(self, queries: Float[np.ndarray, "q k"]) -> Float[np.ndarray, "q k"]:
        """Return the queries divided by their norms.

        Raises:
            ValueError: A query is zero and has no direction.
        """
        return unit_queries(queries)

    def row_scales(self) -> Float[np.ndarray, " n"]:
        """Return one over the norm; a row of zeros keeps the score 0."""
        return inverse_norms(self.norms)

    def self_scores(self) -> Float[np.ndarray, " n"]:
        """Return ones, and zero for rows of zeros."""
        return (self.norms > 0).astype(self.norms.dtype)


def unit_queries(queries: Float[np.ndarray, "q k"]) -> Float[np.ndarray, "q k"]:
    """Return queries divided by their norms.

    Raises:
        ValueError: A query is zero and has no direction.
    """
    norms = np.linalg.norm(queries, axis=1, keepdims=True)
    if not norms.all():
        where = np.flatnonzero(norms[:, 0] == 0)[:10].tolist()
        raise ValueError(
            f"queries must have a gradient that is not zero. Those at {where} are zero, and "
            "have no cosine. Leave them out, or use GradientDot."
        )
    return queries / norms


def inverse_norms(norms: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Return one over each norm, and zero for zero."""
    return np.divide(1.0, norms, out=np.zeros_like(norms), where=norms > 0)
