"""On a machine without a card: everything that is computed stays on the device of the model.

The device is a pretended one, whose tensors refuse to be mixed with those of the processor;
`test_on_a_card.py` has what only a real one shows.
"""

import importlib
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cases
import layer_cases
import numpy as np
import pytest
import torch
from contracts import PROJECTORS
from pretended_card import OnCard, pretended_card, put_on_card
from test_domain_signals import (
    DOMAINS,
    TARGET,
    in_batch,
    language_task,
    mixed_batch,
    step_in_batch,
)
from test_ekfac import CURVATURES, TinyLM, texts
from test_method_contract import ROWS
from test_solvers import SOLVERS, fitted, perceptron

from influence import EKFAC, FittedCurvature, build_index
from projections import (
    SJLT,
    Agreement,
    CausalLM,
    GradientNorm,
    GradientTotal,
    PassSettings,
    SearchIndex,
    Sketch,
    Statistic,
    WeightAlignment,
    index_gradients,
    query_rows,
    run_pass,
)
from selection import DGA, DoGE

SAME = 1e-6  # the same sums by the same kernels; rows are float32
READING = PassSettings(batch_size=2, shard_size=3)


def on_both(found: Callable[[bool], Any]) -> None:
    """Hold what is found with a model on the card to what is found on the processor."""
    here = found(False)
    with pretended_card():
        there = found(True)
    assert here.keys() == there.keys()
    for name, values in here.items():
        scale = float(np.abs(values).max()) if values.dtype.kind == "f" else 0
        np.testing.assert_allclose(there[name], values, rtol=SAME, atol=SAME * scale, err_msg=name)


def place(task: Any, on_card: bool) -> Any:
    if on_card:
        put_on_card(task.model)
    return task


def test_the_card_refuses_what_a_card_refuses() -> None:
    with pretended_card() as card:
        there, here = torch.arange(3.0, device=card), torch.arange(3.0)
        assert isinstance(there, OnCard) and (2 * there + here.sum()).tolist() == [3, 5, 7]
        with pytest.raises(RuntimeError, match="on the same device"):
            _ = there + here
        with pytest.raises(RuntimeError, match="indices should be"):
            _ = here[there.long()]
        with pytest.raises(TypeError, match=r"Use Tensor.cpu\(\) first"):
            np.asarray(there)
        with pytest.raises(RuntimeError, match="a generator of the card"):
            torch.rand(2, device=card, generator=torch.Generator())
        here[torch.tensor([0])] = there[2:].cpu()
        assert here.tolist() == there.cpu()[[2, 1, 2]].tolist()


QUICK = {"attention", "gpt2-tied", "srht", "m-fac", "ekfac", "full precision"}


def each(names: Iterable[str]) -> Any:
    """Run all of these, and most of them where there is time for it."""
    slow = pytest.mark.slow
    return pytest.mark.parametrize(
        "name", [pytest.param(name, marks=() if name in QUICK else slow) for name in names]
    )


@each([*layer_cases.LAYERS, *layer_cases.MODELS, *cases.MODELS])
def test_gradients_of_every_layer(name: str) -> None:
    build = (cases if name in cases.MODELS else layer_cases).build

    def found(on_card: bool) -> Any:
        task, rows = build(name, 3)
        columns = [GradientNorm(), Sketch(SJLT(num_dims=8, seed=0))]
        return run_pass(place(task, on_card), rows, columns, settings=READING).columns

    on_both(found)


@each(name for name in PROJECTORS if name != "kronecker")  # which the benchmark runs
def test_every_projector(name: str) -> None:
    def found(on_card: bool) -> Any:
        task, rows = cases.build("gpt2-tied", 3)
        columns = [Sketch(PROJECTORS[name].make(8, 0))]
        return run_pass(place(task, on_card), rows, columns, settings=READING).columns

    on_both(found)


@each(["full precision", "autocast"])
def test_columns_and_scores_of_a_pass(name: str) -> None:
    reading = replace(READING, autocast="bfloat16" if name == "autocast" else None)

    def found(on_card: bool) -> Any:
        task, rows = cases.build("gpt2-tied", 5)
        place(task, on_card)
        columns = [Statistic("loss"), GradientNorm(), WeightAlignment(task.model)]
        table = run_pass(task, rows, columns, settings=reading).columns
        total = GradientTotal()
        run_pass(task, rows, accumulators=[total], settings=reading)
        agreement = run_pass(task, rows, [Agreement(total)], settings=reading).columns
        return {**table, **agreement}

    on_both(found)


