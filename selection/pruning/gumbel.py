r"""Keep rows by chance, the likelier the better their score.

Letters: ``n`` rows.

The keys :math:`\pm s_i / \tau + G_i` with standard Gumbel noise :math:`G_i`: the largest
``m`` of them are a draw without replacement with probabilities in proportion to
:math:`\exp(\pm s_i / \tau)`. Noise belongs to seed and row id, so the draw depends neither
on the order of the rows nor on which others are there.
"""

import numpy as np

from projections import Scores
from selection.base import Selection
from selection.pruning.noise import gumbel_noise
from selection.pruning.values import EndName, read_values


def keep_by_chance(
    scores: Scores,
    *,
    keep: float,
    temperature: float,
    drop: EndName = "lowest",
    seed: int,
) -> Selection:
    """Draw a share of the rows without replacement, weighed by ``exp(score / temperature)``.

    Args:
        scores: One score an example.
        keep: The share of rows to keep, in ``[0, 1]``.
        temperature: In units of the score: towards 0 the best are kept as by `prune`, and a
            large one keeps rows evenly.
        drop: Which end is the worse one.
        seed: Seed of the noise.

    Returns:
        The kept rows in the order of the scores' rows.

    Raises:
        NonFiniteError: A score is not finite.
        ValueError: The share is out of range, or the temperature not positive and finite.

    Example:
        >>> scores = Scores(np.arange(5), {"quality": np.array([0.0, 1, 2, 3, 4])})
        >>> keep_by_chance(scores, keep=0.4, temperature=0.1, seed=0).ids
        array([3, 4])

    References:
        Kool et al., Stochastic beams and where to find them (ICML 2019), arXiv:1903.06059;
        Wettig et al., QuRating: selecting high-quality data for training language models
        (ICML 2024), arXiv:2402.09739, for quality with a temperature.
    """
    found = read_values(scores)
    if not 0 < temperature < np.inf:
        raise ValueError(f"`temperature` must be positive and finite. Got {temperature}.")
    num_kept = found.count(keep)
    noise = gumbel_noise(found.ids, seed=seed, name="pruning/gumbel")
    keys = found.signed(drop) / temperature + noise
    order = np.argsort(-keys, kind="stable")
    last = keys[order[num_kept - 1]] if num_kept else np.inf
    how = {"keep": keep, "temperature": temperature, "drop": drop, "seed": seed}
    return found.select(
        order[:num_kept],
        lambda row: (
            f"{found.name} {found.values[row]:.4g} was not drawn: key {keys[row]:.4g}, where the "
            f"last that was kept has {last:.4g}"
        ),
        how=how,
        method="gumbel",
    )
