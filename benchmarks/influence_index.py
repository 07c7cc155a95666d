"""The influence index against retraining: LDS, recall, bytes and milliseconds.

    python benchmarks/influence_index.py                            # three set-ups, minutes
    python benchmarks/influence_index.py --data mnist.npz --problems mnist

One model is trained on all examples, and one hundred on random halves, each with several
seeds (`retrained.py`). LDS is the mean over queries of the rank correlation between summed
scores and the retrained models' negative losses; its error is the standard error over
queries. Every metric is swept over its damping, from a tenth to ten times its default, which
for a Gram matrix is its noise floor, the trace over the number of examples; shrunk towards
the curvature, ten of them. Recall is of the ten best by full EK-FAC at 1 x the layer mean,
among the first 10, 100 and 300 of a method.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from index_methods import (
    MULTIPLES,
    TOWARDS,
    WIDEST_SWEPT,
    Bench,
    Measured,
    as_shipped,
    baselines,
    indexes,
    rivals,
)
from measuring import options, publish, table
from retrained import PROBLEMS, mnist, quick, retrain
from torch import Tensor

from influence import choose_coordinates
from influence.row_gram import default_damping, pick_target
from influence.whitening import Whitening
from projections import fingerprint_model

LISTS = (10, 100, 300)
SEEDS = {"convolutional": 6, "language": 2}  # models a half; three if not said
HEAD = ["method", "numbers", "LDS at the default", "best LDS of the sweep", "at", "recall", "bytes"]


def by_likelihood(bench: Bench, num_dims: int) -> Iterator[list[str]]:
    """Yield the damping that held-out rows find likeliest, beside the default.

    Rows are taken as normal with the shrunk Gram matrix of the others as covariance, up to
    one scale; four folds.
    """
    layers, model = bench.fitted.layers, fingerprint_model(bench.retrained.model)
    projector = choose_coordinates(layers, num_dims, model=model)
    train, queries = bench.rows(projector)
    gram = train.T @ train / len(train)
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))
    for name, towards in TOWARDS.items():
        target = pick_target(name, bench.fitted, projector)
        default = default_damping(gram, target, len(train), name)
        rows = torch.from_numpy(train).double() / target.sqrt()
        likelihoods = {
            multiple: sum(
                likelihood(rows[order.numpy()], fold, default * multiple) for fold in range(4)
            )
            for multiple in (0.01, 0.03, *MULTIPLES)
        }
        best = max(likelihoods, key=lambda multiple: likelihoods[multiple])
        found = [towards, f"{best:g} x default"]
        for multiple in (best, 1.0):
            whitening = Whitening(torch.from_numpy(gram), default * multiple, target)
            asked = whitening.apply(torch.from_numpy(queries)).numpy()
            found.append(f"{bench.retrained.lds(asked @ train.T).mean:.3f}")
        yield found


def likelihood(rows: Tensor, fold: int, damping: float) -> float:
    """Return the log-likelihood of every fourth row under the others, up to constants."""
    held = torch.arange(len(rows)) % 4 == fold
    seen = rows[~held]
    eye = torch.eye(rows.shape[1], dtype=rows.dtype)
    factor = torch.linalg.cholesky(seen.mT @ seen / len(seen) + damping * eye)
    scaled = torch.linalg.solve_triangular(factor, rows[held].mT, upper=False)
    scale = scaled.square().mean().log() * rows.shape[1] / 2
    return float(-scale - factor.diagonal().log().sum())


def line(bench: Bench, measured: Measured) -> list[str]:
    """Return a row of the table."""
    lds = {name: bench.retrained.lds(scores) for name, scores in measured.scores.items()}
    first, best = lds["default"], max(lds, key=lambda name: lds[name].mean)
    size = "" if measured.bytes_each is None else f"{measured.bytes_each:,}"
    return [
        measured.method,
        measured.numbers,
        f"{first.mean:.3f} ± {first.standard_error:.3f}",
        f"{lds[best].mean:.3f}",
        best,
        recall(bench.exact, measured.scores["default"]),
        size,
    ]


def recall(exact: np.ndarray, scores: np.ndarray) -> str:
    """Return the share of the exact ten best among the first of a method."""
    wanted = np.argsort(-exact, axis=1)[:, :10]
    order = np.argsort(-scores, axis=1)
    shares = []
    for length in LISTS:
        first = order[:, :length]
        shares.append(np.mean([np.isin(w, f).mean() for w, f in zip(wanted, first, strict=True)]))
    return " / ".join(f"{share:.2f}" for share in shares)


def reranked(bench: Bench, scores: np.ndarray, share: float) -> list[str]:
    """Return the LDS of the candidates alone, with their own scores and with EK-FAC's."""
    count = max(1, round(share * scores.shape[1]))
    order = np.argsort(scores, axis=1)
    chosen = np.zeros(scores.shape, dtype=bool)
    for ends in (order[:, :count], order[:, -count:]):
        np.put_along_axis(chosen, ends, True, axis=1)
    found = [f"2 x {count}"]
    for values in (scores, bench.exact):
        lds = bench.retrained.lds(np.where(chosen, values, 0.0))
        found.append(f"{lds.mean:.3f} ± {lds.standard_error:.3f}")
    return found