@each(ROWS)
def test_every_method_of_attribution(name: str) -> None:
    row = ROWS[name]

    def found(on_card: bool) -> Any:
        task, train, queries = row.problem()
        method = row.make(task)  # with checkpoints that are on the processor
        place(task, on_card)
        fitted = method.fit(task, train, settings=READING)
        scores = {"scores": fitted.scores(task, queries, train).values}
        if hasattr(fitted, "self_influence"):
            scores["self"] = fitted.self_influence(task, train).values
        return scores

    on_both(found)


@each(CURVATURES)
def test_every_curvature(name: str, tmp_path: Path) -> None:
    def found(on_card: bool) -> Any:
        torch.manual_seed(0)
        task = CausalLM(TinyLM().double().eval())
        train, queries = texts(7), texts(2)
        fitted = CURVATURES[name].fit(place(task, on_card), train, settings=READING)
        file = tmp_path / str(on_card)
        fitted.save(file)
        ask = (task, queries, train)
        top, bottom = fitted.top(*ask, k=2)
        by_token = fitted.token_scores(*ask)
        return {
            "scores": fitted.scores(*ask).values,
            "of low rank": fitted.scores(*ask, query_rank=2).values,
            "by layer": np.stack(list(fitted.layer_scores(*ask).columns.values())),
            "again": FittedCurvature.load(file).scores(*ask).values,
            "self": fitted.self_influence(task, train).values,
            "norms": fitted.response_norms(task, train).values,
            "top": top.ids,
            "bottom": bottom.scores,
            "tokens": np.concatenate([by_token[row] for row in range(7)], axis=1),
        }

    on_both(found)


def test_a_fit_in_partitions_that_goes_on_from_the_memory_of_the_machine() -> None:
    def found(on_card: bool) -> Any:
        task, train, queries = perceptron()
        place(task, on_card)
        method = EKFAC(seed=0)
        fitted = method.fit(task, train[:9], partitions=[["0"], ["2"]])
        assert not any(isinstance(one.eigenvalues, OnCard) for one in fitted.layers.values())
        more = method.extend(fitted.to(task.device), task, train[9:])
        again = method.extend(fitted, task, train[9:])
        scores = {"more": more.scores(task, queries, train).values}
        return {**scores, "again": again.scores(task, queries, train).values}

    on_both(found)


@each(name for name in SOLVERS if "lissa" not in name)  # of hundreds of passes
def test_every_solver(name: str) -> None:
    def found(on_card: bool) -> Any:
        task, train, queries = perceptron()
        method = fitted(SOLVERS[name], place(task, on_card), train)
        scores = method.scores(task, queries, train).values
        return {"scores": scores, "self": method.self_influence(task, train).values}

    on_both(found)


def test_an_index_and_its_search(tmp_path: Path) -> None:
    def found(on_card: bool) -> Any:
        task, train, queries = perceptron(20)
        place(task, on_card)
        fitted = EKFAC(seed=0).fit(task, train, settings=READING)
        path = tmp_path / str(on_card)
        index = build_index(fitted, task, train, num_dims=9, path=path, settings=READING)
        top, bottom = index.search(task, queries, k=3, rerank=8, data=train)
        store = index_gradients(task, train, SJLT(num_dims=8, seed=0), path=path / "sketches")
        asked = query_rows(task, queries, SJLT(num_dims=8, seed=0))
        device = "meta" if on_card else "cpu"
        near, far = SearchIndex(store, device=device).search_both(asked, 4)
        parts = {"top": top, "bottom": bottom, "near": near, "far": far}
        ids = {f"{name} ids": part.ids for name, part in parts.items()}
        return {**ids, **{name: part.scores for name, part in parts.items()}}

    on_both(found)


def test_mixtures_over_domains() -> None:
    def found(on_card: bool) -> Any:
        task = place(language_task(), on_card)
        weights = {}
        for mixture in (
            DGA(task, DOMAINS, TARGET, every=1, batch_size=2, seed=0),
            DoGE(task, DOMAINS, batch_size=2, seed=0),
        ):
            for step in range(3):
                mixture.update(step)
            weights[type(mixture).__name__] = mixture.weights
        return weights

    on_both(found)


def test_alignments_of_the_training_batch() -> None:
    def found(on_card: bool) -> Any:
        task = place(language_task(), on_card)
        rows, domains = mixed_batch()
        mixture = in_batch(task)
        with mixture.watching():
            signal = step_in_batch(mixture, rows, domains)
        return {"signal": signal, "weights": mixture.weights}

    on_both(found)


def test_the_benchmark_for_cards(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parent.parent / "benchmarks")
    gpu: Any = importlib.import_module("gpu")
    with pretended_card() as card:
        for precision in ("float32", "bfloat16"):
            bench = gpu.Bench(gpu.QUICK[0], precision, card)
            for _, run in gpu.stages(bench, tmp_path):
                run()
            assert len(bench.lines) == 9
        assert len(gpu.search(card, quick=True)) == 3
