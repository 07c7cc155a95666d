"""The methods of `attribution.py`: what each fits, and its sweep over damping.

A method is a function from a trained set-up to what it fitted, by the name of the damping;
everything that is fitted has `scores(task, queries, data)` and most have `self_influence`.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from attribution_setups import Setup
from torch import Tensor

from influence import (
    EKFAC,
    TRAK,
    ConjugateGradients,
    DataInf,
    FittedRowInfluence,
    FittedTRAKEnsemble,
    GaussNewton,
    GradientCosine,
    HiddenSimilarity,
    Inverse,
    ModelCheckpoint,
    RelatIF,
    RelativeDamping,
    RepresenterPoints,
    RowInfluence,
    TracIn,
    TrackStar,
    TRAKEnsemble,
    build_index,
    random_subsets,
)
from projections import (
    SJLT,
    GradientNorm,
    PassSettings,
    Scores,
    Statistic,
    Task,
    run_pass,
)

MULTIPLES = (0.01, 0.1, 1.0, 3.0, 10.0)
DEFAULT = "default"


@dataclass(frozen=True)
class Fit:
    """What a method fitted.

    Args:
        fitted: By the name of the damping, the default first.
        bytes_kept: What answers further queries, in bytes, without the model itself.
        trainings: Models that were trained beside the one that is asked about.
        most_queries: Queries that are asked, where more would take too long.
    """

    fitted: Mapping[str, Any]
    bytes_kept: int
    trainings: int = 0
    most_queries: int | None = None


@dataclass(frozen=True)
class Trained:
    """A set-up with its model, and what several methods share.

    Args:
        setup: The set-up.
        folder: For indexes.
        tiny: Whether this is a test.
    """

    setup: Setup
    folder: Path
    tiny: bool = False

    @cached_property
    def whole(self) -> np.ndarray:
        return np.ones((1, self.setup.num_examples), dtype=np.int8)

    @cached_property
    def model(self) -> torch.nn.Module:
        """The model of all examples."""
        return self.setup.trainer.model(self.setup.trainer.train(self.whole, seed=0))

    @cached_property
    def task(self) -> Task:
        return self.setup.as_task(self.model)

    @cached_property
    def reading(self) -> PassSettings:
        return PassSettings(batch_size=256, max_tokens=8192)

    @cached_property
    def train(self) -> list[Any]:
        return self.setup.train_rows

    def checkpoints(self, count: int) -> list[ModelCheckpoint]:
        """Return states along the run: it is run anew to each, from one start in one order."""
        recipe = self.setup.trainer.recipe
        ends = sorted({max(1, round(recipe.epochs * (k + 1) / count)) for k in range(count)})
        found = []
        for end in ends:
            trainer = replace(self.setup.trainer, recipe=replace(recipe, epochs=end))
            params = trainer.train(self.whole, seed=0)
            found.append(state(params, 0, recipe.learning_rate))
        return found

    def halves(self, count: int) -> list[ModelCheckpoint]:
        """Return models of random halves, as TRAK averages over."""
        masks = random_subsets(self.setup.num_examples, count, seed=999)
        params = self.setup.trainer.train(masks, seed=5)
        return [state(params, position, 1.0) for position in range(count)]


def state(params: Mapping[str, Tensor], position: int, rate: float) -> ModelCheckpoint:
    return ModelCheckpoint(
        state={name: value[position].clone() for name, value in params.items()},
        learning_rate=rate,
    )


def num_params(trained: Trained) -> int:
    return sum(parameter.numel() for parameter in trained.model.parameters())


def random_scores(trained: Trained) -> Fit:
    return Fit({DEFAULT: RandomScores()}, 0)


def gradient_dot(trained: Trained) -> Fit:
    last = ModelCheckpoint(state=trained.model.state_dict())
    fitted = TracIn(checkpoints=[last]).fit(trained.task, settings=trained.reading)
    return Fit({DEFAULT: fitted}, 0)


def gradient_cosine(trained: Trained) -> Fit:
    sketch = SJLT(num_dims=width(trained, 4096), seed=0)
    method = RowInfluence(metric=GradientCosine(), projector=sketch)
    fitted = method.fit(trained.task, trained.train, settings=trained.reading)
    return Fit({DEFAULT: fitted}, 4 * sketch.num_dims * len(trained.train))


def tracin(trained: Trained) -> Fit:
    states = trained.checkpoints(3 if trained.tiny else 10)
    fitted = TracIn(checkpoints=states).fit(trained.task, settings=trained.reading)
    return Fit({DEFAULT: fitted}, 4 * num_params(trained) * len(states))


def hidden_similarity(trained: Trained) -> Fit:
    fitted = HiddenSimilarity().fit(trained.task, trained.train, settings=trained.reading)
    return Fit({DEFAULT: fitted}, fitted.embeddings.rows.nbytes)


def datainf(trained: Trained) -> Fit:
    methods = {DEFAULT: DataInf()} | {
        f"{multiple:g} x mean": DataInf(damping=RelativeDamping(multiple)) for multiple in (10.0,)
    }
    fitted = {
        name: method.fit(trained.task, trained.train, settings=trained.reading)
        for name, method in methods.items()
    }
    return Fit(fitted, 0)


def ekfac(trained: Trained) -> Fit:
    fitted = EKFAC(seed=0).fit(trained.task, trained.train, settings=trained.reading)
    rules = {DEFAULT: 0.1} | {f"{m:g} x mean": m for m in MULTIPLES if m != 0.1}
    size = sum(
        layer.eigenvalues.numel() + layer.left.size**2 + layer.right.size**2
        for layer in fitted.layers.values()
    )
    return Fit(
        {name: fitted.with_damping(RelativeDamping(m)) for name, m in rules.items()}, 4 * size
    )


def index(trained: Trained) -> Fit:
    """The eigenbasis index as shipped, with int8 rows."""
    curvature = EKFAC(seed=0).fit(trained.task, trained.train, settings=trained.reading)
    total = sum(layer.eigenvalues.numel() for layer in curvature.layers.values())
    num_dims = min(total, width(trained, 4096))
    built = build_index(
        curvature,
        trained.task,
        trained.train,
        num_dims=num_dims,
        path=trained.folder / "index",
        row_dtype="int8",
        settings=trained.reading,
    )
    fits = {DEFAULT: AsInfluence(built)} | {
        f"{m:g} x default": AsInfluence(built.with_damping(built.damping * m))
        for m in (0.1, 0.3, 3.0, 10.0)
    }
    return Fit(fits, (num_dims + 4) * len(trained.train) + 4 * num_dims**2)


def trak(count: int) -> Callable[[Trained], Fit]:
    """Return TRAK with so many models of halves."""

    def method(trained: Trained) -> Fit:
        models = min(count, 2) if trained.tiny else count
        projector = SJLT(num_dims=width(trained, 512 if count > 10 else 2048), seed=0)
        ensemble = TRAKEnsemble(checkpoints=trained.halves(models), projector=projector)
        fitted = ensemble.fit(trained.task, trained.train, settings=trained.reading)
        dampings = {DEFAULT: None, "1e-6 x mean": 1e-6}
        dampings |= {f"{m:g} x mean": m for m in (0.01, 0.1, 1.0, 10.0)}
        swept = {name: with_kernel(fitted, damping) for name, damping in dampings.items()}
        size = 4 * projector.num_dims * len(trained.train) * models
        return Fit(swept, size, trainings=models)

    return method


def with_kernel(fitted: FittedTRAKEnsemble, damping: float | None) -> FittedTRAKEnsemble:
    """Return the ensemble with another damping, on the same rows."""
    kernels: FittedRowInfluence = fitted.kernels
    metric = TRAK(damping=damping)
    members = tuple(replace(one, metric=metric.fit(one.rows)) for one in kernels.members)
    return replace(fitted, kernels=replace(kernels, members=members))


def trackstar(trained: Trained) -> Fit:
    sketch = SJLT(num_dims=width(trained, 2048), seed=0)
    method = RowInfluence(metric=TrackStar(), projector=sketch)
    fitted = method.fit(trained.task, trained.train, settings=trained.reading)
    metrics = {DEFAULT: TrackStar()}
    metrics |= {f"{m:g} x mean": TrackStar(damping=m) for m in (0.01, 1.0, 10.0)}
    swept = {
        name: replace(
            fitted,
            members=tuple(replace(one, metric=metric.fit(one.rows)) for one in fitted.members),
        )
        for name, metric in metrics.items()
    }
    return Fit(swept, 4 * sketch.num_dims * len(trained.train))


def relatif(trained: Trained) -> Fit:
    """EK-FAC's scores over the root of its self-influence."""
    rules = {DEFAULT: 0.1} | {f"{m:g} x mean": m for m in (1.0, 3.0)}
    swept = {
        name: RelatIF(method=EKFAC(seed=0, damping=RelativeDamping(m))).fit(
            trained.task, trained.train, settings=trained.reading
        )
        for name, m in rules.items()
    }
    return Fit(swept, ekfac(trained).bytes_kept)


