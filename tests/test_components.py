"""Components that carry influence: products by component, searches among them, and sources."""

from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import cases
import numpy as np
import pytest
from oracles import gradients_one_by_one

from influence import (
    EKFAC,
    Accuracy,
    Agreement,
    Budget,
    ComponentPath,
    ComponentProducts,
    Objective,
    beginnings,
    build_index,
    choose_components,
    component_costs,
    component_products,
    search_backward,
    search_beam,
    search_forward,
    source_questions,
    split_queries,
)
from projections import (
    SJLT,
    Component,
    DataError,
    Parameter,
    PassSettings,
    Sketch,
    coordinates,
    find_components,
    find_heads,
    run_pass,
)

EXACT = 1e-10  # float64 rounding over sums of a few hundred terms
PAIRS = np.array([[0, 3], [0, 1], [1, 4], [1, 3], [2, 0], [2, 3]])


def by_component(task: Any, rows: list[Any], names: Any) -> dict[str, np.ndarray]:
    """Gradients of each component, from a backward pass an example."""
    grads = gradients_one_by_one(task, rows)
    return {
        name: np.concatenate(
            [grads[p.name].reshape(len(rows), -1).numpy() for p in component.parameters], 1
        )
        for name, component in names.items()
    }


def random_products(num: int, queries: int, k: int, *, seed: int = 0) -> ComponentProducts:
    """Products of random gradients of 3 parameters a component, ``k`` candidates a query."""
    draw = np.random.default_rng(seed)
    names = sorted(f"layers.{place}" for place in range(num))
    components = tuple(
        Component(n, (Parameter(f"{n}.weight", (place + 1, 3)),)) for place, n in enumerate(names)
    )
    own = draw.normal(size=(queries, num, 3))
    other = draw.normal(size=(queries * k, num, 3))
    other[::k] += own * draw.uniform(0, 2, (num, 1))
    pairs = np.stack([np.repeat(np.arange(queries), k), np.arange(queries * k)], 1)
    products = np.einsum("pcd,pcd->pc", own[pairs[:, 0]], other[pairs[:, 1]])
    norms = (own**2).sum(2), (other**2).sum(2)
    return ComponentProducts(
        components, pairs, products, *norms, np.arange(queries), np.arange(queries * k)
    )


def sources(products: ComponentProducts, k: int) -> Accuracy:
    return Accuracy({query: k * query for query in range(len(products.query_ids))})


def value(products: ComponentProducts, objective: Objective, names: Any) -> float:
    """The objective of one set, from cosines computed in the obvious way."""
    cosines = []
    where = [products.names.index(name) for name in names]
    for (query, candidate), row in zip(products.pairs, products.products, strict=True):
        own = products.query_norms[query, where].sum() ** 0.5
        other = products.candidate_norms[candidate, where].sum() ** 0.5
        cosines.append(row[where].sum() / (own * other))
    return float(objective.fit(products).values(np.array([cosines]))[0])


@pytest.mark.parametrize("memory", [1, 1 << 30])
@pytest.mark.parametrize(
    "name", ["gpt2-tied", "llama-tied", "convnet-groups-reflect", "used-twice"]
)
def test_products_are_those_of_gradients_one_example_at_a_time(name: str, memory: int) -> None:
    task, rows = cases.build(name, 5)
    found = component_products(
        task, rows[:3], rows, PAIRS, settings=PassSettings(batch_size=2), memory=memory
    )
    grads = by_component(task, rows, {c.name: c for c in found.components})
    assert found.names == sorted(find_components(task.model).components)
    for place, component in enumerate(found.names):
        g = grads[component]
        expected = (g[PAIRS[:, 0]] * g[PAIRS[:, 1]]).sum(1)
        np.testing.assert_allclose(found.products[:, place], expected, rtol=EXACT, atol=EXACT)
        own = (g**2).sum(1)
        np.testing.assert_allclose(found.query_norms[:, place], own[:3], rtol=EXACT, atol=EXACT)
        used = found.candidate_ids
        np.testing.assert_allclose(
            found.candidate_norms[:, place], own[used], rtol=EXACT, atol=EXACT
        )


def test_the_cosine_of_a_set_is_that_of_its_gradients_side_by_side() -> None:
    task, rows = cases.build("gpt2-tied", 5)
    found = component_products(task, rows[:3], rows, PAIRS)
    chosen = found.names[2:9:3]
    grads = by_component(task, rows, {c.name: c for c in found.components})
    for names in (chosen, None):
        g = np.concatenate([grads[name] for name in names or found.names], 1)
        g /= np.linalg.norm(g, axis=1, keepdims=True)
        expected = (g[PAIRS[:, 0]] * g[PAIRS[:, 1]]).sum(1)
        np.testing.assert_allclose(found.cosines(names), expected, rtol=EXACT, atol=EXACT)


