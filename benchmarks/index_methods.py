"""What can fill the rows of an index, and what the index is compared with, on one problem."""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from tempfile import TemporaryDirectory

import numpy as np
import torch
from retrained import Retrained
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
from influence.eigen_index import MetricName, RowGram
from influence.linear_layers import linear_uses
from influence.principal import BasisName
from influence.row_gram import default_damping, pick_target
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
TOWARDS: dict[MetricName, str] = {"ones": "the identity", "curvature": "EK-FAC"}
WIDEST_SWEPT = 8192  # beyond, a Cholesky factor a damping takes minutes


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
        towards: MetricName,
        target: Tensor,
        rows: tuple[np.ndarray, np.ndarray],
    ) -> Measured:
        """Return the scores of rows under a Gram matrix, swept over its damping."""
        train, queries = rows
        default, scores = default_damping(gram, target, len(train), towards), {}
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
            yield bench.by_gram(method, gram, name, target, rows)


def rivals(bench: Bench, num_dims: int) -> Iterator[Measured]:
    """Yield what else could fill a row of this width."""
    projectors: dict[str, Projector] = {"random sketch (TRAK)": SJLT(num_dims=num_dims, seed=0)}
    projectors |= two_sided(bench, num_dims)
    for name, projector in projectors.items():
        rows = bench.rows(projector)
        ones = torch.ones(projector.num_dims, dtype=torch.float64)
        for labels, gram in bench.grams(projector, rows[0]).items():
            yield bench.by_gram(f"{name}, Gram of {labels} labels", gram, "ones", ones, rows)
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


def as_shipped(bench: Bench, num_dims: int, basis: BasisName) -> tuple[Measured, np.ndarray, float]:
    """Return the library's own index with int8 rows, its scores, and milliseconds a query."""
    found = bench.retrained
    with TemporaryDirectory() as folder:
        index = build_index(
            bench.fitted,
            found.task,
            found.train,
            num_dims=num_dims,
            path=folder,
            basis=basis,
            row_dtype="int8",
            settings=READING,
        )
        asked = index.query_rows(found.task, found.queries, settings=READING)
        scores = asked @ index.store.rows(range(len(index))).T
        began = time.perf_counter()
        index.search(found.task, found.queries, k=10, settings=READING)
        spent = (time.perf_counter() - began) * 1000 / len(found.queries)
    name = f"**{basis}, as shipped, int8**"
    shipped = Measured(name, f"{num_dims:,}", {"default": scores}, num_dims + 4)
    return shipped, scores, spent
