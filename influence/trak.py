"""The kernel of TRAK on a store: projected gradients whitened by their own Gram matrix.

Letters: ``q`` queries, ``n`` rows, ``k`` dimensions of a row.

On rows of loss gradients this is the influence function with the projected empirical
Fisher for a Hessian (the form of LoGra and TrackStar); the factor ``1 - p`` of TRAK is in
a loss gradient already. Differs from the reference implementation: float64 throughout,
and a damping at the noise floor of the Gram matrix instead of zero, since near zero it can
cost most of the quality. Not handled: ensembles.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float
from scipy.linalg import cho_factor, cho_solve

from influence.damping import RelativeDamping, noise_floor
from projections import ConvergenceError, StoredRows, check_at_least


@dataclass(frozen=True, kw_only=True)
class TRAK:
    r"""Score :math:`\phi_q^\top (\Phi^\top \Phi / n + \lambda I)^{-1} \phi_z`.

    Args:
        damping: :math:`\lambda` as a multiple of the mean eigenvalue of the Gram matrix; by
            default its `noise_floor`, which is ``k / n`` times that mean.

    References:
        Park et al., TRAK: attributing model behavior at scale (ICML 2023),
        arXiv:2303.14186, Sec. 3. Choe et al., LoGra (2024), arXiv:2405.13954, for rows of
        loss gradients and the damping.
    """

    damping: float | None = None

    def __post_init__(self) -> None:
        """Check the argument."""
        if self.damping is not None:
            check_at_least("damping", self.damping, 0)

    def fit(self, store: StoredRows) -> "FittedTRAK":
        """Compute the Gram matrix of the rows, in float64.

        Raises:
            ConvergenceError: The damped Gram matrix is singular.
        """
        gram = np.zeros((store.num_dims, store.num_dims))
        for block in store.blocks():
            rows = np.asarray(block, dtype=np.float64)
            gram += rows.T @ rows
        gram /= len(store)
        trace = float(np.trace(gram))
        rule = None if self.damping is None else RelativeDamping(self.damping)
        chosen = noise_floor(trace, len(store)) if rule is None else rule
        gram[np.diag_indices_from(gram)] += chosen.of(trace / len(gram))
        fitted = FittedTRAK(store, gram)
        _ = fitted._factor  # refused here and not at the first query
        return fitted


@dataclass(frozen=True)
class FittedTRAK:
    """The kernel on one store.

    Args:
        store: The rows.
        gram: Their damped Gram matrix, ``k k``.
    """

    store: StoredRows
    gram: Float[np.ndarray, "k k"]

    @cached_property
    def _factor(self) -> tuple[np.ndarray, bool]:
        """The Cholesky factor."""
        try:
            factor, lower = cho_factor(self.gram, lower=True)
            # Rounding can leave the pivots of a singular matrix a little above zero.
            rounding = len(self.gram) * np.finfo(np.float64).eps * self.gram.diagonal().max()
            if factor.diagonal().min() ** 2 <= rounding:
                raise np.linalg.LinAlgError("a pivot is zero but for rounding")
        except np.linalg.LinAlgError as error:
            raise ConvergenceError(
                "the damped Gram matrix of the rows must be positive definite, and is not: the "
                f"{len(self.store)} rows do not span its {len(self.gram)} dimensions. Raise "
                "`damping`, for instance to 0.1."
            ) from error
        return factor, lower

    def map_queries(self, queries: Float[np.ndarray, "q k"]) -> Float[np.ndarray, "q k"]:
        """Return the queries times the inverse of the damped Gram matrix."""
        return cho_solve(self._factor, queries.T.astype(np.float64)).T.astype(queries.dtype)

    def row_scales(self) -> None:
        """Rows are not scaled."""
        return

    def self_scores(self) -> Float[np.ndarray, " n"]:
        """Return the self-influence of each row, known as its leverage."""
        parts = []
        for block in self.store.blocks():
            rows = np.asarray(block, dtype=np.float64)
            parts.append((cho_solve(self._factor, rows.T).T * rows).sum(axis=1))
        return np.concatenate(parts)