def test_heads_add_up_to_their_layers() -> None:
    task, rows = cases.build("llama-tied", 5)
    whole = component_products(task, rows[:3], rows, PAIRS)
    settings = PassSettings(heads=find_heads(task.model))
    heads = component_products(task, rows[:3], rows, PAIRS, settings=settings)
    assert len(heads.names) > len(whole.names)
    np.testing.assert_allclose(heads.cosines(), whole.cosines(), rtol=EXACT, atol=EXACT)
    layer = "model.layers.0.self_attn.q_proj"
    parts = [name for name in heads.names if name.startswith(layer)]
    assert len(parts) == 4
    np.testing.assert_allclose(heads.dots(parts), whole.dots([layer]), rtol=EXACT, atol=EXACT)


def test_a_pass_that_was_stopped_goes_on(tmp_path: Path, monkeypatch: Any) -> None:
    task, rows = cases.build("gpt2-tied", 5)
    settings = PassSettings(shard_size=2)
    whole = component_products(task, rows[:3], rows, PAIRS, settings=settings)
    ends: list[Any] = []

    def stop(self: Any, batch: Any) -> None:
        ends.append(batch)
        if len(ends) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("influence.components.passes.MetGradients.end", stop)
        component_products(task, rows[:3], rows, PAIRS, settings=settings, path=tmp_path)
    found = component_products(task, rows[:3], rows, PAIRS, settings=settings, path=tmp_path)
    np.testing.assert_array_equal(found.products, whole.products)
    np.testing.assert_array_equal(found.candidate_norms, whole.candidate_norms)


def test_products_are_saved_and_read_again(tmp_path: Path) -> None:
    products = random_products(4, 6, 3)
    products.save(tmp_path / "products.npz")
    found = ComponentProducts.load(tmp_path / "products.npz")
    assert found.components == products.components
    np.testing.assert_array_equal(found.cosines(), products.cosines())
    (tmp_path / "other.npz").write_text("nothing")
    with pytest.raises(DataError, match=r"other.npz must be a file of component products"):
        ComponentProducts.load(tmp_path / "other.npz")


@pytest.mark.parametrize("make", [lambda p: Agreement(), lambda p: sources(p, 4)])
def test_forward_search_takes_the_best_extension_of_each_set(make: Any) -> None:
    products = random_products(6, 12, 4)
    objective = make(products)
    path, chosen = search_forward(products, objective), []
    for names, found in zip(path.sets, path.values, strict=True):
        rest = [name for name in products.names if name not in chosen]
        values = [round(value(products, objective, [*chosen, name]), 12) for name in rest]
        chosen.append(rest[values.index(max(values))])
        assert sorted(chosen) == list(names)
        assert found == pytest.approx(max(values), abs=EXACT)
    assert len(path.sets) == 6
    assert path.values[-1] == pytest.approx(value(products, objective, products.names))


@pytest.mark.parametrize("make", [lambda p: Agreement(), lambda p: sources(p, 4)])
def test_backward_search_leaves_out_what_is_missed_least(make: Any) -> None:
    products = random_products(6, 12, 4, seed=1)
    objective = make(products)
    path, chosen = search_backward(products, objective), list(products.names)
    assert list(path.sets[0]) == chosen
    for names, found in zip(path.sets[1:], path.values[1:], strict=True):
        values = [
            round(value(products, objective, [n for n in chosen if n != name]), 12)
            for name in chosen
        ]
        chosen.remove(chosen[values.index(max(values))])
        assert chosen == list(names)
        assert found == pytest.approx(max(values), abs=EXACT)
    assert len(path.sets[-1]) == 1


def test_a_wide_beam_finds_the_best_set_of_every_size() -> None:
    products = random_products(6, 12, 4, seed=2)
    objective = sources(products, 4)
    path = search_beam(products, objective, width=20)
    for size, (names, found) in enumerate(zip(path.sets, path.values, strict=True), 1):
        every = {s: value(products, objective, s) for s in combinations(products.names, size)}
        assert found == pytest.approx(max(every.values()))
        assert names == min(s for s, v in every.items() if v == pytest.approx(found, abs=EXACT))


def naive_beam(products: ComponentProducts, objective: Objective, width: int) -> list[Any]:
    """The best set of each size by going through every extension of every set that goes on."""
    beam: list[tuple[str, ...]] = [()]
    path = []
    while len(beam[0]) < len(products.names):
        every = {tuple(sorted({*b, n})) for b in beam for n in products.names if n not in b}
        values = {names: round(value(products, objective, names), 12) for names in every}
        beam = sorted(every, key=lambda names: (-values[names], names))[:width]
        path.append((beam[0], values[beam[0]]))
    return path


