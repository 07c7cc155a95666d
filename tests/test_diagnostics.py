"""What gradients say about a dataset, against dense algebra and made-up data with known answers."""

from pathlib import Path
from typing import Any

import numpy as np
import oracles
import pytest
import torch
from cases import build
from numpy.testing import assert_allclose, assert_array_equal
from torch import nn

from projections import (
    SJLT,
    Classification,
    Concatenated,
    DataError,
    Embeddings,
    PassSettings,
    Scores,
    Selected,
    StoreMismatchError,
    coordinates,
    find_components,
    index_gradients,
    random_kronecker,
    run_pass,
)
from selection import (
    CoherenceByLayer,
    compare_losses,
    find_class_outliers,
    find_near_repeats,
    find_opposing,
    find_repeats,
    follow_subspace,
    layer_slices,
    measure_coherence,
    measure_moments,
    measure_spectrum,
    oppose_along,
)

EXACT = 1e-9


def random_rows(count: int = 30, dims: int = 6, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, dims)) + 0.3


# Coherence.


def dense_coherence(rows: np.ndarray) -> float:
    return len(rows) * np.square(rows.mean(0)).sum() / np.square(rows).sum(1).mean()


def test_coherence_is_one_for_orthogonal_gradients_and_m_for_equal_ones() -> None:
    assert measure_coherence(np.eye(5))[0].coherence == pytest.approx(1)
    equal = measure_coherence(np.ones((5, 3)))[0]
    assert equal.coherence == pytest.approx(5)
    assert equal.noise == 0 and equal.signal_to_noise == float("inf") and equal.noise_scale == 0
    zero = measure_coherence(np.zeros((5, 3)))[0]
    assert (zero.coherence, zero.share, zero.noise_scale) == (0, 0, float("inf"))
    alone = measure_coherence(np.ones((1, 3)))[0]
    assert (alone.coherence, alone.signal, alone.noise) == (pytest.approx(1), 3, 0)


def test_coherence_of_groups_and_layers_is_that_of_their_rows_and_columns() -> None:
    rows, groups = random_rows(), np.array(list("ab") * 15)
    layers = {"one": slice(0, 2), "two": slice(2, 6)}
    found = {(one.group, one.layer): one for one in measure_coherence(rows, groups, layers=layers)}
    assert list(found)[:4] == [("all", "all"), ("all", "one"), ("all", "two"), ("a", "all")]
    for (group, layer), one in found.items():
        part = rows if group == "all" else rows[groups == group]
        part = part[:, layers.get(layer, slice(None))]
        assert one.coherence == pytest.approx(dense_coherence(part))
        assert one.num_examples == len(part)
    members = np.flatnonzero(groups == "a")
    sums = rows[members].sum(0)
    cosines = [
        (row @ (sums - row)) / np.linalg.norm(row) / np.linalg.norm(sums - row)
        for row in rows[members]
    ]
    assert_array_equal(found["a", "all"].against, members[np.argsort(cosines)[:5]])
    assert_array_equal(found["a", "all"].along, members[np.argsort(cosines)[::-1][:5]])


def test_signal_and_noise_are_unbiased() -> None:
    random, mean = np.random.default_rng(0), np.array([0.5, 0, 0, 0])
    draws = [
        measure_coherence(mean + random.normal(size=(4, 4)), num_shown=0)[0] for _ in range(3000)
    ]
    signal, noise = [one.signal for one in draws], [one.noise for one in draws]
    for values, truth in ((signal, 0.25), (noise, 4.0)):
        assert abs(np.mean(values) - truth) < 4 * np.std(values) / np.sqrt(len(values))


@pytest.mark.parametrize("name", ["mlp-layernorm-subclass", "gpt2-tied", "convnet-groups-reflect"])
def test_coherence_by_layer_is_that_of_whole_gradients_in_any_batches(name: str) -> None:
    task, examples = build(name, 5)
    groups = {n: "ab"[n % 2] for n in range(5)}
    accumulator = CoherenceByLayer(groups)
    run_pass(task, examples, accumulators=[accumulator], settings=PassSettings(batch_size=2))
    found = {(one.group, one.layer): one for one in accumulator.results()}
    whole = oracles.flat_gradients(task, examples)
    for group, rows in (("all", whole), ("a", whole[::2]), ("b", whole[1::2])):
        assert found[group, "all"].coherence == pytest.approx(dense_coherence(rows), rel=1e-7)
        assert found[group, "all"].num_examples == len(rows)
    gradients = oracles.gradients_one_by_one(task, examples)
    for component in find_components(task.model).components.values():
        parts = [gradients[p.whole_name].flatten(1).numpy() for p in component.parameters]
        wanted = dense_coherence(np.concatenate(parts, 1))
        assert found["all", component.name].coherence == pytest.approx(wanted, rel=1e-7)


