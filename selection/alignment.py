"""One step of a mixture towards the domains whose gradients point where the target's does.

Letters: ``k`` domains, ``d`` dimensions of a gradient or of its sketch.

Weights move by exponentiated gradients: in log space, so that they stay positive and sum
to one. Not handled: when to take a step and on which batches; that is up to the caller.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.special import logsumexp

from projections import NonFiniteError, check_at_least, check_between


def cosine_alignments(
    domains: Float[np.ndarray, "k d"], target: Float[np.ndarray, " d"]
) -> Float[np.ndarray, " k"]:
    r"""Return :math:`\langle g_j, g_* \rangle / (\|g_j\| \|g_*\|)` of each domain.

    Args:
        domains: The mean gradient of each domain.
        target: The mean gradient of the target; zero has the alignment 0 with everything.

    Example:
        >>> cosine_alignments(np.array([[2.0, 0.0], [1.0, 1.0]]), np.array([1.0, 0.0])).round(2)
        array([1.  , 0.71])
    """
    norms = np.linalg.norm(domains, axis=1) * np.linalg.norm(target)
    return _ratio(domains @ target, norms)


def mean_norm_alignments(
    domains: Float[np.ndarray, "k d"], target: Float[np.ndarray, " d"]
) -> Float[np.ndarray, " k"]:
    r"""Return :math:`\langle g_j, g_* \rangle` over the mean of :math:`\|g_i\| \|g_*\|`.

    Domains with larger gradients keep their larger say; only the common scale goes.

    Args:
        domains: The mean gradient of each domain.
        target: The mean gradient of the target; zero has the alignment 0 with everything.

    Example:
        >>> mean_norm_alignments(np.array([[3.0, 0.0], [0.0, 1.0]]), np.array([1.0, 0.0]))
        array([1.5, 0. ])
    """
    norms = np.linalg.norm(domains, axis=1).mean() * np.linalg.norm(target)
    return _ratio(domains @ target, np.full(len(domains), norms))


@dataclass(frozen=True, kw_only=True)
class AlignmentStep:
    r"""Move mixture weights by one mirror step on alignments.

    With weights :math:`w` and alignments :math:`a`, the step is
    :math:`\log u = \log w + \eta a - \mathrm{const}`, then
    :math:`w' = (1 - \phi) ((1 - \beta) w + \beta u) + \phi / k`.

    Each step starts from the averaged weights, not from the last raw ones.

    Args:
        step_size: :math:`\eta`; how far one step goes.
        average: :math:`\beta` in ``[0, 1]``; 1 takes each step as it is, less smooths it.
        floor: :math:`\phi` in ``[0, 1]``, the share that stays uniform, so that no domain
            is lost for good.

    Example:
        >>> step = AlignmentStep(step_size=1.0)
        >>> step(np.array([0.5, 0.5]), np.array([1.0, 0.0])).round(3)
        array([0.731, 0.269])

    References:
        Fan et al., Dynamic gradient alignment for online data mixing (2024),
        arXiv:2410.02498.
    """

    step_size: float = 1.0
    average: float = 1.0
    floor: float = 0.0

    def __post_init__(self) -> None:
        """Check the arguments."""
        check_at_least("step_size", self.step_size, 0)
        check_between("average", self.average, 0, 1)
        check_between("floor", self.floor, 0, 1)

    def __call__(
        self, weights: Float[np.ndarray, " k"], alignments: Float[np.ndarray, " k"]
    ) -> Float[np.ndarray, " k"]:
        """Return the next weights.

        Args:
            weights: The weights now, positive, with the sum 1.
            alignments: The alignment of each domain with the target.

        Raises:
            NonFiniteError: An alignment is not finite.
            ValueError: The weights are not positive or do not sum to 1.
        """
        if not (weights > 0).all() or not np.isclose(weights.sum(), 1):
            raise ValueError(f"`weights` must be positive and sum to 1. Got {weights.tolist()}.")
        if not np.isfinite(alignments).all():
            raise NonFiniteError(
                f"every alignment must be finite. Got {alignments.tolist()}. Look at the batches "
                "that they were computed from."
            )
        logs = np.log(weights) + self.step_size * alignments
        stepped = np.exp(logs - logsumexp(logs))
        averaged = (1 - self.average) * weights + self.average * stepped
        return (1 - self.floor) * averaged + self.floor / len(weights)


def _ratio(
    products: Float[np.ndarray, " k"], norms: Float[np.ndarray, " k"]
) -> Float[np.ndarray, " k"]:
    """Divide, with 0 where a norm is 0: a domain without a gradient is not moved."""
    return np.divide(products, norms, out=np.zeros(len(norms)), where=norms > 0)