@pytest.mark.parametrize("height", [1, 3, 1 << 20])
@pytest.mark.parametrize("make", [lambda p: Agreement(), lambda p: sources(p, 4)])
def test_a_beam_takes_the_best_extensions_of_all_its_sets(
    make: Any, height: int, monkeypatch: Any
) -> None:
    products = random_products(9, 10, 4, seed=3)
    monkeypatch.setattr("influence.components.sums.CHUNK", height * len(products.pairs))
    path = search_beam(products, make(products), width=3)
    expected = naive_beam(products, make(products), 3)
    assert [names for names, _ in expected] == list(path.sets)
    np.testing.assert_allclose(path.values, [found for _, found in expected], atol=EXACT)


def test_sets_of_a_beam_that_are_as_good_go_on_by_name() -> None:
    products = random_products(9, 2, 4, seed=5)  # two queries, so accuracy has three values
    path = search_beam(products, sources(products, 4), width=3)
    assert list(path.sets) == [n for n, _ in naive_beam(products, sources(products, 4), 3)]


def test_a_beam_keeps_to_its_budget() -> None:
    products = random_products(6, 12, 4)
    path = search_beam(products, Agreement(), width=4, budget=Budget(most=20))
    costs = component_costs(products.components, "parameters")
    every = [
        names
        for size in range(1, 7)
        for names in combinations(products.names, size)
        if sum(costs[products.names.index(name)] for name in names) <= 20
    ]
    assert max(path.costs) <= 20
    best = max(value(products, Agreement(), names) for names in every)
    assert path.values[path.best] == pytest.approx(best)


def test_accuracy_counts_queries_with_any_number_of_candidates_in_any_order() -> None:
    draw = np.random.default_rng(0)
    counts = [2, 40, 3, 17, 18, 5]
    queries = np.repeat(np.arange(6), counts)
    firsts = np.cumsum(counts) - counts  # the source of each query
    mixed = draw.permutation(len(queries))
    pairs = np.stack([queries, np.arange(len(queries))], 1)[mixed]
    base = random_products(1, 6, 1)
    rows = np.ones((len(queries), 1))
    products = replace(
        base,
        pairs=pairs,
        products=rows,
        candidate_norms=rows,
        candidate_ids=np.arange(len(queries)),
    )
    fitted = Accuracy(dict(enumerate(firsts.tolist()))).fit(products)
    cosines = draw.integers(0, 60, (30, len(queries))).astype(float)  # with ties
    cosines[:, np.isin(pairs[:, 1], firsts)] += 20
    expected = np.zeros((30, 6), dtype=bool)
    for query in range(6):
        own = cosines[:, pairs[:, 1] == firsts[query]][:, 0]
        others = cosines[:, (pairs[:, 0] == query) & (pairs[:, 1] != firsts[query])]
        expected[:, query] = own > others.max(1)
    assert expected.any() and not expected.all()
    np.testing.assert_array_equal(fitted.hits(cosines), expected)


def test_candidates_that_are_shared_or_out_of_order_have_the_cosines_of_their_own() -> None:
    products = random_products(3, 4, 3)
    order = np.random.default_rng(1).permutation(len(products.pairs))
    mixed = replace(products, pairs=products.pairs[order], products=products.products[order])
    np.testing.assert_array_equal(mixed.cosines(), products.cosines()[order])


def test_a_beam_of_one_is_forward_search() -> None:
    products = random_products(8, 10, 3)
    forward, beam = (
        search_forward(products, Agreement()),
        search_beam(products, Agreement(), width=1),
    )
    assert forward.sets == beam.sets


@pytest.mark.parametrize("search", [search_forward, search_backward])
def test_ties_are_broken_by_name(search: Any) -> None:
    products = random_products(1, 6, 3)
    vectors = tuple(Component(n, (Parameter(n, (3,)),), "vector") for n in "abcd")
    many = replace(
        products,
        components=vectors,
        products=products.products.repeat(4, 1),
        query_norms=products.query_norms.repeat(4, 1),
        candidate_norms=products.candidate_norms.repeat(4, 1),
    )
    path = search(many, Agreement())
    if search is search_forward:
        assert path.sets == (("a",), ("a", "b"), ("a", "b", "c"), ("a", "b", "c", "d"))
    else:
        assert path.sets == (("a", "b", "c", "d"), ("b", "c", "d"), ("c", "d"), ("d",))
    assert len(path.sets[path.best]) == 1


