"""LESS, TrackStar and representer points against their formulas written out in float64."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from oracles import flat_gradients
from scipy.linalg import sqrtm
from test_attribution_methods import at, hidden, perceptron
from torch import nn

from influence import (
    LESS,
    FittedInfluence,
    GradientDot,
    LogisticLeaveOneOut,
    ModelCheckpoint,
    RepresenterPoints,
    RowInfluence,
    TrackStar,
    copy_state,
)
from projections import (
    SJLT,
    AdamScaled,
    Classification,
    ConvergenceError,
    MemoryRows,
    Regression,
    StoreMismatchError,
    Task,
    coordinates,
    find_components,
    query_rows,
    read_adam_state,
)

EXACT = 1e-9


def warmed(count: int = 9) -> tuple[Task, list[Any], list[Any], list[ModelCheckpoint]]:
    """A model with two checkpoints of Adam, and its state at the end."""
    task, train, queries = perceptron(count)
    optimizer = torch.optim.Adam(task.model.named_parameters(), lr=0.02, eps=1e-6)
    checkpoints = []
    for rate in (3e-2, 1e-2):
        for _ in range(3):
            optimizer.zero_grad()
            task.losses(task.collate(train)).sum().backward()
            optimizer.step()
        adam = read_adam_state(optimizer.state_dict(), task.model)
        checkpoints.append(
            ModelCheckpoint(state=copy_state(task.model), learning_rate=rate, adam=adam)
        )
    optimizer.zero_grad()
    return task, train, queries, checkpoints


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def moments(task: Task, checkpoint: ModelCheckpoint) -> tuple[np.ndarray, np.ndarray, Any]:
    """First and second moments in the order of flat gradients."""
    assert checkpoint.adam is not None
    found = [checkpoint.adam.of(name) for name, _ in task.model.named_parameters()]
    first = torch.cat([one.first.flatten() for one in found]).numpy()
    second = torch.cat([one.second.flatten() for one in found]).numpy()
    return first, second, found[0]


def less(task: Task, train: list[Any], queries: list[Any], checkpoints: Any) -> np.ndarray:
    """Steps 2 and 4 of the procedure, with nothing projected."""
    total = np.zeros((len(queries), len(train)))
    for one in checkpoints:
        m, v, settings = moments(task, one)
        (b1, b2), G = settings.betas, at(task, one, train)
        gamma = (b1 * m + (1 - b1) * G) / np.sqrt(b2 * v + (1 - b2) * G**2 + settings.eps)
        total += one.learning_rate * unit(at(task, one, queries)) @ unit(gamma).T
    return total / sum(one.learning_rate for one in checkpoints)


def test_less_is_its_formula_written_out() -> None:
    task, train, queries, checkpoints = warmed()
    fitted = LESS(checkpoints=checkpoints).fit(task, train)
    found = fitted.scores(task, queries, train)
    np.testing.assert_allclose(found.values, less(task, train, queries, checkpoints), rtol=EXACT)
    assert isinstance(fitted, FittedInfluence)
    json.dumps(found.provenance)


def test_less_selects_by_the_largest_of_the_subtasks_means() -> None:
    task, train, queries, checkpoints = warmed()
    fitted = LESS(checkpoints=checkpoints).fit(task, train)
    subtasks = {"first": queries[:2], "second": queries[2:]}
    found = fitted.subtask_scores(task, subtasks, train)
    pairs = less(task, train, queries, checkpoints)
    means = {"first": pairs[:2].mean(0), "second": pairs[2]}
    for name, wanted in {**means, "less": np.maximum(*means.values())}.items():
        np.testing.assert_allclose(found.columns[name], wanted, rtol=EXACT)
    with pytest.raises(ValueError, match="must not have the name 'less'"):
        fitted.subtask_scores(task, {"less": queries}, train)


def test_less_on_projected_rows_in_stores_comes_near_and_goes_on(tmp_path: Path) -> None:
    task, train, queries, checkpoints = warmed()
    projector = SJLT(num_dims=4000, seed=0)
    method = LESS(checkpoints=checkpoints, projector=projector, path=tmp_path)
    found = method.fit(task, train).scores(task, queries, train).values
    wanted = less(task, train, queries, checkpoints)
    assert np.abs(found - wanted).max() < 0.1
    again = method.fit(task, train).scores(task, queries, train).values
    np.testing.assert_array_equal(found, again)
    other = replace(checkpoints[0], adam=checkpoints[1].adam)
    with pytest.raises(StoreMismatchError, match="state"):
        LESS(checkpoints=[other], projector=projector, path=tmp_path).fit(task, train)


class Adapted(nn.Module):
    """A frozen layer with a trainable head that an adapter goes around."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(3, 4), nn.Linear(4, 3)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.body(inputs)))


