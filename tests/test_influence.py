"""Metrics on stored rows equal dense algebra, and their sign says what training will do."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cases
import numpy as np
import pytest
import torch
from oracles import best, flat_gradients, trak_scores
from torch import Tensor, nn

from influence import TRAK, GradientCosine, GradientDot, Metric, retrieve
from projections import (
    SJLT,
    Classification,
    ConvergenceError,
    Gradient,
    GradientStore,
    PassSettings,
    Regression,
    StoreMismatchError,
    StoreWriter,
    Table,
    Task,
    index_gradients,
    query_rows,
)

SINGLE = 2e-5  # rows are kept in float32
DAMPING = 0.1


@dataclass(frozen=True)
class Everything:
    """A projector that keeps every coordinate: the identity, for small models."""

    starts: tuple[tuple[str, int], ...]
    num_dims: int

    def project(self, gradient: Gradient, out: Tensor) -> None:
        starts = dict(self.starts)
        for name, values in gradient.materialize().items():
            flat = values.flatten(1)
            out[:, starts[name] : starts[name] + flat.shape[1]] += flat.to(out.dtype)


def everything(model: nn.Module) -> Everything:
    starts, end = [], 0
    for name, parameter in model.named_parameters():
        starts.append((name, end))
        end += parameter.numel()
    return Everything(tuple(starts), end)


def norms(rows: np.ndarray) -> np.ndarray:
    return np.linalg.norm(rows, axis=1)


@dataclass(frozen=True)
class Row:
    """A metric under the contract: itself and its scores by dense algebra."""

    metric: Metric
    dense: Callable[[np.ndarray, np.ndarray], np.ndarray]


METRICS = {
    "dot": Row(GradientDot(), lambda q, g: q @ g.T),
    "cosine": Row(GradientCosine(), lambda q, g: q @ g.T / np.outer(norms(q), norms(g))),
    "trak": Row(TRAK(damping=DAMPING), lambda q, g: trak_scores(q, g, DAMPING)),
}
rows_of = pytest.mark.parametrize("row", METRICS.values(), ids=list(METRICS))


def indexed(name: str, num: int, path: Path) -> tuple[Task, list[Any], GradientStore, Everything]:
    task, examples = cases.build(name, num)
    projector = everything(task.model)
    settings = PassSettings(shard_size=4)
    store = index_gradients(task, examples, projector, path=path, settings=settings)
    return task, examples, store, projector


@rows_of
@pytest.mark.parametrize("name", ["mlp-layernorm-subclass", "linear-regression"])
def test_retrieval_equals_dense_algebra_on_full_gradients(
    tmp_path: Path, row: Row, name: str
) -> None:
    task, examples, store, projector = indexed(name, 9, tmp_path)
    gradients = flat_gradients(task, examples)
    expected = row.dense(gradients[:3], gradients)
    top, bottom = retrieve(task, examples[:3], store, projector, row.metric, k=9)
    np.testing.assert_allclose(
        top.scores, np.take_along_axis(expected, top.positions, 1), rtol=SINGLE, atol=SINGLE
    )
    np.testing.assert_array_equal(top.positions, best(expected, 9))
    np.testing.assert_array_equal(bottom.positions, best(-expected, 9))
    np.testing.assert_array_equal(top.ids, top.positions)


@rows_of
def test_a_self_score_is_the_score_of_a_row_with_itself(tmp_path: Path, row: Row) -> None:
    task, examples, store, _ = indexed("mlp-layernorm-subclass", 9, tmp_path)
    gradients = flat_gradients(task, examples)
    found = row.metric.fit(store).self_scores()
    np.testing.assert_allclose(found, np.diag(row.dense(gradients, gradients)), rtol=SINGLE)


@rows_of
def test_mapped_queries_and_scaled_rows_give_the_scores(tmp_path: Path, row: Row) -> None:
    task, examples, store, projector = indexed("mlp-layernorm-subclass", 7, tmp_path)
    fitted = row.metric.fit(store)
    queries = fitted.map_queries(query_rows(task, examples[:2], projector, store=store))
    scales = fitted.row_scales()
    found = queries @ store.column("sketch").T * (1 if scales is None else scales)
    gradients = flat_gradients(task, examples)
    np.testing.assert_allclose(found, row.dense(gradients[:2], gradients), rtol=SINGLE, atol=SINGLE)


@rows_of
@pytest.mark.parametrize("k", [0, 8])
def test_more_neighbours_than_rows_are_refused_before_the_queries(
    tmp_path: Path, row: Row, k: int
) -> None:
    task, _, store, projector = indexed("mlp-layernorm-subclass", 7, tmp_path)
    with pytest.raises(ValueError, match=rf"`k` must be in \[1, 7\].*Got {k}\."):
        retrieve(task, None, store, projector, row.metric, k=k)


@rows_of
def test_a_store_of_another_model_is_refused(tmp_path: Path, row: Row) -> None:
    task, examples, store, projector = indexed("mlp-layernorm-subclass", 7, tmp_path)
    with torch.no_grad():
        next(task.model.parameters()).mul_(2)
    with pytest.raises(StoreMismatchError, match=r"They differ in: model: "):
        retrieve(task, examples, store, projector, row.metric, k=1)


# The sign, by training.


def trained() -> tuple[Classification, list[Any], list[Any]]:
    """A small model near its optimum, and data with labels of which a fifth are wrong."""
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    inputs = torch.randn(60, 5, generator=generator).double()
    labels = inputs[:, :3].argmax(1)
    wrong = torch.rand(60, generator=generator) < 0.2
    labels = torch.where(wrong, (labels + 1) % 3, labels)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    for _ in range(100):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), labels).backward()
        optimizer.step()
    optimizer.zero_grad()
    rows = list(zip(inputs, labels, strict=True))
    return Classification(model), rows[:50], rows[50:]


def loss_after_step(task: Task, query: Any, direction: np.ndarray, size: float) -> float:
    """The query's loss after a step against a direction, which is then taken back."""
    parameters = list(task.model.parameters())
    vector = torch.from_numpy(direction).to(parameters[0])
    vector = vector * (size / float(np.linalg.norm(direction)))
    before = nn.utils.parameters_to_vector(parameters).detach()
    nn.utils.vector_to_parameters(before - vector, parameters)
    with torch.no_grad():
        loss = float(task.losses(task.collate([query])).sum())
    nn.utils.vector_to_parameters(before, parameters)
    return loss