def report(bench: Bench, dims: list[int], *, rival_dims: list[int]) -> list[str]:
    """Return the tables of one problem."""
    problem = bench.retrained.problem
    total = sum(layer.eigenvalues.numel() for layer in bench.fitted.layers.values())
    lines = [line(bench, found) for found in baselines(bench)]
    again, milliseconds = [], []
    chosen = sorted({min(num_dims, total) for num_dims in dims})
    for num_dims in chosen:
        lines += [line(bench, found) for found in indexes(bench, num_dims)]
        if num_dims <= WIDEST_SWEPT:
            shipped, scores, spent = as_shipped(bench, num_dims, "coordinates")
            lines.append(line(bench, shipped))
            milliseconds.append(f"{spent:.2g} ms at {num_dims:,}")
            if num_dims < total and num_dims <= len(bench.retrained.train):
                shipped, scores, _ = as_shipped(bench, num_dims, "principal")
                lines.append(line(bench, shipped))
            again += [[f"{num_dims:,}", *reranked(bench, scores, s)] for s in (0.01, 0.05, 0.2)]
        if num_dims in rival_dims:
            lines += [line(bench, found) for found in rivals(bench, num_dims)]
    middle = min(chosen, key=lambda num_dims: abs(num_dims - 1024))
    chances = list(by_likelihood(bench, middle))
    counted = f"{len(bench.retrained.losses)} seeds a half"
    return [
        f"## {problem.name[0].upper()}{problem.name[1:]}",
        f"{total:,} coordinates of linear maps; 100 halves, {counted}; ceiling "
        f"{bench.retrained.ceiling:.2f}. A query with its gradient takes "
        f"{', '.join(milliseconds)} numbers, in a batch of all of them.",
        table(HEAD, lines),
        "Re-ranking: LDS of the best and worst candidates of the shipped index alone, all other "
        "scores zero, with its own scores and with those of full EK-FAC at 1 x the layer mean.",
        table(["numbers", "candidates", "own scores", "full EK-FAC"], again),
        f"Damping by the likelihood of held-out rows, Gram of the data's labels, {middle:,} "
        "numbers:",
        table(["towards", "likeliest", "its LDS", "LDS at the default"], chances),
    ]


def main() -> None:
    parser = options(__doc__)
    names = [*PROBLEMS, "mnist"]
    parser.add_argument("--problems", nargs="+", choices=names, default=list(PROBLEMS))
    parser.add_argument("--data", type=Path, help="an mnist.npz, for the problem mnist")
    parser.add_argument("--dims", type=int, nargs="+", default=[64, 256, 1024, 4096, 16384])
    parser.add_argument("--rival-dims", type=int, nargs="+", default=[1024, 4096])
    parser.add_argument("--kept", type=Path, help="folder that keeps what retraining found")
    arguments = parser.parse_args()
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    parts = []
    for name in ["digits"] if arguments.quick else arguments.problems:
        problem = mnist(arguments.data) if name == "mnist" else PROBLEMS[name]()
        kept = arguments.kept and arguments.kept / f"{name}.npz"
        seeds = SEEDS.get(name, 3)
        if arguments.quick:
            found = retrain(quick(problem), num_subsets=8, num_seeds=2)
            parts += report(Bench(found), [64], rival_dims=[64])
        else:
            found = retrain(problem, num_subsets=100, num_seeds=seeds, kept=kept)
            parts += report(Bench(found), arguments.dims, rival_dims=arguments.rival_dims)
    publish("The influence index against retraining", parts, arguments.out)


if __name__ == "__main__":
    main()