def representer(trained: Trained) -> Fit:
    fitted = {
        name: RepresenterPoints(l2=l2, tolerance=1e-3).fit(
            trained.task, trained.train, settings=trained.reading
        )
        for name, l2 in {DEFAULT: 1e-2, "0.1": 1e-1, "1": 1.0}.items()
    }
    first = fitted[DEFAULT]
    return Fit(fitted, 8 * (first.features.numel() + first.alphas.numel()))


def conjugate_gradients(trained: Trained) -> Fit:
    """The exact damped Gauss-Newton matrix, for a few queries."""
    reading = PassSettings(batch_size=1000, shard_size=1000)
    fits = {
        f"{damping:g}": Inverse(
            matrix=GaussNewton(seed=0),
            solver=ConjugateGradients(max_steps=200, tolerance=3e-2),
            damping=damping,
        ).fit(trained.task, trained.train, settings=reading)
        for damping in ((0.1, 0.01) if num_params(trained) < 10_000 else (0.1, 0.03))
    }
    most = 50 if num_params(trained) < 10_000 else 20
    return Fit({DEFAULT: fits.pop("0.1"), **fits}, 0, most_queries=most)


def exact_influence(trained: Trained) -> Fit:
    """The inverse of the whole Hessian of a softmax regression."""
    parts = softmax_parts(trained)
    hessian = softmax_hessian(*parts)
    dampings = {DEFAULT: 1e-2} | {f"{d:g}": d for d in (1.0, 1e-1, 5e-3, 1e-3, 1e-4, 1e-5)}
    fits = {name: ExactInfluence(hessian, damping) for name, damping in dampings.items()}
    return Fit(fits, hessian.numel() * 8)


