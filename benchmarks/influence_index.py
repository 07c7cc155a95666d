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

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from measuring import options, publish, table
from retrained import PROBLEMS, Retrained, mnist, quick, retrain
from torch import Tensor

from influence import (
    EKFAC,
    AbsoluteDamping,
    Damping,
    FittedCurvature,
    RelativeDamping,
    build_index,
    choose_coordinates,
    recipe_damping,
)
from influence.eigen_index import RowGram
from influence.linear_layers import linear_uses
from influence.row_gram import TargetName, default_damping, pick_target
from influence.whitening import Whitening
from projections import (
    SJLT,
    GivenSide,
    Gradient,
    Kronecker,
    KroneckerBlock,
    Labels,
    PassSettings,
    Projector,
    QueryTask,
    Sketch,
    describe,
    find_components,
    fingerprint_model,
    random_kronecker,
    run_pass,
)

READING = PassSettings(batch_size=256, max_tokens=8192, kinds=("linear",))
MULTIPLES = (0.1, 0.3, 1.0, 3.0, 10.0)
LISTS = (10, 100, 300)
SEEDS = {"convolutional": 6, "language": 2}  # models a half; three if not said
TOWARDS: dict[TargetName, str] = {"ones": "the identity", "curvature": "EK-FAC"}
WIDEST_SWEPT = 8192  # beyond, a Cholesky factor a damping takes minutes
HEAD = ["method", "numbers", "LDS at the default", "best LDS of the sweep", "at", "recall", "bytes"]


@dataclass(frozen=True)
class Measured:
    """Scores of one method under the dampings of its sweep.

    Args:
        method: Its name.
        numbers: Numbers kept of an example, or "all".
        scores: By the name of the damping; the default is called so.
        bytes_each: Bytes kept of an example.
    """

    method: str
    numbers: str
    scores: Mapping[str, np.ndarray]
    bytes_each: int | None = None


@dataclass(frozen=True)
class Whitened:
    """A projector of gradients that the curvature has whitened, to show that it fails.

    Args:
        inner: What projects the whitened gradients.
        fitted: The curvature.
    """

    inner: SJLT
    fitted: FittedCurvature
    num_dims: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "num_dims", self.inner.num_dims)

    def project(self, gradient: Gradient, out: Tensor) -> None:
        for number, use in enumerate(linear_uses(gradient)):
            layer = self.fitted.layers[use.name]
            scale = self.fitted.inverses[use.name].sqrt()
            rotated = layer.left.into(layer.right.into(use.gradient).mT).mT * scale
            generator = torch.Generator().manual_seed(hash_of(use.name) + number)
            signs = torch.randint(2, rotated.shape[1:], generator=generator) * 2 - 1
            slots = torch.randint(self.num_dims, rotated.shape[1:], generator=generator)
            out.index_add_(1, slots.flatten(), (rotated * signs).flatten(1))

    def describe(self) -> dict[str, object]:
        return {"kind": "Whitened", "inner": describe(self.inner)}


def hash_of(name: str) -> int:
    """Return a number that is the same in every process."""
    return int.from_bytes(name.encode()[-6:], "big")


