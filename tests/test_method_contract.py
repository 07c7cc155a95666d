"""What every method of attribution holds: a row a method, its formula written out in float64."""

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from oracles import flat_gradients
from test_attribution_methods import EXACT, METHODS, SINGLE, Row, along, mfac
from test_similarities import QUERIES, TEXTS, Lengths, bm25, embeddings_written_out, tfidf
from test_target_methods import less, trackstar, unit
from test_unrolled import (
    logistic,
    refit_logistic,
    refit_ridge,
    replayed,
    ridge,
    source_written_out,
)
from torch import nn

from influence import (
    BM25,
    LESS,
    SOURCE,
    TFIDF,
    TRAK,
    EmbeddingSimilarity,
    FittedInfluence,
    GradientCosine,
    LogisticLeaveOneOut,
    Metagradients,
    ModelCheckpoint,
    RepresenterPoints,
    RidgeLeaveOneOut,
    RowInfluence,
    Segment,
    TrackStar,
    copy_state,
)
from projections import (
    AdamState,
    Moments,
    PassSettings,
    SentenceEncoder,
    StoreMismatchError,
    Task,
)

L2 = 0.2


def adam_along(model: nn.Module) -> list[ModelCheckpoint]:
    """Checkpoints around the model with moments of Adam, which need not be those of a run."""
    random = torch.Generator().manual_seed(2)

    def moments() -> AdamState:
        found = {}
        for name, value in model.named_parameters():
            first = torch.randn(value.shape, generator=random, dtype=value.dtype)
            second = torch.rand(value.shape, generator=random, dtype=value.dtype) + 0.1
            found[name] = Moments(first, second, 3, (0.9, 0.999), 1e-6)
        return AdamState(found)

    return [replace(one, adam=moments()) for one in along(model)]


def segments(model: nn.Module) -> tuple[Segment, ...]:
    first, last = (dict(one.state) for one in along(model))
    return (
        Segment(checkpoints=[first, last], learning_rate=0.3, num_steps=10),
        Segment(checkpoints=[copy_state(model)], learning_rate=0.1, num_steps=20, momentum=0.5),
    )


def cosine(task: Task, train: list[Any], queries: list[Any]) -> np.ndarray:
    return unit(flat_gradients(task, queries)) @ unit(flat_gradients(task, train)).T


def whitened(task: Task, train: list[Any], queries: list[Any]) -> np.ndarray:
    G, Q = flat_gradients(task, train), flat_gradients(task, queries)
    return trackstar(Q, G, G, mixing=0.0, damping=0.2)


def adam_cosines(task: Task, train: list[Any], queries: list[Any]) -> np.ndarray:
    return less(task, train, queries, adam_along(task.model))


def segment_by_segment(task: Task, train: list[Any], queries: list[Any]) -> np.ndarray:
    along_run = segments(task.model)
    fitted = SOURCE(segments=along_run, fisher="exact", seed=0).fit(task, train)
    return source_written_out(task, fitted, along_run, train, queries)


def representers(task: Task, train: list[Any], queries: list[Any]) -> np.ndarray:
    """Sums over the optimum of the regularised last layer, found by Newton's method."""
    model: Any = task.model

    def features(rows: list[Any]) -> torch.Tensor:
        inner = model[1](model[0](torch.stack([row[0] for row in rows]))).detach()
        return torch.cat([inner, torch.ones(len(rows), 1)], 1)

    inputs, labels = features(train), torch.tensor([row[1] for row in train])
    weights = refit_logistic(inputs, labels, torch.ones(len(train)).double(), L2)
    errors = (inputs @ weights.mT).softmax(-1) - torch.eye(3)[labels]
    alphas = -errors / (L2 * len(train))
    asked = [row[1] for row in queries]
    return (features(queries) @ inputs.mT * alphas[:, asked].mT).numpy()


def run_backwards(task: Task, train: list[Any], queries: list[Any]) -> np.ndarray:
    return replayed(task, train, queries, METAGRADIENTS)


def without_each(
    task: Task, train: list[Any], queries: list[Any], refit: Callable[[int], torch.Tensor]
) -> np.ndarray:
    """Rise of the loss of each query, in units of one example's weight, by refits."""
    layer: Any = task.model

    def losses(row: int) -> torch.Tensor:
        found = refit(row)
        with torch.no_grad():
            layer.weight.copy_(found[:, :-1])
            layer.bias.copy_(found[:, -1])
            return task.losses(task.collate(queries))

    kept = copy_state(layer)
    whole = losses(-1)
    rises = torch.stack([losses(row) - whole for row in range(len(train))], 1)
    layer.load_state_dict(kept)
    return (len(train) * rises).numpy()


def ridge_refits(task: Task, train: list[Any], queries: list[Any]) -> np.ndarray:
    return without_each(task, train, queries, lambda row: refit_ridge(train, row, L2, bias=True))


def logistic_refits(task: Task, train: list[Any], queries: list[Any]) -> np.ndarray:
    inputs = torch.cat([torch.stack([row[0] for row in train]), torch.ones(len(train), 1)], 1)
    labels = torch.tensor([row[1] for row in train])

    def refit(row: int) -> torch.Tensor:
        keep = (torch.arange(len(train)) != row).double()
        return refit_logistic(inputs, labels, keep, L2)

    return without_each(task, train, queries, refit)