@pytest.mark.parametrize("search", [search_forward, search_backward])
def test_what_is_chosen_fits_the_budget(search: Any) -> None:
    products = random_products(6, 12, 4)
    costs = component_costs(products.components, "parameters")
    path = search(products, Agreement(), budget=Budget(most=20))
    names = path.sets[path.best]
    assert sum(costs[products.names.index(name)] for name in names) == path.costs[path.best] <= 20
    with pytest.raises(ValueError, match=r"`most` must be at least the cheapest component, 3 par"):
        search(products, Agreement(), budget=Budget(most=2))


def test_a_path_without_a_set_that_fits_says_so() -> None:
    path = ComponentPath((("a", "b"),), np.array([1.0]), np.array([7.0]), most=5)
    with pytest.raises(ValueError, match=r"must cost at most 5. The cheapest costs 7"):
        path.best  # noqa: B018


def test_costs_are_parameters_bytes_and_operations() -> None:
    linear = Component("fc", (Parameter("fc.weight", (100, 50)), Parameter("fc.bias", (100,))))
    table = Component("wte", (Parameter("wte.weight", (1000, 50)),), "table")
    vector = Component("norm.weight", (Parameter("norm.weight", (50,)),), "vector")
    each = (linear, table, vector)
    assert component_costs(each, "parameters").tolist() == [5100, 50_000, 50]
    assert component_costs(each, "bytes", positions=3).tolist() == [4 * 3 * 150, 3 * 208, 200]
    assert component_costs(each, "bytes", positions=90)[0] == 4 * 5100  # formed
    assert component_costs(each, "operations", positions=3).tolist() == [18 * 150, 18 * 50, 100]
    assert component_costs(each, "operations", positions=90)[0] == 2 * 5100
    with pytest.raises(ValueError, match=r"`unit` must be one of"):
        component_costs(each, "hours")


def test_the_cosines_of_no_gradient_are_zero() -> None:
    products = random_products(2, 3, 2)
    products.query_norms[0] = products.products[:2] = 0
    assert products.cosines()[:2].tolist() == [0, 0]
    assert np.isfinite(search_forward(products, Agreement()).values).all()


def test_a_choice_is_reported_on_other_queries() -> None:
    products = random_products(6, 40, 4)
    objective = sources(products, 4)
    chosen = choose_components(products, objective, seed=0)
    ours, others = split_queries(products.query_ids, seed=0)
    assert set(ours) | set(others) == set(range(40)) and len(ours) == 20
    assert chosen.value == value(products.of_queries(ours), objective, chosen.names)
    assert chosen.reported == value(products.of_queries(others), objective, chosen.names)
    assert chosen.reported_full == value(products.of_queries(others), objective, products.names)


