r"""RegMix: learn from many small runs which mixture gives the lowest loss.

Letters: ``r`` runs, ``m`` domains, ``l`` losses.

    runs = draw_mixtures(prior, 512, seed=0)         train a small model on each
    predict = BoostedLosses(seed=0).fit(runs, losses)
    mixture = best_mixture(predict, prior, names, seed=0)
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from projections import NonFiniteError, check_at_least, check_between, check_not_empty, require
from selection.mixtures.mirror import check_weights
from selection.mixtures.recorded import FixedMixture

Predict = Callable[[Float[np.ndarray, "r m"]], Float[np.ndarray, "r l"]]
STRENGTHS = (0.1, 5.0)  # of the Dirichlet distributions that mixtures are drawn from
SMALLEST = 2e-4  # shares below are set to 0
BATCH = 4096  # mixtures drawn at a time


def draw_mixtures(
    prior: Sequence[float] | Float[np.ndarray, " m"],
    num_mixtures: int,
    *,
    temperature: float = 0.5,
    largest: float = 15.0,
    seed: int,
) -> Float[np.ndarray, "r m"]:
    r"""Draw mixtures from Dirichlet distributions of several strengths around a prior.

    The centre is :math:`b^\tau` (normalised), the strength is drawn from 0.1 to 5 on a log scale.
    Mixtures are drawn anew where a domain gets more than ``largest`` times its prior share,
    which would repeat it too often; shares below 0.0002 become 0.

    Args:
        prior: Shares :math:`b` of the domains by size.
        num_mixtures: Number ``r`` of mixtures.
        temperature: :math:`\tau`; below 1, small domains are seen more often.
        largest: Greatest share of a domain over its prior share.
        seed: Decides what is drawn.

    Raises:
        ValueError: Almost no mixture stays below ``largest``.

    Example:
        >>> draw_mixtures([0.9, 0.1], 3, seed=0).sum(1)
        array([1., 1., 1.])
    """
    shares = check_weights(np.asarray(prior, dtype=float))
    check_at_least("num_mixtures", num_mixtures, 1)
    check_at_least("largest", largest, 1)
    center = np.where(shares > 0, shares, 0) ** temperature * (shares > 0)
    center = center / center.sum()
    random = np.random.Generator(np.random.Philox(seed))
    kept: list[Float[np.ndarray, "r m"]] = []
    num_kept = 0
    for number in range(1000):
        strength = np.exp(random.uniform(*np.log(STRENGTHS), size=(BATCH, 1)))
        # A Dirichlet draw is a normalised draw of gammas; in logs it does not underflow.
        draws = _dirichlet(random, strength * center)
        draws = np.where(draws < SMALLEST, 0, draws)
        draws = draws / draws.sum(1, keepdims=True)
        kept.append(draws[(draws <= largest * shares).all(1)])
        num_kept += len(kept[-1])
        if num_kept >= num_mixtures:
            return np.concatenate(kept)[:num_mixtures]
        if number == 9 and num_kept == 0:
            break
    raise ValueError(
        f"`largest` must let mixtures through. {num_kept} of those drawn give no domain more "
        f"than {largest} times its share. Raise it."
    )


@dataclass(frozen=True, kw_only=True)
class LinearLosses:
    """Losses as linear functions of the shares, by least squares with a small ridge.

    Args:
        ridge: Penalty, which decides among the solutions that the sum of 1 leaves open.
    """

    ridge: float = 1e-6

    def fit(self, mixtures: Float[np.ndarray, "r m"], losses: Float[np.ndarray, "r l"]) -> Predict:
        """Return a function from mixtures to predicted losses."""
        check_runs(mixtures, losses)
        center, level = mixtures.mean(0), losses.mean(0)
        rows = mixtures - center
        gram = rows.T @ rows + self.ridge * np.eye(rows.shape[1])
        slopes = np.linalg.solve(gram, rows.T @ (losses - level))
        return lambda asked: level + (asked - center) @ slopes


@dataclass(frozen=True, kw_only=True)
class BoostedLosses:
    """Losses by gradient-boosted trees, one ensemble a loss.

    Args:
        num_trees: Trees of an ensemble.
        learning_rate: Share of each tree.
        num_leaves: Leaves of a tree.
        least_rows: Fewest runs in a leaf.
        seed: Kept for the trees' own draws.
    """

    num_trees: int = 1000
    learning_rate: float = 0.01
    num_leaves: int = 31
    least_rows: int = 20
    seed: int

    def fit(self, mixtures: Float[np.ndarray, "r m"], losses: Float[np.ndarray, "r l"]) -> Predict:
        """Return a function from mixtures to predicted losses."""
        check_runs(mixtures, losses)
        trees = require("sklearn.ensemble", "pip install scikit-learn")
        fitted = [
            trees.HistGradientBoostingRegressor(
                max_iter=self.num_trees,
                learning_rate=self.learning_rate,
                max_leaf_nodes=self.num_leaves,
                min_samples_leaf=self.least_rows,
                early_stopping=False,
                random_state=self.seed,
            ).fit(mixtures, column)
            for column in losses.T
        ]
        return lambda asked: np.stack([trees.predict(asked) for trees in fitted], axis=1)


def best_mixture(
    predict: Predict,
    prior: Sequence[float] | Float[np.ndarray, " m"],
    names: Sequence[str],
    *,
    loss: int = 0,
    num_simulated: int = 100_000,
    num_averaged: int = 128,
    seed: int,
) -> FixedMixture:
    """Return the mean of the mixtures whose predicted loss is lowest.

    Args:
        predict: From mixtures to losses, fitted on runs.
        prior: Shares of the domains by size, around which mixtures are drawn.
        names: Names of the domains.
        loss: Which of the predicted losses counts.
        num_simulated: Mixtures that are drawn.
        num_averaged: How many of the best are averaged.
        seed: Decides what is drawn.

    Example:
        >>> predict = LinearLosses().fit(np.eye(3), np.array([[3.0], [2.0], [1.0]]))
        >>> names, prior = ("a", "b", "c"), [0.4, 0.3, 0.3]
        >>> mixture = best_mixture(predict, prior, names, num_simulated=999, seed=0)
        >>> mixture.names[mixture.weights.argmax()]
        'c'

    References:
        Liu et al., RegMix: Data mixture as regression for language model pre-training
        (ICLR 2025), arXiv:2407.01492.
    """
    check_between("num_averaged", num_averaged, 1, num_simulated, "the number simulated")
    simulated = draw_mixtures(prior, num_simulated, seed=seed)
    predicted = predict(simulated)[:, loss]
    best = np.argsort(predicted, kind="stable")[:num_averaged]
    return FixedMixture(names, simulated[best].mean(0))


def check_runs(mixtures: Float[np.ndarray, "r m"], losses: Float[np.ndarray, "r l"]) -> None:
    """Refuse runs that do not pair up or whose numbers are not finite."""
    if len(mixtures) != len(losses):
        raise ValueError(
            f"`losses` must have one row for each of the {len(mixtures)} mixtures. Got "
            f"{len(losses)}."
        )
    check_not_empty("mixtures", len(mixtures))
    wrong = np.flatnonzero(~(np.isfinite(mixtures).all(1) & np.isfinite(losses).all(1)))
    if len(wrong):
        raise NonFiniteError(
            f"every run must have finite numbers. {len(wrong)} have not, such as rows "
            f"{wrong[:5].tolist()}. Leave out runs that diverged."
        )


def _dirichlet(
    random: np.random.Generator, strengths: Float[np.ndarray, "r m"]
) -> Float[np.ndarray, "r m"]:
    """Draw from Dirichlet distributions; where all gammas underflow, one domain takes all."""
    # gamma(a) = gamma(a + 1) * uniform ** (1 / a), in logs, since a may be tiny.
    present = strengths > 0
    safe = np.where(present, strengths, 1)
    logs = np.log(random.standard_gamma(safe + 1)) + np.log1p(-random.random(safe.shape)) / safe
    logs = np.where(present, logs, -np.inf)
    draws = np.exp(logs - logs.max(1, keepdims=True))
    return draws / draws.sum(1, keepdims=True)