METAGRADIENTS = Metagradients(
    learning_rate=0.5, num_steps=5, momentum=0.8, weight_decay=0.1, seed=0
)
ROWS = {
    **METHODS,
    "trak": Row(lambda task: RowInfluence(metric=TRAK(damping=0.1)), mfac),
    "gradient cosine": Row(lambda task: RowInfluence(metric=GradientCosine()), cosine),
    "less": Row(
        lambda task: LESS(checkpoints=adam_along(task.model)), adam_cosines, symmetric=False
    ),
    "trackstar": Row(lambda task: RowInfluence(metric=TrackStar(damping=0.2)), whitened),
    "representer points": Row(
        lambda task: RepresenterPoints(l2=L2, tolerance=1e-7),
        representers,
        symmetric=False,
        tolerance=SINGLE,
    ),
    "source": Row(
        lambda task: SOURCE(segments=segments(task.model), fisher="exact", seed=0),
        segment_by_segment,
        tolerance=SINGLE,
    ),
    "metagradients": Row(lambda task: METAGRADIENTS, run_backwards, tolerance=1e-8),
    "leave-one-out, ridge": Row(
        lambda task: RidgeLeaveOneOut(l2=L2),
        ridge_refits,
        tolerance=1e-8,
        problem=ridge,
        looks_at_weights=False,
    ),
    "leave-one-out, logistic": Row(
        lambda task: LogisticLeaveOneOut(l2=L2),
        logistic_refits,
        tolerance=1e-7,
        problem=logistic,
        looks_at_weights=False,
    ),
}
each_method = pytest.mark.parametrize("row", ROWS.values(), ids=list(ROWS))


@each_method
def test_scores_are_the_formula_written_out(row: Row) -> None:
    task, train, queries = row.problem()
    wanted = row.dense(task, train, queries)
    fitted = row.make(task).fit(task, train)
    found = fitted.scores(task, queries, train)
    atol = row.tolerance * np.abs(wanted).max()
    np.testing.assert_allclose(found.values, wanted, rtol=EXACT, atol=atol)
    assert isinstance(fitted, FittedInfluence)
    json.dumps(found.provenance)


@each_method
def test_scores_do_not_depend_on_batches_and_follow_the_order_of_the_rows(row: Row) -> None:
    task, train, queries = row.problem()
    fitted = row.make(task).fit(task, train, settings=PassSettings(batch_size=4, shard_size=5))
    first = fitted.scores(task, queries, train).values
    turned = train[::-1]
    second = row.make(task).fit(task, turned).scores(task, queries[::-1], turned).values
    atol = row.tolerance * np.abs(first).max()
    np.testing.assert_allclose(second[::-1, ::-1], first, rtol=EXACT, atol=atol)


@each_method
def test_scores_of_an_example_with_itself_are_its_self_influence(row: Row) -> None:
    task, train, _ = row.problem(7)
    fitted = row.make(task).fit(task, train)
    if not hasattr(fitted, "self_influence"):
        pytest.skip("the method has no self-influence")
    pairs = fitted.scores(task, train, train).values
    found = fitted.self_influence(task, train).values
    np.testing.assert_allclose(found, np.diag(pairs), rtol=1e-8)
    if row.symmetric:
        np.testing.assert_allclose(pairs, pairs.T, rtol=1e-8, atol=EXACT * np.abs(pairs).max())


@each_method
def test_the_model_is_left_as_it_was_and_another_one_is_refused(row: Row) -> None:
    task, train, queries = row.problem(6)
    before = copy_state(task.model)
    fitted = row.make(task).fit(task, train)
    found = fitted.scores(task, queries, train).values
    after = task.model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert all(not module._forward_hooks for module in task.model.modules())
    with torch.no_grad():
        next(task.model.parameters()).add_(1)
    if row.looks_at_weights:
        with pytest.raises(StoreMismatchError, match="must be asked with the model"):
            fitted.scores(task, queries, train)
    else:
        np.testing.assert_array_equal(fitted.scores(task, queries, train).values, found)


TEXT_ROWS = {
    "bm25": (BM25(), lambda: bm25(1.5, 0.75)),
    "tf-idf": (TFIDF(), tfidf),
    "embeddings": (
        EmbeddingSimilarity(encoder=SentenceEncoder(model=Lengths())),
        embeddings_written_out,
    ),
}
each_text_method = pytest.mark.parametrize("row", TEXT_ROWS.values(), ids=list(TEXT_ROWS))


@each_text_method
def test_scores_of_texts_are_the_formula_written_out(row: Any) -> None:
    method, written_out = row
    fitted = method.fit(None, TEXTS)
    found = fitted.scores(None, QUERIES, TEXTS)
    np.testing.assert_allclose(found.values, written_out(), rtol=1e-5, atol=1e-6)
    assert isinstance(fitted, FittedInfluence)
    json.dumps(found.provenance)


@each_text_method
def test_scores_of_texts_follow_their_order_and_refuse_others(row: Any) -> None:
    method, written_out = row
    fitted = method.fit(None, TEXTS[::-1])
    found = fitted.scores(None, QUERIES[::-1], TEXTS[::-1])
    np.testing.assert_allclose(found.values[::-1, ::-1], written_out(), rtol=1e-5, atol=1e-6)
    with pytest.raises(StoreMismatchError, match="must be asked for the data of the fit"):
        fitted.scores(None, QUERIES, TEXTS)
