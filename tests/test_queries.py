"""A query is a batch of examples, a file of queries, or gradients; all give the same rows."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from influence import (
    EKFAC,
    TRAK,
    GradientCosine,
    GradientDot,
    InfluenceIndex,
    Metric,
    build_index,
    retrieve,
    retrieve_rows,
)
from projections import (
    SJLT,
    DataError,
    FaissIndex,
    GradientStore,
    PassSettings,
    Regression,
    Rows,
    delete_rows,
    index_gradients,
    project_gradients,
    query_rows,
)

PROJECTOR = SJLT(num_dims=32, seed=0)
METRICS: dict[str, Metric] = {"trak": TRAK(), "cosine": GradientCosine(), "dot": GradientDot()}


class Both(nn.Module):
    """A convolution, a square and a wide layer of both kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 2)
        self.square, self.wide, self.last = Conv1D(8, 8), Conv1D(5, 8), nn.Linear(5, 2)

    def forward(self, x: Any) -> Any:
        hidden = self.conv(x[:, None]).tanh().flatten(1)
        return self.last(self.wide(self.square(hidden).tanh()).tanh())


class Mapped(Regression):
    """Rows are mappings, as those of files are."""

    def encode(self, rows: Any) -> list[Any]:
        return [(torch.tensor(row["x"]), torch.tensor(row["y"])) for row in rows]


def build(path: Path, count: int = 40) -> tuple[Mapped, list[dict[str, Any]], GradientStore]:
    torch.manual_seed(0)
    task = Mapped(Both().eval())
    data = [
        {"id": 10 * n, "x": torch.randn(3, 3).tolist(), "y": torch.randn(2).tolist()}
        for n in range(count)
    ]
    settings = PassSettings(shard_size=16)
    return task, data, index_gradients(task, data, PROJECTOR, path=path, settings=settings)


def gradients_of(task: Mapped, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """By autograd, one example at a time."""
    found = []
    for row in rows:
        batch = task.collate(task.encode([row]))
        loss = task.losses(batch).sum()
        parameters = dict(task.model.named_parameters())
        grads = torch.autograd.grad(loss, list(parameters.values()))
        found.append(dict(zip(parameters, grads, strict=True)))
    return {name: torch.stack([one[name] for one in found]) for name in found[0]}


def test_examples_a_file_and_gradients_give_the_same_rows(tmp_path: Path) -> None:
    task, data, store = build(tmp_path / "s")
    expected = query_rows(task, data[:3], PROJECTOR, store=store)
    file = tmp_path / "queries.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in data[:3]))
    np.testing.assert_allclose(query_rows(task, file, PROJECTOR, store=store), expected, rtol=1e-5)
    given = project_gradients(gradients_of(task, data[:3]), task, PROJECTOR)
    np.testing.assert_allclose(given, expected, rtol=1e-4, atol=1e-5)


def test_gradients_that_do_not_fit_the_model_are_refused(tmp_path: Path) -> None:
    task, data, _ = build(tmp_path / "s", 2)
    gradients = gradients_of(task, data[:2])
    with pytest.raises(ValueError, match=r"Missing: \['last\.bias'\]; unknown: \['other'\]"):
        given = {name: value for name, value in gradients.items() if name != "last.bias"}
        project_gradients({**given, "other": gradients["last.bias"]}, task, PROJECTOR)
    with pytest.raises(ValueError, match=r"gradient of 'last\.bias' must have the shape \(q, \(2,"):
        project_gradients({**gradients, "last.bias": torch.ones(2, 3)}, task, PROJECTOR)


@pytest.mark.parametrize("name", list(METRICS))
def test_rows_that_are_computed_once_serve_every_metric(tmp_path: Path, name: str) -> None:
    task, data, store = build(tmp_path / "s")
    rows = query_rows(task, data[:3], PROJECTOR, store=store)
    expected = retrieve(task, data[:3], store, PROJECTOR, METRICS[name], k=5)
    found = retrieve_rows(rows, store, METRICS[name], k=5)
    index = FaissIndex.build(store, "SQ8", seed=0)
    again = retrieve_rows(rows, store, METRICS[name], k=5, index=index, rerank=40)
    for one, two, three in zip(expected, found, again, strict=True):
        np.testing.assert_array_equal(one.ids, two.ids)
        np.testing.assert_array_equal(one.ids, three.ids)


def test_scaled_rows_of_an_index_must_be_scored_again(tmp_path: Path) -> None:
    task, data, store = build(tmp_path / "s")
    rows = query_rows(task, data[:1], PROJECTOR, store=store)
    index = FaissIndex.build(store, "Flat", seed=0)
    with pytest.raises(ValueError, match=r"`rerank` must be at least k=5 for GradientCosine"):
        retrieve_rows(rows, store, GradientCosine(), k=5, index=index)


def test_rows_are_found_in_the_data_by_id_after_a_deletion(tmp_path: Path) -> None:
    task, data, store = build(tmp_path / "s")
    store = delete_rows(store.path, [0, 50])
    top, _ = retrieve(task, data[20:21], store, PROJECTOR, GradientDot(), k=38)
    assert sorted(Rows(data).find(top.ids[0])) == [n for n in range(40) if n not in (0, 5)]
    assert store.ids[top.positions].tolist() == top.ids.tolist()
    with pytest.raises(DataError, match=r"must have the rows with the ids \[7\]"):
        Rows(data).find([10, 7])


def test_an_influence_index_ranks_what_is_left_again_after_a_deletion(tmp_path: Path) -> None:
    task, data, _ = build(tmp_path / "unused")
    fitted = EKFAC(seed=0).fit(task, data)
    index = build_index(fitted, task, data, num_dims=32, path=tmp_path / "index")
    best = index.search(task, data[:1], k=2)[0].ids[0]
    delete_rows(tmp_path / "index" / "store", best)
    index = InfluenceIndex.load(tmp_path / "index")
    left = [row for row in data if row["id"] not in best.tolist()]
    exact = fitted.scores(task, data[:1], left).values
    top, _ = index.search(task, data[:1], k=5, rerank=38, data=data)
    order = np.argsort(-exact[0], kind="stable")[:5]
    assert top.ids[0].tolist() == [left[place]["id"] for place in order]