def test_coherence_of_two_parts_merges_and_a_row_without_a_group_is_refused() -> None:
    task, examples = build("mlp-layernorm-subclass", 5)
    whole, first, second = CoherenceByLayer(), CoherenceByLayer(), CoherenceByLayer()
    for accumulator, part in ((whole, examples), (first, examples[:2]), (second, examples[2:])):
        run_pass(task, part, accumulators=[accumulator])
    first.merge(second.state())
    again = CoherenceByLayer()
    again.load(first.state())
    for one, other in zip(whole.results(), again.results(), strict=True):
        assert one.layer == other.layer
        assert one.coherence == pytest.approx(other.coherence)
    with pytest.raises(DataError, match=r"`groups` must name the group of every row\. It lacks 2"):
        run_pass(task, examples, accumulators=[CoherenceByLayer({0: "a", 1: "a"})])


def test_layers_of_a_row_are_known_where_a_projector_keeps_them_apart() -> None:
    task, _ = build("mlp-layernorm-subclass", 4)
    components = find_components(task.model).components.values()
    two_sided = random_kronecker(components, num_dims=64, seed=0)
    assert set(layer_slices(two_sided)) == {c.name for c in components}
    sketch = Selected(projector=SJLT(num_dims=4, seed=0), patterns=("*",))
    assert layer_slices(Concatenated((sketch, SJLT(num_dims=2, seed=0)))) == {
        "*": slice(0, 4),
        "part 1": slice(4, 6),
    }
    with pytest.raises(TypeError, match=r"must keep layers apart.* Got SJLT, which mixes them"):
        layer_slices(SJLT(num_dims=4, seed=0))


# Opposing groups.


def test_groups_that_fight_are_found_at_the_two_ends_of_a_direction() -> None:
    random = np.random.default_rng(0)
    rows = 0.1 * random.normal(size=(60, 8)) + np.array([0.5, *[0.0] * 7])
    rows[:10, 3] += 4
    rows[10:18, 3] -= 5
    found = find_opposing(Embeddings(rows, np.arange(60) + 100), num_shown=20)
    assert len(found) == 3
    groups = [set(range(100, 110)), set(range(110, 118))]
    both = {frozenset(found[0].positive[:8].tolist()), frozenset(found[0].negative[:8].tolist())}
    assert any(part == groups[1] for part in both)
    assert any(part < groups[0] for part in both)
    assert abs(found[0].direction[3]) > 0.99
    assert found[0].share > 0.8 and found[0].cancelled > 0.9
    assert found[0].share >= found[1].share >= found[2].share


def test_rows_on_one_line_have_one_direction_and_equal_rows_none() -> None:
    assert len(find_opposing(np.outer(np.arange(-3.0, 4), [1.0, 2, 2]))) == 1
    assert find_opposing(np.ones((5, 3))) == []


def test_the_effect_of_a_step_is_the_product_with_it() -> None:
    rows, step = random_rows(), np.array([0.0, 2, -1, 0, 0, 3])
    found = oppose_along(rows, step, num_shown=4)
    products = rows @ step / np.linalg.norm(step)
    assert_array_equal(found.positive, np.argsort(-products)[:4])
    assert_array_equal(found.negative, np.argsort(products)[:4])
    assert_allclose(found.positive_products, np.sort(products)[::-1][:4])
    assert found.cancelled == pytest.approx(1 - abs(products.sum()) / np.abs(products).sum())
    for wrong in (np.zeros(6), np.ones(5), np.array([np.nan, *[1.0] * 5])):
        with pytest.raises(ValueError, match="`direction` must be 6 finite numbers, not all 0"):
            oppose_along(rows, wrong)


def test_losses_that_changed_most_are_at_both_ends() -> None:
    before = Scores(np.arange(5), {"loss": np.ones(5)})
    after = Scores(np.arange(5), {"loss": np.array([1.0, 3, 0, 0.5, 1])})
    found = compare_losses(before, after, num_shown=1)
    assert (found.risen.tolist(), found.fallen.tolist()) == ([1], [2])
    assert (found.rises.tolist(), found.falls.tolist()) == ([2], [-1])
    assert (found.share_risen, found.cancelled) == (0.2, pytest.approx(1 - 0.5 / 3.5))
    assert compare_losses(before, before).cancelled == 0
    with pytest.raises(DataError, match="losses must be about the same ids"):
        compare_losses(before, Scores(np.arange(5) + 1, after.columns))


# Outliers of a class.