@dataclass(frozen=True)
class Bench:
    """A retrained problem, and what all methods on it share."""

    retrained: Retrained

    @cached_property
    def fitted(self) -> FittedCurvature:
        """EK-FAC, with the exact expectation over labels where there are few."""
        task = self.retrained.task
        return EKFAC(seed=0, fisher="auto").fit(task, self.retrained.train, settings=READING)

    @cached_property
    def exact(self) -> np.ndarray:
        """Scores of full EK-FAC at 1 x the layer mean, which recall is counted against."""
        return self.full(self.fitted, RelativeDamping(1.0))

    def full(self, fitted: FittedCurvature, damping: Damping) -> np.ndarray:
        """Return scores of a full curvature."""
        found = self.retrained
        chosen = fitted.with_damping(damping)
        return chosen.scores(found.task, found.queries, found.train, settings=READING).values

    def rows(self, projector: Projector) -> tuple[np.ndarray, np.ndarray]:
        """Return the rows of the examples and of the queries."""
        found = self.retrained
        columns = [Sketch(projector)]
        parts = []
        for task, data in ((found.task, found.train), (QueryTask(found.task), found.queries)):
            done = run_pass(task, data, columns, settings=READING)
            parts.append(done.columns["sketch"][np.argsort(done.ids)])
        return parts[0], parts[1]

    def gram(self, projector: Projector) -> np.ndarray:
        """Return the exact expectation of the Gram matrix over labels."""
        accumulator = RowGram(projector)
        run_pass(
            self.retrained.task,
            self.retrained.train,
            accumulators=[accumulator],
            labels=Labels(kind="exact"),
            settings=READING,
        )
        return accumulator.mean.numpy()

    def grams(self, projector: Projector, train: np.ndarray) -> dict[str, np.ndarray]:
        """Return the Gram matrix from the data's labels, and the exact one where it can be had."""
        found = {"data": train.T @ train / len(train)}
        if self.few_labels:
            found["exact"] = self.gram(projector)
        return found

    def by_gram(
        self,
        method: str,
        gram: np.ndarray,
        target: Tensor,
        rows: tuple[np.ndarray, np.ndarray],
    ) -> Measured:
        """Return the scores of rows under a Gram matrix, swept over its damping."""
        train, queries = rows
        default, scores = default_damping(gram, target, len(train)), {}
        for multiple in MULTIPLES if len(gram) <= WIDEST_SWEPT else (1.0,):
            whitening = Whitening(torch.from_numpy(gram), default * multiple, target)
            asked = whitening.apply(torch.from_numpy(queries)).numpy()
            scores["default" if multiple == 1 else f"{multiple:g} x default"] = asked @ train.T
        return Measured(method, f"{len(gram):,}", scores, train[0].nbytes)

    @property
    def few_labels(self) -> bool:
        """Whether the exact expectation over labels is within reach."""
        return self.retrained.task.num_labels is not None


def baselines(bench: Bench) -> Iterator[Measured]:
    """Yield what needs no curvature, and full EK-FAC."""
    dot = bench.full(bench.fitted, AbsoluteDamping(1e9)) * 1e9
    yield Measured("gradient dot product", "all", {"default": dot})
    found = bench.retrained
    ones = bench.fitted.with_damping(AbsoluteDamping(1e9))
    own = ones.self_influence(found.task, found.train, settings=READING).values * 1e9
    yield Measured("gradient cosine", "all", {"default": dot / np.sqrt(own)})
    norms = np.broadcast_to(np.sqrt(own), dot.shape)
    yield Measured("gradient norm, blind to the query", "1", {"default": norms}, 4)
    recipe = found.problem.recipe
    rule = recipe_damping(
        learning_rate=recipe.learning_rate,
        momentum=recipe.momentum,
        num_steps=recipe.num_steps(len(found.train)),
    )
    fits = {"auto" if bench.few_labels else "sampled labels": bench.fitted}
    fits["data's labels"] = EKFAC(seed=0, fisher="empirical").fit(
        found.task, found.train, settings=READING
    )
    for name, fitted in fits.items():
        label = "exact labels" if name == "auto" else name
        dampings: dict[str, Damping] = {"default": RelativeDamping(0.1)}
        dampings |= {f"{m:g} x mean": RelativeDamping(m) for m in (1.0, 3.0, 10.0)}
        if recipe.optimizer == "sgd":
            dampings["recipe"] = rule
        scores = {key: bench.full(fitted, damping) for key, damping in dampings.items()}
        yield Measured(f"full EK-FAC, {label}", "all", scores)