METHODS: dict[str, Callable[[Trained], Fit]] = {
    "random": random_scores,
    "gradient dot product": gradient_dot,
    "gradient cosine": gradient_cosine,
    "last hidden state": hidden_similarity,
    "TracIn, 10 checkpoints": tracin,
    "DataInf": datainf,
    "TRAK, 1 model": trak(1),
    "TRAK, 10 models": trak(10),
    "TRAK, 50 models": trak(50),
    "TrackStar": trackstar,
    "representer points": representer,
    "RelatIF of EK-FAC": relatif,
    "conjugate gradients": conjugate_gradients,
    "EK-FAC": ekfac,
    "index, int8": index,
    "exact influence": exact_influence,
}


def width(trained: Trained, wanted: int) -> int:
    """Return how many dimensions a sketch has: never more than there are parameters."""
    return min(64 if trained.tiny else wanted, num_params(trained))


@dataclass(frozen=True)
class RandomScores:
    """Numbers that know nothing, to show what nothing is worth."""

    def scores(self, task: Task, queries: Any, data: Any, *, settings: Any = None) -> Scores:
        random = np.random.default_rng(0)
        ids = np.arange(len(data))
        values = random.normal(size=(len(queries), len(data)))
        return Scores(ids, {"influence": values}, np.arange(len(queries)))

    def self_influence(self, task: Task, data: Any, *, settings: Any = None) -> Scores:
        return Scores(
            np.arange(len(data)),
            {"self_influence": np.random.default_rng(1).normal(size=len(data))},
        )


