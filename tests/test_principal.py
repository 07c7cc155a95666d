"""Principal directions of gradients: held to the singular vectors, and to algebra written out."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from influence import EKFAC, AbsoluteDamping, InfluenceIndex, build_index
from influence.principal import PrincipalProjector, principal_directions
from projections import (
    Classification,
    PassSettings,
    QueryTask,
    Sketch,
    StoreMismatchError,
    Task,
    run_pass,
)

STORED = 2e-4  # maps and rows are kept in float32
NUM_TRAIN = 24


@pytest.fixture(scope="module")
def setup() -> tuple[Task, list[Any], list[Any], Any]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 4, 2, groups=2), nn.Tanh(), nn.Flatten(), nn.Linear(16, 3))
    task = Classification(model.double().eval())
    rows = [(torch.randn(2, 3, 3, dtype=torch.float64), label % 3) for label in range(30)]
    train, queries = rows[:NUM_TRAIN], rows[NUM_TRAIN:]
    fitted = EKFAC(seed=0, damping=AbsoluteDamping(0.05)).fit(task, train)
    return task, train, queries, fitted


def scores_of(index: InfluenceIndex, task: Task, queries: list[Any]) -> np.ndarray:
    asked = index.query_rows(task, queries).astype(np.float64)
    return asked @ index.store.rows(range(len(index))).T.astype(np.float64)


def wide_rows(index: InfluenceIndex, task: Task, data: list[Any]) -> np.ndarray:
    """Return the coordinates that the directions are made of."""
    assert isinstance(index.projector, PrincipalProjector)
    settings = PassSettings(kinds=("linear",))
    found = run_pass(task, data, [Sketch(index.projector.inner)], settings=settings)
    return found.columns["sketch"][np.argsort(found.ids)].astype(np.float64)


def map_of(index: InfluenceIndex) -> np.ndarray:
    """Return ``B`` with the coordinates in their order."""
    projector = index.projector
    assert isinstance(projector, PrincipalProjector)
    found = np.zeros((len(projector.eigenvalues), projector.num_dims))
    for name, kept in projector.inner.kept.items():
        found[kept.slots.numpy()] = projector.parts[name].numpy()
    return found


def test_the_directions_are_the_first_singular_vectors() -> None:
    rows = np.random.default_rng(0).standard_normal((12, 40))
    found = principal_directions(rows, 5)
    expected = np.linalg.svd(rows)[2][:5].T
    np.testing.assert_allclose(np.abs(found.T @ expected), np.eye(5), atol=1e-10)


def test_with_a_direction_for_each_example_the_index_gives_the_full_scores(setup, tmp_path) -> None:
    task, train, queries, fitted = setup
    options = {"num_dims": NUM_TRAIN, "path": tmp_path, "gram": None}
    index = build_index(fitted, task, train, basis="principal", **options)
    exact = fitted.scores(task, queries, train).values
    np.testing.assert_allclose(scores_of(index, task, queries), exact, rtol=STORED, atol=STORED)
    top, _ = index.search(task, queries, k=3)
    np.testing.assert_array_equal(top.ids, np.argsort(-exact, axis=1)[:, :3])


def test_a_few_directions_are_nearer_to_the_full_scores_than_as_many_coordinates(
    setup, tmp_path
) -> None:
    task, train, queries, fitted = setup
    exact = fitted.scores(task, queries, train).values
    found = []
    for basis in ("principal", "coordinates"):
        options = {"num_dims": 10, "path": tmp_path / basis, "gram": None}
        index = build_index(fitted, task, train, basis=basis, **options)
        found.append(np.corrcoef(scores_of(index, task, queries).ravel(), exact.ravel())[0, 1])
    assert found[0] > found[1]


@pytest.mark.parametrize("gram", ["exact", "empirical", None])
def test_scores_are_those_of_the_matrix_between_the_directions(setup, tmp_path, gram) -> None:
    task, train, queries, fitted = setup
    options: dict[str, Any] = {"num_dims": 6, "num_coordinates": 40, "path": tmp_path}
    index = build_index(fitted, task, train, gram=gram, num_learned=15, **options)
    index = index.with_damping(0.3)
    b = map_of(index)
    x, q = wide_rows(index, task, train), wide_rows(index, QueryTask(task), queries)
    values = index.projector.eigenvalues.numpy()
    dampings = index.projector.dampings(fitted.dampings).numpy()
    if gram is None:
        matrix = b.T @ np.diag(values + 0.3 * dampings) @ b
    else:
        matrix = np.asarray(index.gram) + 0.3 * np.eye(6)
    expected = q @ b @ np.linalg.inv(matrix) @ b.T @ x.T
    np.testing.assert_allclose(scores_of(index, task, queries), expected, rtol=STORED, atol=STORED)
    metric = np.eye(40) if gram == "exact" else np.diag(values + dampings)
    np.testing.assert_allclose(b.T @ metric @ b, np.eye(6), atol=1e-5)
    if gram == "empirical":
        own = b.T @ x.T @ x @ b / NUM_TRAIN
        np.testing.assert_allclose(np.asarray(index.gram), own, rtol=1e-3, atol=1e-5)


def test_the_directions_are_learned_from_a_sample_that_the_seed_draws(setup, tmp_path) -> None:
    task, train, _, fitted = setup
    maps = []
    for number, seed in enumerate((0, 0, 1)):
        options: dict[str, Any] = {"num_dims": 5, "num_learned": 12, "seed": seed}
        index = build_index(fitted, task, train, path=tmp_path / str(number), **options)
        maps.append(map_of(index))
    np.testing.assert_array_equal(maps[0], maps[1])
    assert np.abs(maps[0] - maps[2]).max() > 0.01
    assert not list(tmp_path.glob("*/principal-*/"))  # the sample is gone once it is learned from


def test_a_loaded_index_answers_the_same(setup, tmp_path) -> None:
    task, train, queries, fitted = setup
    index = build_index(fitted, task, train, num_dims=6, path=tmp_path, row_dtype="int8")
    loaded = InfluenceIndex.load(tmp_path)
    for one, other in zip(
        index.search(task, queries, k=5, rerank=9, data=train),
        loaded.search(task, queries, k=5, rerank=9, data=train),
        strict=True,
    ):
        np.testing.assert_array_equal(one.ids, other.ids)
        np.testing.assert_array_equal(one.scores, other.scores)


def test_an_index_of_an_earlier_version_is_refused(setup, tmp_path) -> None:
    task, train, _, fitted = setup
    build_index(fitted, task, train, num_dims=6, path=tmp_path)
    config = json.loads((tmp_path / "index.json").read_text())
    del config["num_coordinates"]
    (tmp_path / "index.json").write_text(json.dumps(config))
    with pytest.raises(StoreMismatchError, match=r"It was built by an earlier version: build it"):
        InfluenceIndex.load(tmp_path)


def test_other_directions_are_not_mistaken_for_the_first(setup, tmp_path) -> None:
    task, train, _, fitted = setup
    build_index(fitted, task, train, num_dims=6, path=tmp_path)
    with pytest.raises(StoreMismatchError, match="projector"):
        build_index(fitted, task, train, num_dims=6, num_learned=13, path=tmp_path)


def test_auto_takes_coordinates_where_examples_are_too_few(setup, tmp_path) -> None:
    task, train, _, fitted = setup
    config = []
    for num_dims in (NUM_TRAIN, NUM_TRAIN + 1):
        path: Path = tmp_path / str(num_dims)
        build_index(fitted, task, train, num_dims=num_dims, path=path)
        config.append(json.loads((path / "index.json").read_text()))
    assert config[0]["directions"] is not None
    assert config[0]["num_learned"] == NUM_TRAIN
    assert config[1]["directions"] is None
    assert config[1]["num_coordinates"] == NUM_TRAIN + 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"basis": "coordinates", "num_learned": 9}, "`num_learned` must be left out where rows"),
        ({"num_coordinates": 5}, r"`num_coordinates` must be in \[6, 71\].* Got 5"),
        ({"num_learned": 5}, r"`num_learned` must be in \[6, 24\].*Got 5"),
        ({"num_dims": 25, "basis": "principal"}, r"`num_dims` must be in \[1, 24\].*Got 25"),
    ],
)
def test_wrong_requests_are_refused_before_anything_is_computed(
    setup, tmp_path, arguments, message
) -> None:
    task, train, _, fitted = setup
    with pytest.raises(ValueError, match=message):
        build_index(fitted, task, train, path=tmp_path / "no", **{"num_dims": 6, **arguments})
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize("num_rows", [0, 1, 3])
def test_coordinates_fill_up_what_the_gradients_do_not_span(num_rows: int) -> None:
    rows = np.zeros((6, 9))
    rows[:num_rows] = np.random.default_rng(0).standard_normal((num_rows, 9))
    found = principal_directions(rows, 5)
    np.testing.assert_allclose(found.T @ found, np.eye(5), atol=1e-10)
    np.testing.assert_allclose(rows @ found @ found.T, rows, atol=1e-10)
    left = np.eye(9, 5 - num_rows)  # the first coordinates are told whole as well
    np.testing.assert_allclose(found @ found.T @ left, left, atol=1e-10)