def indexes(bench: Bench, num_dims: int) -> Iterator[Measured]:
    """Yield the indexes of one width."""
    layers, model = bench.fitted.layers, fingerprint_model(bench.retrained.model)
    projector = choose_coordinates(layers, num_dims, model=model)
    train, queries = rows = bench.rows(projector)
    scores = {}
    own = pick_target("dampings", bench.fitted, projector)
    for multiple in (*MULTIPLES, 100.0):
        whitening = Whitening(projector.eigenvalues, multiple, own)
        asked = whitening.apply(torch.from_numpy(queries)).numpy()
        scores["default" if multiple == 1 else f"{multiple:g} x default"] = asked @ train.T
    yield Measured("eigenbasis, eigenvalues", f"{num_dims:,}", scores, train[0].nbytes)
    for labels, gram in bench.grams(projector, train).items():
        for name, towards in TOWARDS.items():
            target = pick_target(name, bench.fitted, projector)
            method = f"eigenbasis, Gram of {labels} labels towards {towards}"
            yield bench.by_gram(method, gram, target, rows)


def rivals(bench: Bench, num_dims: int) -> Iterator[Measured]:
    """Yield what else could fill a row of this width."""
    projectors: dict[str, Projector] = {"random sketch (TRAK)": SJLT(num_dims=num_dims, seed=0)}
    projectors |= two_sided(bench, num_dims)
    for name, projector in projectors.items():
        rows = bench.rows(projector)
        ones = torch.ones(projector.num_dims, dtype=torch.float64)
        for labels, gram in bench.grams(projector, rows[0]).items():
            yield bench.by_gram(f"{name}, Gram of {labels} labels", gram, ones, rows)
    sketch = Whitened(SJLT(num_dims=num_dims, seed=0), bench.fitted)
    train, queries = bench.rows(sketch)
    found = {"default": queries @ train.T}
    yield Measured("sketch of the whitened gradient", f"{num_dims:,}", found, train[0].nbytes)


def two_sided(bench: Bench, num_dims: int) -> dict[str, Projector]:
    """Return LoGra with random and with principal sides."""
    found = bench.fitted.layers
    layout = find_components(bench.retrained.model, kinds=READING.kinds)
    random = random_kronecker(layout.components.values(), num_dims=num_dims, seed=0)
    blocks = {}
    for name, block in random.blocks.items():
        layer, (p, q) = found[name], (block.left.num_dims, block.num_dims // block.left.num_dims)
        rows = layer.eigenvalues.sum(1).argsort(descending=True)[:p]
        columns = layer.eigenvalues.sum(0).argsort(descending=True)[:q]
        sides = (layer.left.columns(rows), layer.right.columns(columns))
        left, right = (GivenSide(side.contiguous()) for side in sides)
        blocks[name] = KroneckerBlock(block.start, left, right)
    principal = Kronecker(random.num_dims, "principal", blocks)
    return {"two-sided random (LoGra)": random, "two-sided principal (LoGra)": principal}


def as_shipped(bench: Bench, num_dims: int) -> tuple[Measured, np.ndarray, float]:
    """Return the library's own index with int8 rows, its scores, and milliseconds a query."""
    found = bench.retrained
    with TemporaryDirectory() as folder:
        index = build_index(
            bench.fitted,
            found.task,
            found.train,
            num_dims=num_dims,
            path=folder,
            row_dtype="int8",
            settings=READING,
        )
        asked = index.query_rows(found.task, found.queries, settings=READING)
        scores = asked @ index.store.rows(range(len(index))).T
        began = time.perf_counter()
        index.search(found.task, found.queries, k=10, settings=READING)
        spent = (time.perf_counter() - began) * 1000 / len(found.queries)
    shipped = Measured("**as shipped, int8**", f"{num_dims:,}", {"default": scores}, num_dims + 4)
    return shipped, scores, spent


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
        default = default_damping(gram, target, len(train))
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
            shipped, scores, spent = as_shipped(bench, num_dims)
            lines.append(line(bench, shipped))
            milliseconds.append(f"{spent:.2g} ms at {num_dims:,}")
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
