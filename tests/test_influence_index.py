"""The influence index against full EK-FAC, and against algebra written out."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from influence import EKFAC, AbsoluteDamping, InfluenceIndex, build_index, choose_coordinates
from influence.whitening import Whitening, low_rank_gram
from projections import Classification, PassSettings, Sketch, StoreMismatchError, Task, run_pass

STORED = 2e-5  # rows are kept in float32
DAMPING = 0.05


@pytest.fixture
def setup() -> tuple[Task, list[Any], list[Any], Any]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 2, 2, groups=2), nn.Tanh(), nn.Flatten(), nn.Linear(8, 3))
    task = Classification(model.double().eval())
    rows = [(torch.randn(2, 3, 3, dtype=torch.float64), label % 3) for label in range(20)]
    train, queries = rows[:16], rows[16:]
    fitted = EKFAC(seed=0, damping=AbsoluteDamping(DAMPING)).fit(task, train)
    return task, train, queries, fitted


def size_of(fitted: Any) -> int:
    return sum(layer.eigenvalues.numel() for layer in fitted.layers.values())


def test_with_all_coordinates_the_index_gives_the_full_scores(setup, tmp_path) -> None:
    task, train, queries, fitted = setup
    index = build_index(fitted, task, train, num_dims=size_of(fitted), path=tmp_path, gram=None)
    top, bottom = index.search(task, queries, k=16)
    exact = fitted.scores(task, queries, train).values
    order = np.argsort(-exact, axis=1, kind="stable")
    np.testing.assert_array_equal(top.ids, order)
    np.testing.assert_allclose(
        top.scores, np.take_along_axis(exact, order, 1), rtol=STORED, atol=STORED
    )
    np.testing.assert_array_equal(bottom.ids, order[:, ::-1])


def test_one_store_serves_every_damping(setup, tmp_path) -> None:
    task, train, queries, fitted = setup
    index = build_index(fitted, task, train, num_dims=size_of(fitted), path=tmp_path, gram=None)
    other = index.with_damping(0.7 / DAMPING)
    exact = fitted.with_damping(AbsoluteDamping(0.7)).scores(task, queries, train).values
    found, _ = other.search(task, queries, k=3)
    np.testing.assert_array_equal(found.ids, np.argsort(-exact, axis=1)[:, :3])


def test_the_gram_matrix_is_the_exact_fisher_of_the_kept_coordinates(setup, tmp_path) -> None:
    task, train, _, fitted = setup
    index = build_index(fitted, task, train, num_dims=9, path=tmp_path)
    projector = index.projector
    total = torch.zeros(9, 9, dtype=torch.float64)

    for inputs, _ in train:
        probabilities = task.model(inputs[None]).detach().softmax(-1)[0]
        for label, probability in enumerate(probabilities):
            settings = PassSettings(kinds=("linear",))
            row = run_pass(task, [(inputs, label)], [Sketch(projector)], settings=settings)
            flat = torch.from_numpy(row.columns["sketch"])[0]
            total += float(probability) * torch.outer(flat, flat) / len(train)
    assert isinstance(index.gram, np.ndarray)
    np.testing.assert_allclose(index.gram, total.numpy(), rtol=1e-10, atol=1e-12)


def rows_of(index: InfluenceIndex) -> np.ndarray:
    return index.store.rows(range(len(index))).astype(np.float64)


def test_the_gram_matrix_of_the_rows_is_shrunk_towards_the_curvature(setup, tmp_path) -> None:
    task, train, queries, fitted = setup
    index = build_index(
        fitted, task, train, basis="coordinates", num_dims=9, path=tmp_path, gram="empirical"
    )
    rows = rows_of(index)
    gram = rows.T @ rows / len(rows)
    target = index.projector.eigenvalues.numpy() + DAMPING
    damping = 10 * (gram.diagonal() / target).sum() / len(rows)
    assert index.damping == pytest.approx(damping)
    plain = index.with_damping(0.0)
    plain = replace(plain, gram=np.eye(9), target=torch.zeros(9, dtype=torch.float64))
    asked = plain.query_rows(task, queries)
    wanted = np.linalg.solve(gram + damping * np.diag(target), asked.T).T
    np.testing.assert_allclose(
        index.query_rows(task, queries), wanted, rtol=STORED, atol=STORED * np.abs(wanted).max()
    )


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-11), (torch.float32, 2e-6)])
def test_queries_are_whitened_as_precisely_as_they_are_given(
    dtype: torch.dtype, bound: float
) -> None:
    torch.manual_seed(0)
    basis = torch.linalg.qr(torch.randn(50, 50, dtype=torch.float64))[0]
    matrix = basis @ torch.diag(torch.logspace(-3, 1, 50, dtype=torch.float64)) @ basis.mT
    queries = torch.randn(4, 50, dtype=torch.float64)
    damped = matrix + 1e-3 * torch.eye(50, dtype=torch.float64)
    wanted = torch.linalg.solve(damped, queries.mT).mT
    found = Whitening(matrix, 1e-3).apply(queries.to(dtype))
    assert found.dtype == dtype
    errors = (found.double() - wanted).norm(dim=1) / wanted.norm(dim=1)
    assert errors.max() < bound


def test_a_gram_matrix_of_full_rank_is_the_whole_matrix(setup, tmp_path) -> None:
    task, train, queries, fitted = setup
    options: dict[str, Any] = {"num_dims": 9, "gram": "empirical"}
    whole = build_index(fitted, task, train, path=tmp_path / "whole", **options)
    ranked = build_index(fitted, task, train, path=tmp_path / "ranked", gram_rank=9, **options)
    assert whole.damping == pytest.approx(ranked.damping)
    np.testing.assert_allclose(
        whole.query_rows(task, queries), ranked.query_rows(task, queries), rtol=1e-4, atol=1e-6
    )
    again = InfluenceIndex.load(tmp_path / "ranked")
    np.testing.assert_array_equal(again.query_rows(task, queries), ranked.query_rows(task, queries))


def test_the_main_directions_of_rows_are_those_of_their_gram_matrix() -> None:
    random = np.random.default_rng(0)
    rows = random.standard_normal((200, 30)) * np.linspace(5, 0.1, 30) ** 2
    target = np.linspace(1, 2, 30)
    found = low_rank_gram(lambda: np.array_split(rows, 7), target, rank=5, seed=0)
    scaled = rows / np.sqrt(target)
    values, vectors = np.linalg.eigh(scaled.T @ scaled / len(rows))
    np.testing.assert_allclose(found.values, values[::-1][:5], rtol=1e-4)
    overlap = np.linalg.svd(found.basis.T @ vectors[:, ::-1][:, :5])[1]
    np.testing.assert_allclose(overlap, 1, atol=1e-4)
    assert found.rest == pytest.approx(values[:-5].mean(), rel=1e-3)


def test_a_rank_is_refused_where_the_matrix_is_not_that_of_the_rows(setup, tmp_path) -> None:
    task, train, _, fitted = setup
    with pytest.raises(ValueError, match=r"`gram_rank` must be used with .* which is exact here"):
        build_index(fitted, task, train, num_dims=9, path=tmp_path, gram_rank=2)
    with pytest.raises(ValueError, match=r"`gram_rank` must be in \[1, 9\]"):
        build_index(fitted, task, train, num_dims=9, path=tmp_path, gram="empirical", gram_rank=10)


def test_another_gram_matrix_is_not_mistaken_for_the_first(setup, tmp_path) -> None:
    task, train, _, fitted = setup
    exact = build_index(
        fitted, task, train, basis="coordinates", num_dims=9, path=tmp_path, gram="exact"
    )
    data = build_index(
        fitted, task, train, basis="coordinates", num_dims=9, path=tmp_path, gram="empirical"
    )
    assert isinstance(exact.gram, np.ndarray)
    assert isinstance(data.gram, np.ndarray)
    assert not np.allclose(exact.gram, data.gram)


def test_an_index_is_not_built_on_under_another_damping(setup, tmp_path) -> None:
    task, train, _, fitted = setup
    build_index(fitted, task, train, num_dims=9, path=tmp_path)
    other = fitted.with_damping(AbsoluteDamping(0.7))
    with pytest.raises(StoreMismatchError, match="curvature_damping"):
        build_index(other, task, train, num_dims=9, path=tmp_path)


def test_a_reranked_search_has_the_full_scores(setup, tmp_path) -> None:
    task, train, queries, fitted = setup
    index = build_index(fitted, task, train, num_dims=4, path=tmp_path)
    exact = fitted.scores(task, queries, train).values
    top, bottom = index.search(task, queries, k=5, rerank=16, data=train)
    np.testing.assert_array_equal(top.ids, np.argsort(-exact, axis=1)[:, :5])
    np.testing.assert_array_equal(bottom.ids, np.argsort(exact, axis=1)[:, :5])
    np.testing.assert_allclose(top.scores, -np.sort(-exact, axis=1)[:, :5], rtol=1e-8)


def test_without_a_gram_matrix_the_metric_that_ranks_candidates_again_finds_them(
    setup, tmp_path
) -> None:
    task, train, queries, fitted = setup
    options: dict[str, Any] = {"num_dims": size_of(fitted), "gram": None, "damping": 50.0}
    index = build_index(fitted, task, train, path=tmp_path, **options)
    # With all coordinates and no more candidates than hits, only that metric finds them all.
    exact = np.argsort(-fitted.scores(task, queries, train).values, axis=1)[:, :5]
    assert (np.sort(index.search(task, queries, k=5)[0].ids) != np.sort(exact)).any()
    top, _ = index.search(task, queries, k=5, rerank=5, data=train)
    np.testing.assert_array_equal(top.ids, exact)


def test_the_curvature_and_the_gram_matrix_find_candidates_in_turns(setup, tmp_path) -> None:
    task, train, queries, fitted = setup
    index = build_index(fitted, task, train, num_dims=size_of(fitted), path=tmp_path)
    exact = fitted.scores(task, queries, train).values
    by_gram = index.query_rows(task, queries) @ rows_of(index).T
    top, bottom = index.search(task, queries, k=4, rerank=4, data=train)
    for query, (own, other) in enumerate(zip(exact, by_gram, strict=True)):
        candidates = set()
        for sign in (-1, 1):
            turns = np.stack([np.argsort(sign * own), np.argsort(sign * other)], 1).flatten()
            candidates |= set(list(dict.fromkeys(turns.tolist()))[:4])
        ranked = sorted(candidates, key=lambda row: -own[row])
        assert top.ids[query].tolist() == ranked[:4]
        assert bottom.ids[query].tolist() == ranked[::-1][:4]


def test_exact_self_influence_stands_beside_the_rows(setup, tmp_path) -> None:
    task, train, _, fitted = setup
    index = build_index(fitted, task, train, num_dims=4, path=tmp_path)
    own = fitted.self_influence(task, train).values
    np.testing.assert_allclose(index.store.column("self_influence"), own, rtol=1e-8)


def test_a_loaded_index_answers_the_same(setup, tmp_path) -> None:
    task, train, queries, fitted = setup
    index = build_index(fitted, task, train, num_dims=6, path=tmp_path)
    loaded = InfluenceIndex.load(tmp_path)
    first, second = (found.search(task, queries, k=4)[0] for found in (index, loaded))
    np.testing.assert_array_equal(first.scores, second.scores)


def test_coordinates_are_ranked_by_eigenvalue_over_the_mean_of_their_layer(setup) -> None:
    *_, fitted = setup
    few = choose_coordinates(fitted.layers, 5, model="m")
    more = choose_coordinates(fitted.layers, 12, model="m")
    torch.testing.assert_close(few.eigenvalues, more.eigenvalues[:5])
    relative = torch.cat(
        [
            (layer.eigenvalues / layer.eigenvalues.mean()).flatten()
            for layer in fitted.layers.values()
        ]
    )
    absolute = torch.cat([layer.eigenvalues.flatten() for layer in fitted.layers.values()])
    torch.testing.assert_close(few.eigenvalues, absolute[relative.argsort(descending=True)[:5]])


def test_wrong_requests_are_refused_before_anything_is_computed(setup, tmp_path) -> None:
    task, train, queries, fitted = setup
    with pytest.raises(ValueError, match="`num_dims` must be in"):
        build_index(fitted, task, train, num_dims=10_000, path=tmp_path / "a")
    index = build_index(fitted, task, train, num_dims=6, path=tmp_path / "b")
    with pytest.raises(ValueError, match="`k` must be in"):
        index.search(task, queries, k=17)
    with pytest.raises(ValueError, match="`rerank` must be in"):
        index.search(task, queries, k=5, rerank=3, data=train)
    with pytest.raises(ValueError, match="`data` must be given"):
        index.search(task, queries, k=5, rerank=6)
    with pytest.raises(StoreMismatchError, match="must fit what"):
        index.search(task, queries, k=5, rerank=6, data=train[1:])
    with pytest.raises(StoreMismatchError, match=r"There is no index\.json"):
        InfluenceIndex.load(tmp_path / "nothing")
