"""The methods of `attribution.py`: what each fits, and its sweep over damping.

A method is a function from a trained set-up to what it fitted, by the name of the damping;
everything that is fitted has `scores(task, queries, data)` and most have `self_influence`.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from attribution_exact import ExactInfluence, softmax_hessian, softmax_inputs
from attribution_solvers import arnoldi, astra, conjugate_gradients, lissa, neumann
from attribution_trained import DEFAULT, Fit, Trained, num_params, width

from influence import (
    BM25,
    EKFAC,
    KFAC,
    LESS,
    MFAC,
    SOURCE,
    TFIDF,
    TRAK,
    BasisName,
    Curvature,
    DataInf,
    Diagonal,
    EmbeddingSimilarity,
    FittedRowInfluence,
    FittedSOURCE,
    FittedTRAKEnsemble,
    GradientCosine,
    HiddenSimilarity,
    LastLayerTracIn,
    ModelCheckpoint,
    RelatIF,
    RelativeDamping,
    RepresenterPoints,
    RowInfluence,
    Segment,
    TracIn,
    TrackStar,
    TRAKEnsemble,
    build_index,
)
from projections import (
    SJLT,
    GradientNorm,
    Scores,
    Statistic,
    Task,
    run_pass,
)

MULTIPLES = (0.01, 0.1, 1.0, 3.0, 10.0)


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


def tracin_last_layer(trained: Trained) -> Fit:
    states = trained.checkpoints(3 if trained.tiny else 10)
    fitted = LastLayerTracIn(checkpoints=states).fit(trained.task, settings=trained.reading)
    last = list(trained.model.parameters())[-2]
    return Fit({DEFAULT: fitted}, 4 * last.numel() * len(states))


def less(trained: Trained) -> Fit:
    """Adam's directions along a warm-up of its own, as it asks for moments of Adam."""
    sketch = SJLT(num_dims=width(trained, 4096), seed=0)
    states = trained.warm_up(3)
    method = LESS(checkpoints=states, projector=sketch)
    fitted = method.fit(trained.task, trained.train, settings=trained.reading)
    size = 4 * sketch.num_dims * len(trained.train) * len(states)
    return Fit({DEFAULT: fitted}, size, trainings=1)