def test_a_row_among_the_wrong_class_is_the_oddest_and_its_own_class_is_named() -> None:
    random, centers = np.random.default_rng(0), 3 * np.eye(3, 7)
    truth = np.arange(45) % 3
    rows = centers[truth] + 0.3 * random.normal(size=(45, 7))
    labels = np.array(["cat", "dog", "fox"])[truth]
    labels[4] = "cat"  # a dog
    found = find_class_outliers(rows, labels)
    first = found.first(1)
    assert (first.ids.tolist(), first.groups.tolist(), first.nearest.tolist()) == (
        [4],
        ["cat"],
        ["dog"],
    )
    assert first.margins[0] < 0 < found.margins[1:].min()
    assert len(found.of("cat")) == 16
    assert found.scores().names == ["class_margin"]
    row = found.ids.tolist().index(7)
    own = rows[(labels == labels[7]) & (np.arange(45) != 7)].sum(0)
    assert found.own[row] == pytest.approx(
        rows[7] @ own / np.linalg.norm(rows[7]) / np.linalg.norm(own)
    )
    with pytest.raises(ValueError, match=r"`groups` must name at least two classes\. Got \['a'\]"):
        find_class_outliers(rows, ["a"] * 45)


def test_a_row_without_gradient_is_unlike_everybody() -> None:
    rows = np.array([[1.0, 0], [1, 0], [0, 1], [0, 0]])
    found = find_class_outliers(rows, [0, 0, 1, 1])
    zero = found.ids.tolist().index(3)
    assert (found.own[zero], found.other[zero]) == (0, 0)


# Spectrum.


def test_the_spectrum_is_that_of_the_second_moment() -> None:
    rows = random_rows(40, 5)
    found = measure_spectrum(rows, num_directions=3)
    values, axes = np.linalg.eigh(rows.T @ rows / 40)
    assert_allclose(found.eigenvalues, values[::-1])
    assert_allclose(np.abs(found.directions.T @ axes[:, ::-1][:, :3]), np.eye(3), atol=EXACT)
    assert found.effective_dimension == pytest.approx(values.sum() ** 2 / np.square(values).sum())
    assert found.stable_rank == pytest.approx(values.sum() / values[-1])
    assert found.explained[-1] == pytest.approx(1)
    assert_array_equal(found.examples, np.abs(rows @ found.directions).argmax(0))
    zero = measure_spectrum(np.zeros((3, 2)))
    assert (zero.effective_dimension, zero.stable_rank, zero.explained.tolist()) == (0, 0, [0, 0])


def test_diagnostics_that_share_sums_walk_the_rows_once_for_them() -> None:
    rows = random_rows(40, 5)
    moments = measure_moments(rows)
    assert measure_moments(moments) is moments
    assert_allclose(moments.products, rows.T @ rows)
    assert_allclose(moments.total, rows.sum(0))
    spectra = measure_spectrum(rows), measure_spectrum(moments)
    assert_array_equal(spectra[0].eigenvalues, spectra[1].eigenvalues)
    assert_array_equal(spectra[0].examples, spectra[1].examples)
    for apart, shared in zip(find_opposing(rows), find_opposing(moments), strict=True):
        assert_array_equal(apart.positive, shared.positive)
        assert_array_equal(apart.direction, shared.direction)
    history = follow_subspace({"rows": rows, "again": moments}, num_directions=2)
    assert_allclose(history.overlaps, np.ones((2, 2)))


def test_overlap_is_one_with_itself_nought_when_orthogonal_and_by_chance_in_between() -> None:
    random = np.random.default_rng(0)
    one, other = np.zeros((30, 8)), np.zeros((30, 8))
    one[:, :3], other[:, 3:6] = random.normal(size=(30, 3)), random.normal(size=(30, 3))
    found = follow_subspace({"a": one, "b": other, "c": 5 * one}, num_directions=3)
    assert_allclose(found.overlaps, [[1, 0, 1], [0, 1, 0], [1, 0, 1]], atol=EXACT)
    assert found.names == ("a", "b", "c")
    assert found.chance == 3 / 8
    assert found.effective_dimensions[0] == pytest.approx(found.effective_dimensions[2])
    chance = [
        follow_subspace(
            {"a": random.normal(size=(20, 40)), "b": random.normal(size=(20, 40))},
            num_directions=10,
        ).overlaps[0, 1]
        for _ in range(20)
    ]
    assert np.mean(chance) == pytest.approx(0.25, abs=0.02)