@dataclass(frozen=True)
class AsInfluence:
    """An index, asked for all pairs."""

    index: Any

    def scores(self, task: Task, queries: Any, data: Any, *, settings: Any = None) -> Scores:
        asked = self.index.query_rows(task, queries, settings=settings)
        values = asked @ self.index.store.rows(range(len(self.index))).T
        return Scores(np.arange(len(data)), {"influence": values}, np.arange(len(queries)))

    def self_influence(self, task: Task, data: Any, *, settings: Any = None) -> Scores:
        found = self.index.store.column("self_influence")
        return Scores(np.arange(len(data)), {"self_influence": found})


@dataclass(frozen=True)
class ExactInfluence:
    """The damped inverse of a Hessian, on gradients as they are."""

    hessian: Tensor
    damping: float

    @cached_property
    def factor(self) -> Tensor:
        damped = self.hessian + self.damping * torch.eye(len(self.hessian), dtype=torch.float64)
        return torch.linalg.cholesky(damped)

    def scores(self, task: Task, queries: Any, data: Any, *, settings: Any = None) -> Scores:
        rows, asked = (softmax_gradients(task, part) for part in (data, queries))
        values = (rows @ torch.cholesky_solve(asked.mT, self.factor)).mT.numpy()
        return Scores(np.arange(len(data)), {"influence": values}, np.arange(len(queries)))

    def self_influence(self, task: Task, data: Any, *, settings: Any = None) -> Scores:
        rows = softmax_gradients(task, data)
        solved = torch.linalg.solve_triangular(self.factor, rows.mT, upper=False)
        return Scores(np.arange(len(data)), {"self_influence": solved.square().sum(0).numpy()})


def softmax_inputs(task: Task, rows: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Return inputs with a trailing one, probabilities and labels of a softmax regression."""
    inputs = torch.stack([row[0] for row in rows])
    labels = torch.tensor([row[1] for row in rows])
    with torch.no_grad():
        probabilities = task.model(inputs).double().softmax(-1)
    wide = torch.cat([inputs, torch.ones(len(inputs), 1)], 1).double()
    return wide, probabilities, labels


def softmax_gradients(task: Task, rows: Any) -> Tensor:
    """Return the gradient of each loss, ``n (o i)``."""
    inputs, probabilities, labels = softmax_inputs(task, rows)
    errors = probabilities - torch.nn.functional.one_hot(labels, probabilities.shape[1])
    return (errors[:, :, None] * inputs[:, None, :]).flatten(1)


def softmax_parts(trained: Trained) -> tuple[Tensor, Tensor]:
    inputs, probabilities, _ = softmax_inputs(trained.task, trained.train)
    return inputs, probabilities


def softmax_hessian(inputs: Tensor, probabilities: Tensor) -> Tensor:
    """Return the Hessian of the mean loss of a softmax regression, ``(o i) (o i)``."""
    num, outs = probabilities.shape
    size = inputs.shape[1]
    whole = inputs.new_zeros(outs, size, outs, size)
    for one in range(outs):
        for other in range(one + 1):
            weights = probabilities[:, one] * (float(one == other) - probabilities[:, other])
            block = (inputs * weights[:, None]).mT @ inputs / num
            whole[one, :, other], whole[other, :, one] = block, block.mT
    return whole.reshape(outs * size, outs * size)


def suspicions(trained: Trained) -> Iterator[tuple[str, np.ndarray]]:
    """Yield what a forward pass and a norm say of each label, without any attribution."""
    columns = [Statistic("loss"), Statistic("el2n"), GradientNorm()]
    table = run_pass(trained.task, trained.train, columns, settings=trained.reading)
    for name in ("loss", "el2n", "grad_norm"):
        yield {"grad_norm": "gradient norm", "el2n": "EL2N"}.get(name, name), table.columns[name]