def test_less_on_adapters_takes_their_parameters_and_states_of_them_alone() -> None:
    torch.manual_seed(0)
    config = peft.LoraConfig(r=2, lora_alpha=8, target_modules=["body", "head"])
    model: Any = peft.get_peft_model(Adapted(), config).double().eval()  # pyright: ignore[reportArgumentType]
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter)
    task = Classification(model)
    data = [(torch.randn(3).double(), row % 3) for row in range(8)]
    optimizer = torch.optim.Adam(p for p in model.named_parameters() if p[1].requires_grad)
    task.losses(task.collate(data)).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    state = {name: value for name, value in copy_state(model).items() if "lora_" in name}
    adam = read_adam_state(optimizer.state_dict(), model)
    fitted = LESS(checkpoints=[ModelCheckpoint(state=state, adam=adam)]).fit(task, data)
    found = fitted.scores(task, data[:3], data)
    assert fitted.rows.members[0].rows.num_dims == sum(value.numel() for value in state.values())
    G = flat_gradients(task, data)
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    m = torch.cat([adam.of(name).first.flatten() for name in trained]).numpy()
    v = torch.cat([adam.of(name).second.flatten() for name in trained]).numpy()
    gamma = (0.9 * m + 0.1 * G) / np.sqrt(0.999 * v + 0.001 * G**2 + 1e-8)
    np.testing.assert_allclose(found.values, unit(G[:3]) @ unit(gamma).T, rtol=1e-8)


def test_less_refuses_checkpoints_without_moments_or_weights() -> None:
    task, _, _, checkpoints = warmed()
    with pytest.raises(ValueError, match=r"must have the moments of Adam\. Those at \[1\]"):
        LESS(checkpoints=[checkpoints[0], ModelCheckpoint(state=copy_state(task.model))])
    with pytest.raises(ValueError, match="learning rate above zero"):
        LESS(checkpoints=[replace(checkpoints[0], learning_rate=0.0)])


# TrackStar


def trackstar(
    Q: np.ndarray, G: np.ndarray, E: np.ndarray, *, mixing: float, damping: float
) -> np.ndarray:
    """The formula with a dense matrix root."""
    R = mixing * E.T @ E / len(E) + (1 - mixing) * G.T @ G / len(G)
    damped = R + damping * np.trace(R) / len(R) * np.eye(len(R))
    root = np.linalg.inv(np.real(sqrtm(damped)))
    return unit(Q @ root) @ unit(G @ root).T