def test_the_side_of_a_query_hangs_on_its_id_and_on_its_group() -> None:
    ids = np.array([5, 9, 2, 7, 1, 8])
    first, _ = split_queries(ids, seed=3)
    mirrored, _ = split_queries(ids[::-1].copy(), seed=3)
    assert set(ids[first]) == set(ids[::-1][mirrored])
    first, second = split_queries(ids, seed=3, groups=["a", "a", "b", "b", "c", "c"])
    assert {p // 2 for p in first}.isdisjoint(p // 2 for p in second)
    with pytest.raises(
        ValueError, match=r"`share` must leave queries on both sides. Got 0.01 of 6"
    ):
        split_queries(ids, seed=0, share=0.01)
    with pytest.raises(ValueError, match=r"`groups` must have 6 labels"):
        split_queries(ids, seed=0, groups=["a"])


def chosen_on_a_model() -> Any:
    task, rows = cases.build("gpt2-tied", 5)
    settings = PassSettings(heads=find_heads(task.model))
    found = component_products(task, rows[:3], rows, PAIRS, settings=settings)
    linear = Budget(most=120)
    chosen = choose_components(found, Agreement(), seed=0, budget=linear, groups=[0, 0, 1])
    return task, rows, settings, found, chosen


def test_what_was_chosen_is_a_projector_and_composes_with_sketches() -> None:
    task, rows, settings, found, chosen = chosen_on_a_model()
    layout = find_components(task.model, heads=settings.heads)
    inner = coordinates(layout.components[name] for name in chosen.names)
    table = run_pass(task, rows, [Sketch(chosen.projector(inner))], settings=settings)
    g = table.columns["sketch"]
    expected = (g[PAIRS[:, 0]] * g[PAIRS[:, 1]]).sum(1)
    np.testing.assert_allclose(found.dots(chosen.names), expected, rtol=EXACT, atol=EXACT)
    sketch = run_pass(
        task, rows, [Sketch(chosen.projector(SJLT(num_dims=64, seed=0)))], settings=settings
    )
    fewer = run_pass(
        task, rows, [Sketch(SJLT(num_dims=64, seed=0))], settings=chosen.settings(task, settings)
    )
    np.testing.assert_allclose(sketch.columns["sketch"], fewer.columns["sketch"], atol=EXACT)


def test_what_was_chosen_composes_with_ekfac(tmp_path: Path) -> None:
    task, rows = cases.build("gpt2-tied", 5)
    kinds = ("linear",)
    found = component_products(task, rows[:3], rows, PAIRS, settings=PassSettings(kinds=kinds))
    chosen = choose_components(
        found, Agreement(), seed=0, budget=Budget(most=500), groups=[0, 0, 1]
    )
    reading = chosen.settings(task, PassSettings(kinds=kinds))
    fitted = EKFAC(seed=0, fisher="empirical").fit(task, rows, settings=reading)
    assert sorted(fitted.layers) == list(chosen.names)
    index = build_index(fitted, task, rows, num_dims=8, path=tmp_path, gram=None)
    top, _ = index.search(task, rows[:1], k=2)
    assert top.scores.shape == (1, 2)


def test_names_that_do_not_pick_components_out_are_refused() -> None:
    task, _, settings, _, chosen = chosen_on_a_model()
    assert chosen.settings(task, settings).layers == chosen.names
    mixed = replace(chosen, names=("transformer.h.0.attn.c_attn[q,1]", "transformer.ln_f.bias"))
    with pytest.raises(
        ValueError, match=r"must pick them out of the model. .* not \['transformer.h"
    ):
        mixed.settings(task, PassSettings())


def test_mistakes_are_named_before_anything_runs() -> None:
    task, rows = cases.build("linear-regression", 3)
    with pytest.raises(ValueError, match=r"`pairs` must hold at least one example"):
        component_products(task, rows, rows, np.empty((0, 2), dtype=np.int64))
    with pytest.raises(ValueError, match=r"among 3 queries and 3 rows. Got \[0, 3\]"):
        component_products(task, rows, rows, np.array([[0, 3]]))
    products = random_products(2, 3, 2)
    with pytest.raises(KeyError, match=r"`names` must be of components. Unknown: \['fc'\]"):
        products.cosines(["fc"])
    with pytest.raises(ValueError, match=r"every query must have its source .* Not so: \[2\]"):
        Accuracy({0: 0, 1: 2}).fit(products)
    with pytest.raises(ValueError, match=r"`width` must be at least 1"):
        search_beam(products, Agreement(), width=0)


TEXTS = [
    "the red cat sat on the mat",
    "a red dog ran to the mat",
    "birds sing in the morning",
    "the cat and the dog sing",
]


def test_the_source_is_among_the_candidates_and_ties_are_misses() -> None:
    found = source_questions(["red cat", "red cat"], TEXTS, [0, 2], k=3)
    assert found.candidates[0].tolist()[0] == 0
    assert found.candidates[1].tolist()[:2] == found.candidates[0].tolist()[:2]
    assert found.candidates[1, 2] == 2
    assert found.pairs.tolist()[3] == [1, int(found.candidates[1, 0])]
    assert found.accuracy(found.lexical) == 0.5
    assert found.accuracy(np.ones(6)) == 0
    with pytest.raises(ValueError, match=r"`sources` must be 1 positions"):
        source_questions(["a"], TEXTS, [4], k=2)
    with pytest.raises(ValueError, match=r"`k` must be in \[2, 4\]"):
        source_questions(["a"], TEXTS, [1], k=5)


def test_scores_of_questions_are_an_objective() -> None:
    task, rows = cases.build("gpt2-tied", 5)
    found = component_products(task, rows[:3], rows, PAIRS)
    accuracy = Accuracy({0: 3, 1: 4, 2: 0}).fit(found)
    table = found.cosines().reshape(3, 2)
    assert accuracy.values(found.cosines()[None])[0] == np.mean(table[:, 0] > table[:, 1])


def test_beginnings_end_with_a_word() -> None:
    assert beginnings(["one two  three\nfour", "", "word"], 0.6) == ["one two  three", "", "word"]
    with pytest.raises(ValueError, match=r"`share` must be in \[0, 1\]"):
        beginnings(["a"], 2)


def test_a_hundred_components_are_searched_within_a_second() -> None:
    from time import process_time

    products = random_products(113, 988, 5)
    began = process_time()
    search_forward(products, Agreement())
    assert process_time() - began < 5  # about a second; the rest is for machines that do more