@rows_of
def test_training_on_the_most_helpful_example_lowers_the_loss_of_the_query(
    tmp_path: Path, row: Row
) -> None:
    task, data, queries = trained()
    projector = everything(task.model)
    store = index_gradients(task, data, projector, path=tmp_path)
    top, bottom = retrieve(task, queries, store, projector, row.metric, k=1)
    gradients = flat_gradients(task, data)
    step = np.eye(gradients.shape[1])
    if isinstance(row.metric, TRAK):  # whose training step is that of natural gradient descent
        gram = gradients.T @ gradients / len(gradients)
        step = np.linalg.inv(gram + DAMPING * np.trace(gram) / len(gram) * step)
    for number, query in enumerate(queries):
        before = loss_after_step(task, query, gradients[0], 0.0)
        helpful = gradients[top.positions[number, 0]] @ step
        harmful = gradients[bottom.positions[number, 0]] @ step
        assert loss_after_step(task, query, helpful, 1e-4) < before
        assert loss_after_step(task, query, harmful, 1e-4) > before


def test_an_example_is_the_most_helpful_for_itself(tmp_path: Path) -> None:
    task, data, _ = trained()
    projector = SJLT(num_dims=512, seed=0)
    store = index_gradients(task, data, projector, path=tmp_path)
    top, _ = retrieve(task, data, store, projector, GradientCosine(), k=1)
    assert float(np.mean(top.positions[:, 0] == np.arange(len(data)))) > 0.9


# Trouble.


def store_of(path: Path, rows: np.ndarray) -> GradientStore:
    columns = {"sketch": rows.astype(np.float32), "grad_norm": norms(rows).astype(np.float32)}
    StoreWriter(path, {}, num_rows=len(rows)).write(0, Table(np.arange(len(rows)), columns))
    return GradientStore.open(path)


@pytest.mark.parametrize(
    "rows",
    [
        np.random.default_rng(0).normal(size=(3, 8)),
        np.repeat(np.random.default_rng(0).normal(size=(5, 8)), 4, axis=0),
        np.zeros((20, 8)),
    ],
    ids=["too-few", "repeated", "zeros"],
)
def test_trak_without_damping_needs_rows_that_span_the_space(
    tmp_path: Path, rows: np.ndarray
) -> None:
    store = store_of(tmp_path, rows)
    with pytest.raises(ConvergenceError, match=r"do not span its 8 dimensions\. Raise `damping`"):
        TRAK(damping=0).fit(store)


def test_trak_without_damping_equals_the_dense_inverse(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).normal(size=(40, 8)).astype(np.float32)
    fitted = TRAK(damping=0).fit(store_of(tmp_path, rows))
    found = fitted.map_queries(rows[:3]) @ rows.T
    np.testing.assert_allclose(found, trak_scores(rows[:3], rows, 0), rtol=1e-4, atol=1e-4)
    # Leverages sum to the number of dimensions, times n for the mean in the Gram matrix.
    assert fitted.self_scores().sum() == pytest.approx(8 * 40, rel=1e-6)


def test_trak_is_invariant_to_the_scale_of_all_rows(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).normal(size=(40, 8))
    small = TRAK().fit(store_of(tmp_path / "small", rows)).self_scores()
    large = TRAK().fit(store_of(tmp_path / "large", 1000 * rows)).self_scores()
    np.testing.assert_allclose(small, large, rtol=1e-5)


def test_a_negative_damping_is_refused() -> None:
    with pytest.raises(ValueError, match=r"`damping` must be at least 0\. Got -0\.1\."):
        TRAK(damping=-0.1)


def test_a_row_of_zeros_has_the_cosine_zero_and_a_query_of_zeros_has_none(tmp_path: Path) -> None:
    rows = np.eye(3)[[0, 1, 1]] * [[0], [2], [3]]
    fitted = GradientCosine().fit(store_of(tmp_path, rows))
    assert fitted.self_scores().tolist() == [0, 1, 1]
    assert fitted.row_scales() == pytest.approx([0, 1 / 2, 1 / 3])
    with pytest.raises(ValueError, match=r"Those at \[1\] are zero, and have no cosine"):
        fitted.map_queries(np.array([[1, 0, 0], [0, 0, 0]], np.float32))


def test_queries_ask_about_their_measurement(tmp_path: Path) -> None:
    class Prediction(Regression):
        """Asks what raised the prediction, not what raised the error."""

        def measurements(self, batch: Any) -> Tensor:
            return self.model(batch[0]).sum(1)

    task, examples = cases.build("linear-regression", 6)
    task = Prediction(task.model)
    projector = everything(task.model)
    store = index_gradients(task, examples, projector, path=tmp_path)
    rows = query_rows(task, examples[:2], projector, store=store)
    for row, (inputs, _) in zip(rows, examples, strict=False):
        expected = torch.cat([inputs, inputs, torch.ones(2)])
        np.testing.assert_allclose(row, expected, rtol=1e-6)
