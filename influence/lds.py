"""The linear datamodeling score: does the sum of scores predict what retraining does?

Letters: ``m`` subsets, ``n`` training examples, ``q`` queries.

References:
    Park et al., TRAK (ICML 2023), arXiv:2303.14186, Sec. 2 (definition 2.3).
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Shaped
from scipy.stats import rankdata


@dataclass(frozen=True)
class LDS:
    """A linear datamodeling score with its error.

    Args:
        per_query: Spearman correlation of each query.
        mean: Their mean.
        standard_error: Standard error of the mean over queries.
    """

    per_query: Float[np.ndarray, " q"]
    mean: float
    standard_error: float


def linear_datamodeling_score(
    masks: Shaped[np.ndarray, "m n"],
    scores: Float[np.ndarray, "q n"],
    losses: Float[np.ndarray, "m q"],
) -> LDS:
    """Return the rank correlation of summed scores with retrained models' negative losses.

    Args:
        masks: Which examples each subset holds, as 0 and 1.
        scores: Influence of each example on each query; larger is more helpful.
        losses: Loss of each query under the model retrained on each subset.

    Raises:
        ValueError: Shapes do not fit, or a query's losses or predictions are all equal.

    Example:
        >>> masks = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1]])
        >>> losses = np.array([[0.1], [0.2], [0.3]])
        >>> found = linear_datamodeling_score(masks, np.array([[3.0, 2.0, 1.0]]), losses)
        >>> round(found.mean, 6)
        1.0
    """
    num_subsets, num_examples = masks.shape
    if scores.shape[1] != num_examples or losses.shape != (num_subsets, len(scores)):
        raise ValueError(
            "`masks` must be (m, n), `scores` (q, n) and `losses` (m, q). Got "
            f"{masks.shape}, {scores.shape} and {losses.shape}."
        )
    predicted = rankdata(masks @ scores.T.astype(np.float64), axis=0)
    actual = rankdata(-losses, axis=0)
    predicted -= predicted.mean(0)
    actual -= actual.mean(0)
    sizes = np.linalg.norm(predicted, axis=0) * np.linalg.norm(actual, axis=0)
    if (sizes == 0).any():
        raise ValueError(
            "every query must have losses and summed scores that vary over the subsets. Queries "
            f"{np.flatnonzero(sizes == 0)[:10].tolist()} have not. Leave them out."
        )
    per_query = (predicted * actual).sum(0) / sizes
    error = float(per_query.std(ddof=1) / np.sqrt(len(per_query))) if len(per_query) > 1 else 0.0
    return LDS(per_query, float(per_query.mean()), error)