@pytest.mark.parametrize("mixing", [0.0, 0.4, 1.0])
def test_trackstar_is_its_formula_written_out(mixing: float) -> None:
    task, train, queries = perceptron()
    G, Q = flat_gradients(task, train), flat_gradients(task, queries)
    layout = find_components(task.model)
    whole = coordinates(layout.components.values())
    asked = query_rows(task, queries, whole).astype(np.float64)
    metric = TrackStar(evaluation=asked, mixing=mixing, damping=0.2)
    fitted = RowInfluence(metric=metric).fit(task, train)
    found = fitted.scores(task, queries, train)
    wanted = trackstar(Q, G, Q, mixing=mixing, damping=0.2)
    np.testing.assert_allclose(found.values, wanted, rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(fitted.self_influence(task, train).values, 1)
    json.dumps(found.provenance)


def test_the_share_of_the_evaluation_balances_an_eigenvalue() -> None:
    rng = np.random.default_rng(0)
    G, E = rng.normal(size=(50, 6)), 3 * rng.normal(size=(20, 6))
    fitted = TrackStar(evaluation=E, num_common=2).fit(MemoryRows(np.arange(50), G))
    train, asked = (np.linalg.eigvalsh(x.T @ x / len(x))[::-1][2] for x in (G, E))
    assert fitted.mixing == pytest.approx(train / (train + asked))
    assert fitted.mixing * asked == pytest.approx((1 - fitted.mixing) * train)


def test_what_all_queries_share_counts_little_under_trackstar() -> None:
    rng = np.random.default_rng(0)
    template = np.zeros(8)
    template[0] = 5.0
    G, E = rng.normal(size=(200, 8)), template + rng.normal(size=(40, 8))
    store = MemoryRows(np.arange(200), G)
    plain, mixed = (
        TrackStar(evaluation=E, mixing=mixing).fit(store).whiten(template[None])[0, 0]
        for mixing in (0.0, 0.9)
    )
    assert mixed < plain / 3


def test_blocks_of_the_gram_matrix_are_taken_one_by_one() -> None:
    rng = np.random.default_rng(0)
    G = rng.normal(size=(40, 6))
    fitted = TrackStar(block_dims=4, damping=0.1).fit(MemoryRows(np.arange(40), G))
    R = G.T @ G / 40
    mean = np.trace(R) / 6
    for some, root in zip((slice(0, 4), slice(4, 6)), fitted.roots, strict=True):
        damped = R[some, some] + 0.1 * mean * np.eye(len(root))
        np.testing.assert_allclose(root @ damped @ root, np.eye(len(root)), atol=1e-12)


def test_trackstar_goes_around_gradients_that_adam_has_scaled() -> None:
    task, train, queries, checkpoints = warmed()
    adam = checkpoints[-1].adam
    assert adam is not None
    layout = find_components(task.model)
    scaled = AdamScaled(projector=coordinates(layout.components.values()), state=adam)
    metric = TrackStar(damping=0.3)
    found = RowInfluence(metric=metric, projector=scaled).fit(task, train)
    _, v, one = moments(task, checkpoints[-1])
    scale = 1 / (np.sqrt(v / (1 - one.betas[1] ** one.step)) + one.eps)
    G, Q = flat_gradients(task, train) * scale, flat_gradients(task, queries) * scale
    wanted = trackstar(Q, G, G, mixing=0.0, damping=0.3)
    np.testing.assert_allclose(found.scores(task, queries, train).values, wanted, rtol=1e-7)


def test_trackstar_refuses_what_does_not_fit() -> None:
    store = MemoryRows(np.arange(2), np.eye(2))
    with pytest.raises(ValueError, match=r"`evaluation` must have rows of 2 dim.*\(1, 3\)"):
        TrackStar(evaluation=np.ones((1, 3))).fit(store)
    with pytest.raises(ValueError, match=r"`evaluation` must be given with `mixing`"):
        TrackStar(mixing=0.5)
    with pytest.raises(ConvergenceError, match=r"do not span their 2 dimensions\. Raise"):
        TrackStar(damping=0.0).fit(MemoryRows(np.arange(1), np.ones((1, 2))))
    with pytest.raises(ValueError, match=r"`mixing` must be in \[0, 1\]"):
        TrackStar(mixing=2.0, evaluation=np.eye(2))


# Representer points


def test_the_logits_of_the_fitted_layer_are_the_sum_over_examples() -> None:
    task, train, queries = perceptron()
    fitted = RepresenterPoints(l2=0.05, tolerance=1e-9).fit(task, train)
    found = fitted.scores(task, queries, train).values
    model: Any = task.model
    inputs = torch.stack([row[0] for row in queries])
    features = model[1](model[0](inputs)).detach()
    features = torch.cat([features, torch.ones(3, 1)], 1)
    logits = features @ fitted.weights.mT
    wanted = logits[range(3), [row[1] for row in queries]].numpy()
    np.testing.assert_allclose(found.sum(1), wanted, rtol=1e-6)
    own = fitted.self_influence(task, train).values
    np.testing.assert_allclose(own, np.diag(fitted.scores(task, train, train).values), rtol=1e-9)


def test_the_weights_of_examples_are_the_published_ones() -> None:
    # -1 / (2 lambda n) times softmax less one-hot, with lambda |W|^2 as the penalty.
    torch.manual_seed(0)
    task = Classification(nn.Linear(3, 3).double())
    data = [(torch.randn(3).double(), row % 3) for row in range(10)]
    fitted = RepresenterPoints(l2=0.1, tolerance=1e-10).fit(task, data)
    weights = LogisticLeaveOneOut(l2=0.1).fit(task, data).weights
    torch.testing.assert_close(fitted.weights, weights, rtol=1e-6, atol=1e-8)
    inputs = torch.cat([torch.stack([row[0] for row in data]), torch.ones(10, 1)], 1)
    errors = (inputs @ weights.mT).softmax(-1) - torch.eye(3)[[row[1] for row in data]]
    torch.testing.assert_close(fitted.alphas, -errors / (2 * 0.05 * 10), rtol=1e-5, atol=1e-7)


def test_an_example_of_the_label_adds_to_it_and_one_of_another_takes_away() -> None:
    task, train, queries = perceptron()
    found = RepresenterPoints(l2=0.01).fit(task, train).scores(task, queries, train).values
    likeness = hidden(task, train, queries)
    agree = np.array([[a[1] == b[1] for b in train] for a in queries])
    alike = np.abs(likeness) > 0.5
    signs = np.where(agree, 1, -1) * np.sign(likeness)
    np.testing.assert_array_equal(np.sign(found)[alike], signs[alike])


def test_representer_points_leave_the_model_alone_and_refuse_others() -> None:
    task, train, queries = perceptron()
    before = copy_state(task.model)
    fitted = RepresenterPoints(l2=0.1).fit(task, train)
    assert all(torch.equal(task.model.state_dict()[key], value) for key, value in before.items())
    with pytest.raises(StoreMismatchError, match="must be asked for the data of the fit"):
        fitted.scores(task, queries, queries)
    with pytest.raises(ValueError, match=r"must be the logits.*'0' are not"):
        RepresenterPoints(l2=0.1, layer="0").fit(task, train)
    with pytest.raises(ConvergenceError, match=r"After \d+ steps.*Raise `max_steps`"):
        RepresenterPoints(l2=1e-6, max_steps=2).fit(task, train)
    with pytest.raises(TypeError, match=r"Classification task and a linear layer.*Got Regression"):
        regression = Regression(nn.Linear(2, 1))
        RepresenterPoints(l2=0.1).fit(regression, [(torch.ones(2), torch.ones(1))])
    with pytest.raises(ValueError, match=r"`damping` must be positive|`l2` must be positive"):
        RepresenterPoints(l2=0.0)
    assert not isinstance(GradientDot(), FittedInfluence)
