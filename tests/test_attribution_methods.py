"""Methods of attribution: formulas for `test_method_contract.py`, and what each has of its own."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cases
import numpy as np
import pytest
import torch
from oracles import flat_gradients
from torch import nn

from influence import (
    EKFAC,
    MFAC,
    TRAK,
    AbsoluteDamping,
    ConjugateGradients,
    DataInf,
    DualInverse,
    GaussNewton,
    GradientDot,
    GradientWindow,
    HiddenSimilarity,
    Inverse,
    LabelSigned,
    LastLayerTracIn,
    MFACRows,
    ModelCheckpoint,
    ParameterRelatIF,
    RelatIF,
    RelativeDamping,
    RowInfluence,
    TracIn,
    TRAKEnsemble,
    copy_state,
)
from influence.raw_gradients import gradient_blocks
from projections import (
    SJLT,
    Classification,
    ConvergenceError,
    LogOdds,
    PassSettings,
    Regression,
    StoreMismatchError,
    Task,
)

EXACT = 1e-10  # float64 sums in another order
SINGLE = 1e-5  # vectors are kept in float32


def perceptron(count: int = 11, queries: int = 3) -> tuple[Task, list[Any], list[Any]]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double().eval()
    rows = [(torch.randn(3).double(), row % 3) for row in range(count + queries)]
    return Classification(model), rows[:count], rows[count:]


def along(model: nn.Module, rates: tuple[float, ...] = (0.3, 0.1)) -> list[ModelCheckpoint]:
    """Checkpoints around the model, none of which is the model."""
    torch.manual_seed(1)
    found = []
    for rate in rates:
        state = {
            name: value + 0.3 * torch.randn_like(value) for name, value in copy_state(model).items()
        }
        found.append(ModelCheckpoint(state=state, learning_rate=rate))
    return found


def at(task: Task, checkpoint: ModelCheckpoint, rows: list[Any]) -> np.ndarray:
    """Whole gradients at a checkpoint, one a row."""
    kept = copy_state(task.model)
    task.model.load_state_dict(dict(checkpoint.state))
    found = flat_gradients(task, rows)
    task.model.load_state_dict(kept)
    return found


@dataclass(frozen=True)
class Row:
    """A method under the contract.

    Args:
        make: From a task to the method.
        dense: From a task, training rows and queries to the scores, written out.
        symmetric: Whether scores among training rows are symmetric.
        tolerance: How near, relative to the largest score.
        problem: From a number of training rows to a task, these rows and queries.
        looks_at_weights: Whether scores are of the model's weights, and not of the best ones.
    """

    make: Callable[[Task], Any]
    dense: Callable[[Task, list[Any], list[Any]], np.ndarray]
    symmetric: bool = True
    tolerance: float = EXACT
    problem: Callable[..., tuple[Task, list[Any], list[Any]]] = perceptron
    looks_at_weights: bool = True


def tracin(task: Task, train: list[Any], queries: list[Any]) -> np.ndarray:
    parts = [
        c.learning_rate * at(task, c, queries) @ at(task, c, train).T for c in along(task.model)
    ]
    return sum(parts[1:], parts[0])


def blocks(task: Task) -> list[slice]:
    """Where the parameters of each layer lie in a flat gradient."""
    sizes = [sum(p.numel() for p in layer.parameters()) for layer in task.model.children()]
    ends = np.cumsum(sizes)
    return [slice(e - s, e) for s, e in zip(sizes, ends, strict=True) if s]


def last_layer(task: Task, train: list[Any], queries: list[Any]) -> np.ndarray:
    last, total = blocks(task)[-1], np.zeros((len(queries), len(train)))
    for one in along(task.model):
        q, g = at(task, one, queries)[:, last], at(task, one, train)[:, last]
        total += one.learning_rate * q @ g.T
    return total


def dense_mfac(task: Task, train: list[Any], rows: list[Any]) -> np.ndarray:
    """The damped inverse of the mean outer product of some gradients."""
    G = flat_gradients(task, rows)
    matrix = G.T @ G / len(G)
    return np.linalg.inv(matrix + 0.1 * np.trace(matrix) / len(matrix) * np.eye(len(matrix)))


def mfac(task: Task, train: list[Any], queries: list[Any]) -> np.ndarray:
    inverse = dense_mfac(task, train, train)
    return flat_gradients(task, queries) @ inverse @ flat_gradients(task, train).T


def relative(task: Task, train: list[Any], queries: list[Any]) -> np.ndarray:
    own = np.diag(mfac(task, train, train))
    return mfac(task, train, queries) / np.sqrt(own)


def datainf(task: Task, train: list[Any], queries: list[Any]) -> np.ndarray:
    """The published formula, with one dense inverse an example."""
    G, Q = flat_gradients(task, train), flat_gradients(task, queries)
    total = np.zeros((len(Q), len(G)))
    for block in blocks(task):
        g, q = G[:, block], Q[:, block]
        damping = 0.1 * np.square(g).mean()
        eye = damping * np.eye(g.shape[1])
        inverse = np.mean([np.linalg.inv(np.outer(row, row) + eye) for row in g], axis=0)
        total += q @ inverse @ g.T
    return total


def odds_gradients(task: Task, rows: list[Any]) -> tuple[np.ndarray, np.ndarray]:
    """Gradients of ``log(p / (1 - p))``, and ``1 - p``, of one row after the other."""
    gradients, doubts = [], []
    for inputs, label in rows:
        p = task.model(inputs[None]).softmax(-1)[0, label]
        task.model.zero_grad()
        (p.log() - (1 - p).log()).backward()
        flat = [q.grad.flatten() for q in task.model.parameters() if q.grad is not None]
        gradients.append(torch.cat(flat).numpy().copy())
        doubts.append(1 - float(p.detach()))
    task.model.zero_grad()
    return np.stack(gradients), np.array(doubts)


def trak_ensemble(task: Task, train: list[Any], queries: list[Any]) -> np.ndarray:
    """Both means of the formula over models, with dense inverses."""
    kernels, doubts, kept = [], [], copy_state(task.model)
    for one in along(task.model):
        task.model.load_state_dict(dict(one.state))
        (G, doubt), (Q, _) = odds_gradients(task, train), odds_gradients(task, queries)
        gram = G.T @ G / len(G)
        damped = gram + 0.3 * np.trace(gram) / len(gram) * np.eye(len(gram))
        kernels.append(Q @ np.linalg.inv(damped) @ G.T)
        doubts.append(doubt)
        task.model.load_state_dict(kept)
    return np.mean(kernels, axis=0) * np.mean(doubts, axis=0)


def hidden(task: Task, train: list[Any], queries: list[Any]) -> np.ndarray:
    def inputs(rows: list[Any]) -> np.ndarray:
        model: Any = task.model
        out = model[1](model[0](torch.stack([row[0] for row in rows]))).detach().numpy()
        return out / np.linalg.norm(out, axis=1, keepdims=True)

    return inputs(queries) @ inputs(train).T


def label_of(row: Any) -> Any:
    return row[1]


def signed(task: Task, train: list[Any], queries: list[Any]) -> np.ndarray:
    agree = np.array([[a[1] == b[1] for b in train] for a in queries])
    return hidden(task, train, queries) * np.where(agree, 1, -1)


METHODS = {
    "tracin": Row(lambda task: TracIn(checkpoints=along(task.model)), tracin),
    "tracin, rows": Row(
        lambda task: RowInfluence(metric=GradientDot(), checkpoints=along(task.model)), tracin
    ),
    "tracin, last layer": Row(
        lambda task: LastLayerTracIn(checkpoints=along(task.model)), last_layer
    ),
    "datainf": Row(lambda task: DataInf(), datainf),
    "m-fac": Row(lambda task: MFAC(seed=0), mfac),
    "m-fac, rows": Row(lambda task: RowInfluence(metric=MFACRows()), mfac),
    "relatif of m-fac": Row(lambda task: RelatIF(method=MFAC(seed=0)), relative),
    "trak, several models": Row(
        lambda task: TRAKEnsemble(checkpoints=along(task.model), damping=0.3),
        trak_ensemble,
        symmetric=False,
    ),
    "hidden states": Row(lambda task: HiddenSimilarity(), hidden, tolerance=SINGLE),
    "hidden states, signed": Row(
        lambda task: LabelSigned(method=HiddenSimilarity(layer="2"), label=label_of),
        signed,
        tolerance=SINGLE,
    ),
}


# TracIn


def test_tracin_takes_more_queries_than_fit_the_memory_in_several_passes() -> None:
    task, train, queries = perceptron()
    fitted = TracIn(checkpoints=along(task.model)).fit(task, train)
    one = fitted.scores(task, queries, train, memory=1).values
    np.testing.assert_allclose(one, fitted.scores(task, queries, train).values, rtol=EXACT)


def test_tracin_predicts_what_a_short_run_of_descent_does() -> None:
    # A step on one example after the other: the drop of the query's loss is the sum of scores.
    task, train, queries = perceptron(8)
    rate, states = 1e-5, []
    before = task.losses(task.collate(queries)).detach()
    start = copy_state(task.model)
    for row in train:
        states.append(copy_state(task.model))
        task.model.zero_grad()
        task.losses(task.collate([row])).sum().backward()
        with torch.no_grad():
            for parameter in task.model.parameters():
                assert parameter.grad is not None
                parameter.sub_(rate * parameter.grad)
    drop = (before - task.losses(task.collate(queries)).detach()).numpy()
    task.model.load_state_dict(start)
    task.model.zero_grad()
    found = np.zeros(len(queries))
    for row, state in zip(train, states, strict=True):
        step = TracIn(checkpoints=[ModelCheckpoint(state=state, learning_rate=rate)])
        found += step.fit(task).scores(task, queries, [row]).values[:, 0]
    np.testing.assert_allclose(found, drop, rtol=1e-3)


def test_projected_rows_of_checkpoints_are_kept_and_sum_to_nearly_the_exact_scores(
    tmp_path: Path,
) -> None:
    task, train, queries = perceptron()
    method = RowInfluence(
        metric=GradientDot(),
        projector=SJLT(num_dims=3000, seed=0),
        checkpoints=along(task.model),
        path=tmp_path,
    )
    found = method.fit(task, train).scores(task, queries, train).values
    wanted = tracin(task, train, queries)
    assert np.corrcoef(found.ravel(), wanted.ravel())[0, 1] > 0.99
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-0", "checkpoint-1"]
    again = method.fit(task, train).scores(task, queries, train).values
    np.testing.assert_array_equal(again, found)
    other = replace(method, checkpoints=method.checkpoints[::-1])
    with pytest.raises(StoreMismatchError, match="model"):
        other.fit(task, train)


def test_states_of_other_models_are_refused_before_any_work() -> None:
    task, train, queries = perceptron()
    state = dict(copy_state(task.model))
    state["0.weight"] = torch.zeros(2, 2)
    del state["2.bias"]
    state["3.bias"] = torch.zeros(1)
    wrong = ModelCheckpoint(state=state)
    message = r"Missing: \['2\.bias'\]; unknown: \['3\.bias'\]; of another shape: \['0\.weight'\]"
    for method in (
        TracIn(checkpoints=[wrong]),
        RowInfluence(metric=GradientDot(), checkpoints=[wrong]),
    ):
        with pytest.raises(StoreMismatchError, match=message):
            method.fit(task, train)
    with pytest.raises(ValueError, match="`checkpoints` must hold at least one"):
        TracIn(checkpoints=[])
    fitted = RowInfluence(metric=GradientDot()).fit(task, train)
    with pytest.raises(StoreMismatchError, match="must be asked for the data of the fit"):
        fitted.scores(task, queries, queries)
    with pytest.raises(ValueError, match="`learning_rate` must be at least 0"):
        ModelCheckpoint(state=state, learning_rate=-1.0)


def test_a_checkpoint_of_what_was_trained_is_enough() -> None:
    task, train, queries = perceptron()
    whole = along(task.model)[:1]
    for parameter in list(task.model.parameters())[:2]:
        parameter.requires_grad_(False)
    kept = {name: value for name, value in whole[0].state.items() if name.startswith("2.")}
    found = (
        TracIn(checkpoints=[replace(whole[0], state=kept)]).fit(task).scores(task, queries, train)
    )
    full = {**copy_state(task.model), **kept}
    wanted = (
        TracIn(checkpoints=[replace(whole[0], state=full)]).fit(task).scores(task, queries, train)
    )
    np.testing.assert_array_equal(found.values, wanted.values)


@pytest.mark.parametrize("name", ["llama-left-padding", "bert"])
def test_products_of_factors_are_those_of_the_gradients_of_the_layer(name: str) -> None:
    task, data = cases.build(name, 5)
    here = [ModelCheckpoint(state=copy_state(task.model), learning_rate=0.5)]
    method = LastLayerTracIn(checkpoints=here).fit(task)
    layer = method.provenance["layer"]
    settings = PassSettings(layers=(layer, f"{layer}.*"))
    wanted = TracIn(checkpoints=here).fit(task, settings=settings).scores(task, data[:2], data)
    alone = PassSettings(batch_size=2)
    found = method.scores(task, data[:2], data, settings=alone)
    np.testing.assert_allclose(found.values, wanted.values, rtol=1e-8, atol=1e-12)


def test_a_head_that_is_tied_to_the_embedding_has_no_factors_of_its_own() -> None:
    task, _ = cases.build("gpt2-tied", 1)
    here = [ModelCheckpoint(state=copy_state(task.model))]
    with pytest.raises(ValueError, match=r"at least one trainable parameter.*'lm_head'"):
        LastLayerTracIn(checkpoints=here).fit(task)


# M-FAC


def recursion(G: np.ndarray, damping: float) -> Any:
    """M-FAC as published: rank-one updates of the inverse, one gradient after the other."""
    m, H, D = len(G), [], []
    for g in G:
        h = g / damping
        for other, d in zip(H, D, strict=True):
            h = h - other * (other @ g) / d
        H.append(h)
        D.append(m + g @ h)
    return lambda x: x / damping - sum(h * (h @ x) / d for h, d in zip(H, D, strict=True))


def test_one_dual_solve_is_the_recursion_of_mfac() -> None:
    torch.manual_seed(0)
    G, x = torch.randn(7, 30).double(), torch.randn(3, 30).double()
    inverse, apply = DualInverse(G, 0.3), recursion(G.numpy(), 0.3)
    found = inverse.apply(x).numpy()
    np.testing.assert_allclose(found, np.stack([apply(row) for row in x.numpy()]), rtol=1e-9)
    dense = torch.linalg.inv(G.mT @ G / 7 + 0.3 * torch.eye(30))
    torch.testing.assert_close(inverse.diagonal(), dense.diagonal())
    own = inverse.self_products(x @ G.mT, x.square().sum(1))
    torch.testing.assert_close(own, (x @ dense * x).sum(1))


@pytest.mark.parametrize("sizes", [[1] * 9, [2, 3, 1, 5], [4, 4], [9], [1, 8, 2]])
def test_a_window_holds_the_last_gradients_and_their_products(sizes: list[int]) -> None:
    torch.manual_seed(0)
    rows = torch.randn(sum(sizes), 6).double()
    window = GradientWindow(4)
    for block in rows.split(sizes):
        window.push(block)
    last = rows[-4:]
    assert {tuple(row) for row in window.rows.tolist()} == {tuple(row) for row in last.tolist()}
    torch.testing.assert_close(window.gram, window.rows @ window.rows.mT)
    x = torch.randn(2, 6).double()
    torch.testing.assert_close(window.inverse(0.2).apply(x), DualInverse(last, 0.2).apply(x))


def test_windows_refuse_other_dimensions_and_inverses_a_damping_of_zero() -> None:
    window = GradientWindow(2)
    window.push(torch.ones(1, 3))
    with pytest.raises(ValueError, match=r"must have the 3 dimensions of those before\. Got 4"):
        window.push(torch.ones(1, 4))
    with pytest.raises(ValueError, match=r"`damping` must be positive\. Got 0"):
        window.inverse(0.0)
    with pytest.raises(ValueError, match=r"`num_rows` must be at least 1"):
        GradientWindow(0)


def test_the_estimate_of_fewer_rows_is_of_those_that_the_seed_draws() -> None:
    task, train, queries = perceptron()
    fitted = MFAC(num_rows=4, seed=1).fit(task, train)
    G = torch.from_numpy(flat_gradients(task, train))
    found = {tuple(row.round(decimals=9).tolist()) for row in fitted.inverse.rows}
    assert len(found) == 4
    assert found < {tuple(row.round(decimals=9).tolist()) for row in G}
    again = MFAC(num_rows=4, seed=1).fit(task, train).scores(task, queries, train).values
    np.testing.assert_array_equal(fitted.scores(task, queries, train).values, again)


def test_the_window_of_a_store_is_its_last_rows(tmp_path: Path) -> None:
    task, train, queries = perceptron()
    metric = MFACRows(num_rows=5, damping=RelativeDamping(0.1))
    method = RowInfluence(metric=metric, path=tmp_path)
    settings = PassSettings(shard_size=3)
    found = method.fit(task, train, settings=settings).scores(task, queries, train).values
    inverse = dense_mfac(task, train, train[-5:])
    wanted = flat_gradients(task, queries) @ inverse @ flat_gradients(task, train).T
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4 * np.abs(wanted).max())


def test_all_rows_of_a_store_give_the_kernel_of_trak() -> None:
    task, train, queries = perceptron()
    settings = SJLT(num_dims=8, seed=0)
    both = [
        RowInfluence(metric=metric, projector=settings).fit(task, train)
        for metric in (MFACRows(damping=RelativeDamping(0.4)), TRAK(damping=0.4))
    ]
    first, second = (fitted.scores(task, queries, train).values for fitted in both)
    np.testing.assert_allclose(first, second, rtol=1e-8)


# RelatIF


def test_relative_influence_among_training_examples_is_a_cosine() -> None:
    task, train, _ = perceptron()
    fitted = RelatIF(method=EKFAC(seed=0)).fit(task, train)
    pairs = fitted.scores(task, train, train).values
    own = np.sqrt(EKFAC(seed=0).fit(task, train).self_influence(task, train).values)
    cosines = pairs / own[:, None]
    np.testing.assert_allclose(np.diag(cosines), 1, rtol=1e-6)
    assert np.abs(cosines).max() <= 1 + 1e-6


@pytest.mark.parametrize("solved", [False, True])
def test_relative_to_the_parameters_divides_by_the_length_of_the_response(solved: bool) -> None:
    task, train, queries = perceptron()
    solver = ConjugateGradients(tolerance=1e-10)
    inverse = Inverse(matrix=GaussNewton(seed=0, fisher="exact"), solver=solver, damping=0.1)
    method: Any = inverse if solved else EKFAC(seed=0)
    fitted = method.fit(task, train)
    plain = fitted.scores(task, queries, train).values
    if solved:
        G = torch.from_numpy(flat_gradients(task, train))
        wanted = fitted.solve(G).vectors.norm(dim=1).numpy()
    else:
        gradients = fitted.query_gradients(task, train)  # preconditioned already
        squares = [q.gradients.square().sum((1, 2)) for q in gradients.values()]
        wanted = torch.stack(squares).sum(0).sqrt().numpy()
    found = ParameterRelatIF(method=method).fit(task, train).scores(task, queries, train).values
    np.testing.assert_allclose(found, plain / wanted, rtol=1e-6)


def test_relative_influence_refuses_what_it_cannot_divide_by() -> None:
    task, train, _ = perceptron()
    with pytest.raises(TypeError, match=r"must have `self_influence`.*FittedHiddenSimilarity"):
        RelatIF(method=HiddenSimilarity()).fit(task, train)
    with pytest.raises(TypeError, match=r"must have `response_norms`.*FittedMFAC"):
        ParameterRelatIF(method=MFAC(seed=0)).fit(task, train)


def test_an_example_without_a_gradient_keeps_the_score_zero() -> None:
    model = nn.Linear(2, 1, bias=False).double()
    task = Regression(model)
    data = [(torch.zeros(2).double(), torch.ones(1).double()) for _ in range(2)]
    data.append((torch.ones(2).double(), torch.ones(1).double()))
    fitted = RelatIF(method=RowInfluence(metric=GradientDot())).fit(task, data)
    found = fitted.scores(task, data, data).values
    assert not found[:2].any() and not found[:, :2].any() and found[2, 2] > 0


# TRAK


@pytest.mark.parametrize("name", ["mlp-inplace-relu", "gpt2-tied", "bert"])
def test_log_odds_are_the_loss_without_its_doubt(name: str) -> None:
    # d(-log p) = -(1 - p) d log(p / (1 - p)), position by position.
    task, data = cases.build(name, 4)
    odds: Any = LogOdds(task)
    batch = task.collate(odds.encode(data))
    logits, labels = odds.task.logits_and_labels(batch)
    p = logits.softmax(-1).gather(-1, labels.clamp(min=0)[..., None]).squeeze(-1)
    counted = labels >= 0
    wanted = -(torch.log(p / (1 - p)) * counted).flatten(1 if p.dim() > 1 else 0)
    wanted = wanted.sum(1) if p.dim() > 1 else wanted
    found = odds.statistics(batch)
    torch.testing.assert_close(found["loss"], wanted)
    means = (p * counted).view(4, -1).sum(1) / counted.view(4, -1).sum(1)
    torch.testing.assert_close(found["doubt"], (1 - means).detach())


def test_one_model_of_trak_projects_like_the_kernel_on_rows_of_log_odds(tmp_path: Path) -> None:
    task, train, queries = perceptron(40)
    projector = SJLT(num_dims=16, seed=0)
    here = [ModelCheckpoint(state=copy_state(task.model))]
    method = TRAKEnsemble(checkpoints=here, projector=projector, damping=0.1, path=tmp_path)
    fitted = method.fit(task, train)
    rows = RowInfluence(metric=TRAK(damping=0.1), projector=projector)
    odds = LogOdds(task)
    kernel = rows.fit(odds, train).scores(odds, queries, train).values
    found = fitted.scores(task, queries, train).values
    np.testing.assert_allclose(found, kernel * fitted.doubts, rtol=1e-3, atol=1e-5)
    again = method.fit(task, train).scores(task, queries, train).values
    np.testing.assert_array_equal(found, again)


def test_models_of_an_ensemble_have_projections_of_their_own() -> None:
    task, train, _ = perceptron()
    here = ModelCheckpoint(state=copy_state(task.model))
    method = TRAKEnsemble(checkpoints=[here, here], projector=SJLT(num_dims=5, seed=3))
    seeds = [member.projector for member in method.fit(task, train).kernels.members]
    assert seeds == [SJLT(num_dims=5, seed=3), SJLT(num_dims=5, seed=4)]


def test_trak_asks_about_measurements_where_a_task_has_some() -> None:
    class Asked(Classification):
        def measurements(self, batch: Any) -> torch.Tensor:
            return 2 * self.losses(batch)

    task, train, queries = perceptron()
    here = [ModelCheckpoint(state=copy_state(task.model))]
    fitted = TRAKEnsemble(checkpoints=here, damping=0.3).fit(task, train)
    found = fitted.scores(Asked(task.model), queries, train).values
    odds = fitted.scores(task, queries, train).values
    _, doubts = odds_gradients(task, queries)
    np.testing.assert_allclose(found, 2 * doubts[:, None] * odds, rtol=1e-8)


def test_log_odds_need_labels() -> None:
    task, data = cases.build("linear-regression", 3)
    here = [ModelCheckpoint(state=copy_state(task.model))]
    with pytest.raises(TypeError, match=r"`logits_and_labels`.*Got Regression\. Use TRAK on rows"):
        TRAKEnsemble(checkpoints=here).fit(task, data)


# DataInf


@pytest.mark.parametrize("name", ["gpt2-tied", "convnet-groups-reflect", "used-twice"])
def test_datainf_takes_every_kind_of_layer(name: str) -> None:
    task, data = cases.build(name, 5)
    fitted = DataInf().fit(task, data)
    space = fitted.space
    table = list(gradient_blocks(task, fitted.rows, space, settings=PassSettings()))
    G = torch.cat(table).numpy()
    wanted = np.zeros((5, 5))
    for key, component in space.layout.components.items():
        start = min(space.coordinates.starts[part.name] for part in component.parameters)
        g = G[:, start : start + component.size]
        own = g @ g.T
        inner = own / (fitted.dampings[key] + np.diag(own))
        wanted += (own - inner @ own / 5) / fitted.dampings[key]
    found = fitted.scores(task, data, data).values
    np.testing.assert_allclose(found, wanted, rtol=1e-8, atol=EXACT * np.abs(wanted).max())


def test_datainf_of_one_example_is_the_exact_inverse() -> None:
    task, train, queries = perceptron(1)
    g, q = flat_gradients(task, train), flat_gradients(task, queries)
    fitted = DataInf(damping=AbsoluteDamping(0.2)).fit(task, train)
    wanted = np.zeros((3, 1))
    for block in blocks(task):
        matrix = g[:, block].T @ g[:, block] + 0.2 * np.eye(g[:, block].shape[1])
        wanted += q[:, block] @ np.linalg.solve(matrix, g[:, block].T)
    np.testing.assert_allclose(fitted.scores(task, queries, train).values, wanted, rtol=EXACT)


def test_datainf_refuses_a_damping_of_zero_and_names_the_component() -> None:
    task, train, _ = perceptron()
    with pytest.raises(ConvergenceError, match=r"damping of every component.*\['0', '2'\]"):
        DataInf(damping=AbsoluteDamping(0.0)).fit(task, train)