def source(trained: Trained) -> Fit:
    """Three segments of two checkpoints; it has no damping, but the time of a segment."""
    recipe, segments = trained.setup.trainer.recipe, 1 if trained.tiny else 3
    states = [dict(one.state) for one in trained.checkpoints(2 * segments)]
    steps = max(1, recipe.num_steps(len(trained.train)) // segments)
    along = [
        Segment(
            checkpoints=[states[k] for k in part],
            learning_rate=recipe.learning_rate,
            num_steps=steps,
            momentum=recipe.momentum,
        )
        for part in np.array_split(np.arange(len(states)), segments)
    ]
    method = SOURCE(segments=along, seed=0)
    fitted = method.fit(trained.task, trained.train, settings=trained.reading)
    swept = {f"{times:g} x time": longer(fitted, times) for times in (0.1, 0.3, 3.0)}
    return Fit({DEFAULT: fitted, **swept}, 4 * num_params(trained) * 2 * segments)


def longer(fitted: FittedSOURCE, times: float) -> FittedSOURCE:
    """Return it with segments that last so many times as long; curvature knows no time."""
    segments = tuple(
        replace(one, learning_rate=one.learning_rate * times) for one in fitted.segments
    )
    return replace(fitted, segments=segments)


def mfac(trained: Trained) -> Fit:
    """The window of 512 gradients; its mean eigenvalue is small, since most are zero."""
    rules = {DEFAULT: 0.1} | {f"{m:g} x mean": m for m in (1.0, 10.0, 100.0)}
    num_rows = 16 if trained.tiny else 512
    swept = {
        name: MFAC(num_rows=num_rows, damping=RelativeDamping(m), seed=0).fit(
            trained.task, trained.train, settings=trained.reading
        )
        for name, m in rules.items()
    }
    return Fit(swept, 4 * num_rows * num_params(trained))


def of_texts(method: Any) -> Callable[[Trained], Fit]:
    """Return a method that looks at texts alone."""

    def fit(trained: Trained) -> Fit:
        assert trained.setup.texts is not None
        own, asked = trained.setup.texts
        fitted = OfTexts(method.fit(None, own), own, asked)
        return Fit({DEFAULT: fitted}, sum(len(text) for text in own))

    return fit


def input_embeddings(trained: Trained) -> Fit:
    """Inputs as they are: pixels, or what a text was turned into before any training."""
    fitted = EmbeddingSimilarity(encoder=inputs_of).fit(None, trained.train)
    return Fit({DEFAULT: fitted}, 4 * trained.setup.trainer.data[0].numel())


def inputs_of(rows: Any) -> np.ndarray:
    return np.stack([row[0].numpy() for row in rows])


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


def curvature(method: Curvature) -> Callable[[Trained], Fit]:
    """Return a curvature of every layer, and the sweep over its damping."""

    def fit(trained: Trained) -> Fit:
        fitted = method.fit(trained.task, trained.train, settings=trained.reading)
        rules = {DEFAULT: 0.1} | {f"{m:g} x mean": m for m in MULTIPLES if m != 0.1}
        size = sum(
            layer.eigenvalues.numel() + layer.left.size**2 + layer.right.size**2
            for layer in fitted.layers.values()
        )
        swept = {name: fitted.with_damping(RelativeDamping(m)) for name, m in rules.items()}
        return Fit(swept, 4 * size)

    return fit


def index(basis: BasisName, num_dims: int) -> Callable[[Trained], Fit]:
    """Return the eigenbasis index of so many numbers, with int8 rows."""

    def method(trained: Trained) -> Fit:
        curvature = EKFAC(seed=0).fit(trained.task, trained.train, settings=trained.reading)
        total = sum(layer.eigenvalues.numel() for layer in curvature.layers.values())
        most = len(trained.train) if basis == "principal" else total
        dims = min(total, most, width(trained, num_dims))
        built = build_index(
            curvature,
            trained.task,
            trained.train,
            num_dims=dims,
            path=trained.folder / f"index-{basis}",
            basis=basis,
            row_dtype="int8",
            settings=trained.reading,
        )
        fits = {DEFAULT: AsInfluence(built)} | {
            f"{m:g} x default": AsInfluence(built.with_damping(built.damping * m))
            for m in (0.1, 0.3, 3.0, 10.0)
        }
        made_of = dims * len(built.projector.eigenvalues) if basis == "principal" else 0
        return Fit(fits, (dims + 4) * len(trained.train) + 4 * dims**2 + 4 * made_of)

    return method


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
    return Fit(swept, curvature(EKFAC(seed=0))(trained).bytes_kept)


def representer(trained: Trained) -> Fit:
    fitted = {
        name: RepresenterPoints(l2=l2, tolerance=1e-3).fit(
            trained.task, trained.train, settings=trained.reading
        )
        for name, l2 in {DEFAULT: 1e-2, "0.1": 1e-1, "1": 1.0}.items()
    }
    first = fitted[DEFAULT]
    return Fit(fitted, 8 * (first.features.numel() + first.alphas.numel()))


def exact_influence(trained: Trained) -> Fit:
    """The inverse of the whole Hessian of a softmax regression."""
    inputs, probabilities, _ = softmax_inputs(trained.task, trained.train)
    hessian = softmax_hessian(inputs, probabilities)
    dampings = {DEFAULT: 1e-2} | {f"{d:g}": d for d in (1.0, 1e-1, 5e-3, 1e-3, 1e-4, 1e-5)}
    fits = {name: ExactInfluence(hessian, damping) for name, damping in dampings.items()}
    return Fit(fits, hessian.numel() * 8)


METHODS: dict[str, Callable[[Trained], Fit]] = {
    "random": random_scores,
    "BM25": of_texts(BM25()),
    "TF-IDF": of_texts(TFIDF()),
    "cosine of inputs": input_embeddings,
    "last hidden state": hidden_similarity,
    "gradient dot product": gradient_dot,
    "gradient cosine": gradient_cosine,
    "TracIn, 10 checkpoints": tracin,
    "TracIn, last layer": tracin_last_layer,
    "LESS": less,
    "DataInf": datainf,
    "TRAK, 1 model": trak(1),
    "TRAK, 10 models": trak(10),
    "TRAK, 50 models": trak(50),
    "TrackStar": trackstar,
    "representer points": representer,
    "diagonal Fisher": curvature(Diagonal(seed=0)),
    "K-FAC": curvature(KFAC(seed=0)),
    "EK-FAC": curvature(EKFAC(seed=0)),
    "RelatIF of EK-FAC": relatif,
    "SOURCE": source,
    "M-FAC": mfac,
    "Arnoldi": arnoldi,
    "LiSSA": lissa,
    "Neumann series": neumann,
    "ASTRA": astra,
    "conjugate gradients": conjugate_gradients,
    "index of coordinates, int8": index("coordinates", 4096),
    "index, int8": index("principal", 1024),
    "exact influence": exact_influence,
}


@dataclass(frozen=True)
class OfTexts:
    """A method of texts, asked by the positions of rows."""

    fitted: Any
    own: list[str]
    asked: list[str]

    def scores(self, task: Task, queries: Any, data: Any, *, settings: Any = None) -> Scores:
        return self.fitted.scores(None, self.asked[: len(queries)], self.own)


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


def suspicions(trained: Trained) -> Iterator[tuple[str, np.ndarray]]:
    """Yield what a forward pass and a norm say of each label, without any attribution."""
    columns = [Statistic("loss"), Statistic("el2n"), GradientNorm()]
    table = run_pass(trained.task, trained.train, columns, settings=trained.reading)
    for name in ("loss", "el2n", "grad_norm"):
        yield {"grad_norm": "gradient norm", "el2n": "EL2N"}.get(name, name), table.columns[name]