def test_the_subspace_is_followed_over_stores_of_one_projection_only(tmp_path: Path) -> None:
    torch.manual_seed(0)
    rows = [(torch.randn(4), n % 3) for n in range(12)]
    model = nn.Linear(4, 3)

    def store(name: str, seed: int) -> Any:
        sketch = SJLT(num_dims=8, seed=seed)
        return index_gradients(Classification(model), rows, sketch, path=tmp_path / name)

    early = store("early", 0)
    with torch.no_grad():
        model.weight += 0.1
    found = follow_subspace({"early": early, "late": store("late", 0)}, num_directions=2)
    assert 0.25 < found.overlaps[0, 1] <= 1
    with pytest.raises(StoreMismatchError, match="They differ in: projector"):
        follow_subspace({"early": early, "other": store("other", 1)}, num_directions=2)


def test_states_that_cannot_be_compared_are_refused() -> None:
    rows = random_rows(6, 4)
    with pytest.raises(ValueError, match=r"`len\(states\)` must be at least 2\. Got 1"):
        follow_subspace({"a": rows})
    with pytest.raises(DataError, match=r"'b' has 5 rows of 4 numbers, the first 6 of 4"):
        follow_subspace({"a": rows, "b": rows[:5]}, num_directions=2)
    with pytest.raises(DataError, match=r"`num_directions` must be at most .* 6 and 4\. Got 5"):
        follow_subspace({"a": rows, "b": rows}, num_directions=5)
    one, other = measure_spectrum(rows, num_directions=2), measure_spectrum(random_rows(6, 5))
    with pytest.raises(ValueError, match=r"`num_directions` must be at most 2, the number that"):
        one.overlap(one, 3)
    with pytest.raises(ValueError, match=r"equally many dimensions\. Got 4 and 5"):
        one.overlap(other, 1)


def test_diagnostics_of_a_store_are_those_of_its_rows(tmp_path: Path) -> None:
    torch.manual_seed(0)
    data = [{"id": f"r{n}", "x": torch.randn(3).tolist(), "label": n % 2} for n in range(9)]

    class Named(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x)

    task = Classification(Named(3, 2))
    whole = coordinates(find_components(task.model).components.values())
    store = index_gradients(
        task, data, whole, path=tmp_path / "s", settings=PassSettings(shard_size=4)
    )
    rows = store.rows(np.arange(9)).astype(np.float64)
    labels = [row["label"] for row in data]
    plain = Embeddings(rows, store.ids)
    for one, other in zip(
        measure_coherence(store, labels), measure_coherence(plain, labels), strict=True
    ):
        assert one.coherence == pytest.approx(other.coherence)
        assert_array_equal(one.against, other.against)
    assert_array_equal(find_opposing(store)[0].positive, find_opposing(plain)[0].positive)
    assert find_class_outliers(store, labels).ids[0] in store.ids


# Repeats.


def test_the_same_input_is_found_whatever_its_kind_and_conflicts_are_named() -> None:
    tensors = [(torch.tensor([1.0, n % 3]), torch.tensor(n // 4)) for n in range(6)]
    found = find_repeats(tensors)
    assert [group.ids.tolist() for group in found.groups] == [[0, 3], [1, 4], [2, 5]]
    assert [group.labels for group in found.groups] == [(0, 0), (0, 1), (0, 1)]
    assert [group.ids.tolist() for group in found.conflicts] == [[1, 4], [2, 5]]
    assert (found.num_rows, found.num_spare) == (6, 3)
    texts = [{"id": n, "text": text, "label": n} for n, text in enumerate(["A", "b", "a", "b"])]
    assert [group.ids.tolist() for group in find_repeats(texts).groups] == [[1, 3]]
    lower = find_repeats(texts, split=lambda row: (row["text"].lower(), row["label"]))
    assert [group.ids.tolist() for group in lower.groups] == [[0, 2], [1, 3]]
    with pytest.raises(DataError, match="rows must be pairs of input and label"):
        find_repeats([{"text": "a"}])


def test_near_repeats_are_joined_in_groups_and_not_by_gradients() -> None:
    random = np.random.default_rng(0)
    rows = np.repeat(random.normal(size=(6, 10)), [1, 2, 3, 1, 1, 1], axis=0)
    rows = rows * random.uniform(1, 2, (9, 1)) + 1e-4 * random.normal(size=rows.shape)
    labels = np.array([0, 1, 1, 2, 2, 5, 3, 3, 3])
    found = find_near_repeats(Embeddings(rows, np.arange(9) + 10), labels)
    assert [group.ids.tolist() for group in found.groups] == [[13, 14, 15], [11, 12]]
    assert [group.in_conflict for group in found.groups] == [True, False]
    assert found.num_spare == 3
    with pytest.raises(DataError, match=r"`labels` must have one entry a row, 9\. Got 2"):
        find_near_repeats(rows, [1, 2])
    with pytest.raises(ValueError, match=r"`threshold` must be in \[0, 1\]"):
        find_near_repeats(rows, labels, threshold=2)
