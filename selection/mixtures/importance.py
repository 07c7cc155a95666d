"""Importance sampling: the shares that the target's own examples have among the domains.

Letters: ``m`` domains, ``n`` examples of the target, ``d`` dimensions of an embedding.
"""

import numpy as np
from jaxtyping import Float

from projections import check_at_least, check_not_empty
from selection.mixtures.centers import Centers, check_vectors
from selection.mixtures.recorded import FixedMixture


def importance_mixture(
    centers: Centers, target: Float[np.ndarray, "n d"], *, pseudo_count: float = 0.0
) -> FixedMixture:
    r"""Return :math:`w_j = (n_j + c) / (n + c m)`, decided once and without gradients.

    Here :math:`n_j` of the :math:`n` examples of the target are nearest to centre :math:`j`.

    Args:
        centers: From `cluster_centers`, or from `source_centers` of named sources.
        target: Vectors of the target, made as those of the centres were.
        pseudo_count: :math:`c`; above 0, domains that the target has none of keep a share.

    Example:
        >>> centers = Centers(("left", "right"), np.array([[-1.0], [1.0]]))
        >>> importance_mixture(centers, np.array([[-2.0], [-1.0], [-0.5], [3.0]])).weights
        array([0.75, 0.25])

    References:
        Grangier et al., Task-adaptive pretrained language models via clustered-importance
        sampling (2024), arXiv:2410.03735.
    """
    check_at_least("pseudo_count", pseudo_count, 0)
    check_not_empty("target", len(target))
    check_vectors(target)
    counts = np.bincount(centers.nearest(target), minlength=len(centers.names)) + pseudo_count
    return FixedMixture(centers.names, counts / counts.sum())
