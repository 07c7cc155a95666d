"""Predict the losses of runs from their mixtures, as RegMix has published them.

``--data`` is a folder with the tables of the RegMix repository: 512 mixtures of 17 domains with
13 losses at 1M parameters to fit on, 256 at 1M, 256 at 60M and 64 at 1B to predict.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pandas
from measuring import options, parse, publish, table
from scipy.stats import spearmanr

from selection import BoostedLosses, LinearLosses, best_mixture

SCALES = ("1m", "60m", "1B")
SHOWN = "the_pile_pile_cc"
PUBLISHED = {  # rank correlations in per cent, from memory of the paper and not checked again
    "linear": (90, 89, 88),
    "boosted trees": (98.4, 98.6, 97.1),
}


def read(folder: Path, part: str, scale: str) -> tuple[np.ndarray, pandas.DataFrame]:
    """Return mixtures, scaled to the sum 1, and losses."""
    mixtures = pandas.read_csv(folder / f"{part}_mixture_{scale}.csv", index_col=0)
    losses = pandas.read_csv(folder / f"{part}_pile_loss_{scale}.csv", index_col=0)
    assert (mixtures.index == losses.index).all()
    losses.columns = [n.removeprefix("metric/").removesuffix("_val_loss") for n in losses.columns]
    values = mixtures.to_numpy(dtype=float)
    return values / values.sum(1, keepdims=True), losses


def made_up(rows: int, seed: int) -> tuple[np.ndarray, pandas.DataFrame]:
    """Return runs whose losses follow a known law, to see that this script runs."""
    mixtures = np.random.default_rng(seed).dirichlet(np.ones(5), rows)
    columns = [SHOWN, *(f"loss{number}" for number in range(2))]
    losses = [4 - np.sqrt(mixtures[:, place]) for place in range(3)]
    return mixtures, pandas.DataFrame(np.stack(losses, axis=1), columns=columns)


def rank_correlation(predicted: np.ndarray, true: Any) -> float:
    """Return Spearman's correlation in per cent."""
    found: Any = spearmanr(predicted, true)
    return 100 * float(found.statistic)


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--data", type=Path, help="folder with the tables of RegMix")
    chosen = parse(parser)
    few = chosen.quick or chosen.data is None
    folder = chosen.data or Path()
    mixtures, losses = made_up(60, 0) if few else read(folder, "train", "1m")
    methods = {
        "linear": LinearLosses(),
        "boosted trees": BoostedLosses(num_trees=20 if few else 1000, seed=0),
    }
    rows = []
    for name, method in methods.items():
        predict = method.fit(mixtures, losses.to_numpy())
        cells = []
        for place, scale in enumerate(SCALES):
            asked, true = made_up(30, place + 1) if few else read(folder, "test", scale)
            # Larger models were measured on other columns' order: matched by name.
            predicted = predict(asked)
            found = [
                rank_correlation(predicted[:, at], true[column])
                for at, column in enumerate(losses.columns)
                if column in true
            ]
            shown = predicted[:, list(losses.columns).index(SHOWN)]
            own = rank_correlation(shown, true[SHOWN])
            cells += [f"{own:.1f}", f"{PUBLISHED[name][place]}", f"{np.mean(found):.1f}"]
        best = best_mixture(
            predict,
            mixtures.mean(0) / mixtures.mean(0).sum(),
            [f"domain {n}" for n in range(mixtures.shape[1])],
            loss=list(losses.columns).index(SHOWN),
            num_simulated=2000 if few else 100_000,
            seed=0,
        )
        rows.append([name, *cells, f"{best.weights.max():.2f}"])
    head = ["regression"]
    for scale in SCALES:
        head += [f"{scale}: {SHOWN}", f"{scale}: published", f"{scale}: mean of losses"]
    head.append("heaviest share of the best mixture")
    text = (
        f"Spearman correlation, in per cent, of predicted and measured losses; fitted on "
        f"{len(mixtures)} runs of 1M parameters, no hyper-parameter chosen on the tests."
    )
    publish("Regression from mixtures to losses", [text, table(head, rows)], chosen.out)


if __name__ == "__main__":
    main()
