"""What training would have done: replays, leave-one-out, segments and hyper-gradients, exactly."""

from typing import Any

import numpy as np
import pytest
import torch
from oracles import flat_gradients
from torch import Tensor, nn
from torch.func import functional_call

from influence import (
    SOURCE,
    ConjugateGradients,
    FittedInfluence,
    Hessian,
    Inverse,
    LogisticLeaveOneOut,
    Metagradients,
    RidgeLeaveOneOut,
    Segment,
    hypergradients,
)
from influence.source import decay_factor, step_factor
from projections import (
    Classification,
    ConvergenceError,
    PassSettings,
    Regression,
    StoreMismatchError,
    Task,
)

EXACT = 1e-8  # float64 sums in another order


def ridge(count: int = 9, *, bias: bool = True) -> tuple[Task, list[Any], list[Any]]:
    torch.manual_seed(0)
    task = Regression(nn.Linear(3, 2, bias=bias).double().eval())
    rows = [(torch.randn(3).double(), torch.randn(2).double()) for _ in range(count + 3)]
    return task, rows[:count], rows[count:]


def logistic(count: int = 12) -> tuple[Task, list[Any], list[Any]]:
    torch.manual_seed(0)
    task = Classification(nn.Linear(3, 3).double().eval())
    rows = [(torch.randn(3).double(), row % 3) for row in range(count + 3)]
    return task, rows[:count], rows[count:]


def perceptron(count: int = 7) -> tuple[Task, list[Any], list[Any]]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2)).double().eval()
    rows = [(torch.randn(2).double(), row % 2) for row in range(count + 2)]
    return Classification(model), rows[:count], rows[count:]


def state_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def unchanged(model: nn.Module, before: dict[str, Tensor]) -> bool:
    return all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def retrained(task: Task, data: list[Any], how: Metagradients, weights: Tensor) -> Any:
    """The parameters after a full-batch run, with the graph of every step, by autograd alone."""
    inputs, labels = task.collate(data)
    names = [name for name, _ in task.model.named_parameters()]
    place = [p.detach().clone().requires_grad_() for p in task.model.parameters()]
    speed = [torch.zeros_like(p) for p in place]
    for _ in range(how.num_steps):
        outputs = functional_call(task.model, dict(zip(names, place, strict=True)), (inputs,))
        losses = nn.functional.cross_entropy(outputs, labels, reduction="none")
        slopes = torch.autograd.grad((weights * losses).mean(), place, create_graph=True)
        speed = [
            how.momentum * v + g + how.weight_decay * p
            for v, g, p in zip(speed, slopes, place, strict=True)
        ]
        place = [p - how.learning_rate * v for p, v in zip(place, speed, strict=True)]
    return dict(zip(names, place, strict=True))


def replayed(task: Task, train: list[Any], queries: list[Any], how: Metagradients) -> np.ndarray:
    """Derivatives of queries' losses after the run, by autograd alone."""
    weights = torch.ones(len(train), dtype=torch.float64, requires_grad=True)
    last = retrained(task, train, how, weights)
    inputs, labels = task.collate(queries)
    outputs = functional_call(task.model, last, (inputs,))
    losses = nn.functional.cross_entropy(outputs, labels, reduction="none")
    found = [torch.autograd.grad(loss, weights, retain_graph=True)[0] for loss in losses]
    return -len(train) * torch.stack(found).numpy()


@pytest.mark.parametrize("momentum", [0.0, 0.8])
def test_metagradients_are_the_derivative_of_the_whole_run(momentum: float) -> None:
    task, train, queries = perceptron()
    how = Metagradients(learning_rate=0.5, num_steps=5, momentum=momentum, weight_decay=0.1, seed=0)
    before = state_of(task.model)
    fitted = how.fit(task, train)
    assert isinstance(fitted, FittedInfluence)
    found = fitted.scores(task, queries, train, settings=PassSettings(batch_size=3)).values
    wanted = replayed(task, train, queries, how)
    np.testing.assert_allclose(found, wanted, rtol=EXACT, atol=EXACT)
    assert unchanged(task.model, before)


def test_metagradients_of_random_rows_are_what_a_changed_weight_changes() -> None:
    task, train, queries = perceptron()
    how = Metagradients(learning_rate=0.5, num_steps=6, batch_size=3, seed=1)
    fitted = how.fit(task, train)
    found = fitted.scores(task, queries, train).values
    step = 1e-5

    class Weighted(Classification):
        """The loss of one row counts a little more."""

        def losses(self, batch: Any) -> Tensor:
            chosen = (batch[0] == train[2][0]).all(1)
            return super().losses(batch) * (1 + step * chosen)

    ends = [how.fit(each, train).path[-1] for each in (task, Weighted(task.model))]
    losses = []
    for end in ends:
        with fitted.matrix.space.moved_to(end), torch.no_grad():
            losses.append(task.losses(task.collate(queries)))
    wanted = -len(train) * (losses[1] - losses[0]) / step
    np.testing.assert_allclose(found[:, 2], wanted.numpy(), rtol=1e-3)


def test_metagradients_of_a_run_that_converges_are_influence() -> None:
    task, train, queries = ridge(6)
    how = Metagradients(learning_rate=0.6, num_steps=250, weight_decay=0.3, seed=0)
    fitted = how.fit(task, train)
    replay = fitted.scores(task, queries, train).values
    with fitted.matrix.space.moved_to(fitted.path[-1]):
        solver = ConjugateGradients(tolerance=1e-10)
        method = Inverse(matrix=Hessian(), solver=solver, damping=0.3).fit(task, train)
        influence = method.scores(task, queries, train).values
    np.testing.assert_allclose(replay, influence, rtol=1e-6)


def test_metagradients_refuse_another_model_and_other_data() -> None:
    task, train, queries = perceptron()
    fitted = Metagradients(learning_rate=0.5, num_steps=1, seed=0).fit(task, train)
    with pytest.raises(StoreMismatchError, match="with the data of the run"):
        fitted.scores(task, queries, train[1:])
    with torch.no_grad():
        next(task.model.parameters()).add_(1)
    with pytest.raises(StoreMismatchError, match="with the model of the run"):
        fitted.scores(task, queries, train)
    with pytest.raises(ValueError, match=r"`learning_rate` must be positive\. Got 0"):
        Metagradients(learning_rate=0.0, num_steps=1, seed=0)


def refit_ridge(data: list[Any], without: int, l2: float, *, bias: bool) -> Tensor:
    """The weights without one example, by the normal equations of the others."""
    inputs = torch.stack([x for x, _ in data])
    targets = torch.stack([y for _, y in data])
    if bias:
        inputs = torch.cat([inputs, torch.ones(len(data), 1).double()], 1)
    keep = torch.arange(len(data)) != without
    gram = inputs[keep].mT @ inputs[keep] / len(data) + l2 * torch.eye(inputs.shape[1])
    return torch.linalg.solve(gram, inputs[keep].mT @ targets[keep] / len(data)).mT


def refit_logistic(inputs: Tensor, labels: Tensor, keep: Tensor, l2: float) -> Tensor:
    """The weights of some examples, by Newton's method with dense Hessians."""
    classes = int(labels.max()) + 1
    flat = torch.zeros(classes * inputs.shape[1], dtype=torch.float64)

    def objective(flat: Tensor) -> Tensor:
        logits = inputs @ flat.view(classes, -1).mT
        losses = nn.functional.cross_entropy(logits, labels, reduction="none")
        return (losses * keep).sum() / len(labels) + l2 / 2 * flat.square().sum()

    for _ in range(30):
        slope = torch.func.grad(objective)(flat)
        flat = flat - torch.linalg.solve(torch.func.hessian(objective)(flat), slope)
    return flat.view(classes, -1)


@pytest.mark.parametrize("bias", [True, False])
def test_ridge_without_each_example_is_the_refit_without_it(bias: bool) -> None:
    task, train, queries = ridge(bias=bias)
    before = state_of(task.model)
    fitted = RidgeLeaveOneOut(l2=0.2).fit(task, train)
    for row in range(len(train)):
        wanted = refit_ridge(train, row, 0.2, bias=bias)
        torch.testing.assert_close(fitted.without[row], wanted, rtol=EXACT, atol=EXACT)
    whole = refit_ridge(train, -1, 0.2, bias=bias)
    torch.testing.assert_close(fitted.weights, whole, rtol=EXACT, atol=EXACT)
    scores = fitted.scores(task, queries, train)
    assert scores.values.shape == (3, 9) and isinstance(fitted, FittedInfluence)
    assert unchanged(task.model, before)


def test_influence_on_ridge_is_leave_one_out_times_one_minus_leverage() -> None:
    task, train, _ = ridge()
    fitted = RidgeLeaveOneOut(l2=0.2).fit(task, train)
    inputs = fitted.problem.inputs
    gram = inputs.mT @ inputs / len(train) + 0.2 * torch.eye(4)
    leverages = (inputs @ torch.linalg.inv(gram) * inputs).sum(1) / len(train)
    space = fitted.problem.space
    with space.moved_to(fitted.vector):
        solver = ConjugateGradients(tolerance=1e-11)
        method = Inverse(matrix=Hessian(), solver=solver, damping=0.2).fit(task, train)
        gradients = torch.from_numpy(flat_gradients(task, train))
        change = method.solve(gradients).vectors / len(train)
    moved = fitted._flat(fitted.without) - fitted.vector
    torch.testing.assert_close(change, moved * (1 - leverages)[:, None], rtol=1e-7, atol=1e-9)


def test_leave_one_out_has_the_sign_and_the_unit_of_influence() -> None:
    for problem, method in (
        (ridge(60), RidgeLeaveOneOut(l2=0.5)),
        (logistic(60), LogisticLeaveOneOut(l2=0.5)),
    ):
        task, train, queries = problem
        fitted = method.fit(task, train)
        exact = fitted.scores(task, queries, train).values
        with fitted.problem.space.moved_to(fitted.vector):
            solver = ConjugateGradients(tolerance=1e-8)
            inverse = Inverse(matrix=Hessian(), solver=solver, damping=0.5).fit(task, train)
            near = inverse.scores(task, queries, train).values
        assert np.corrcoef(exact.ravel(), near.ravel())[0, 1] > 0.99
        assert np.sum(exact * near) / np.sum(near**2) == pytest.approx(1, abs=0.1)


def test_logistic_regression_without_each_example_is_at_the_optimum_of_the_others() -> None:
    task, train, _ = logistic()
    before = state_of(task.model)
    fitted = LogisticLeaveOneOut(l2=0.05).fit(task, train)
    inputs, labels = fitted.problem.inputs, fitted.problem.targets
    cases = [(-1, fitted.weights), *enumerate(fitted.without)]
    for row, found in cases:
        weights = found.clone().requires_grad_()
        losses = nn.functional.cross_entropy(inputs @ weights.mT, labels, reduction="none")
        keep = (torch.arange(len(train)) != row).double()
        objective = (losses * keep).sum() / len(train) + 0.05 / 2 * weights.square().sum()
        (slope,) = torch.autograd.grad(objective, weights)
        assert float(slope.norm()) < 1e-9
    assert unchanged(task.model, before)


def test_leave_one_out_refuses_what_it_is_not_exact_for() -> None:
    task, train, queries = perceptron()
    with pytest.raises(TypeError, match=r"needs a Classification task.*Got Classification of Seq"):
        LogisticLeaveOneOut(l2=0.1).fit(task, train)
    task, train, queries = ridge()
    with pytest.raises(TypeError, match=r"needs a Classification task.*Got Regression of Linear"):
        LogisticLeaveOneOut(l2=0.1).fit(task, train)
    fitted = RidgeLeaveOneOut(l2=0.1).fit(task, train)
    with pytest.raises(StoreMismatchError, match="the data of the fit"):
        fitted.scores(task, queries, train[1:])
    other, *_ = ridge()
    with pytest.raises(StoreMismatchError, match="the model of the fit"):
        fitted.scores(other, queries, train)
    with pytest.raises(ValueError, match=r"`l2` must be positive where.*Got 0\.0, and 2 ex"):
        RidgeLeaveOneOut(l2=0.0).fit(task, train[:2])
    with pytest.raises(ValueError, match=r"`l2` must be at least 0\. Got -1"):
        RidgeLeaveOneOut(l2=-1.0)
    with pytest.raises(ConvergenceError, match=r"After 1 steps one is at .* `max_steps`"):
        task, train, _ = logistic()
        LogisticLeaveOneOut(l2=0.01, max_steps=1).fit(task, train)


def at(model: nn.Module, scale: float) -> dict[str, Tensor]:
    return {name: value * scale for name, value in state_of(model).items()}


def source_written_out(
    task: Task, fitted: Any, segments: Any, train: list[Any], queries: list[Any]
) -> np.ndarray:
    """The formula of the module, with every matrix of every layer."""
    model, before = task.model, state_of(task.model)
    wanted = np.zeros((len(queries), len(train)))
    back = {name: torch.from_numpy(g) for name, g in maps(task, queries).items()}
    for segment, layers in reversed(list(zip(segments, fitted.curvatures, strict=True))):
        for checkpoint in segment.checkpoints:
            model.load_state_dict(checkpoint)
            train_maps = maps(task, train)
            for name, layer in layers.items():
                H, eye = written_out(layer)
                decay = torch.linalg.matrix_exp(-segment.time * H)
                step = torch.linalg.solve(H + 1e-13 * eye, eye - decay)
                part = back[name] @ step @ torch.from_numpy(train_maps[name]).mT
                wanted += part.numpy() / len(segment.checkpoints)
        for name, layer in layers.items():
            H, _ = written_out(layer)
            back[name] = back[name] @ torch.linalg.matrix_exp(-segment.time * H)
    model.load_state_dict(before)
    return wanted


def test_source_is_its_formula_with_every_matrix_written_out() -> None:
    task, train, queries = perceptron()
    model = task.model
    segments = (
        Segment(checkpoints=[at(model, 0.5), at(model, 0.7)], learning_rate=0.3, num_steps=10),
        Segment(checkpoints=[at(model, 1.0)], learning_rate=0.1, num_steps=20, momentum=0.5),
    )
    before = state_of(model)
    fitted = SOURCE(segments=segments, seed=0).fit(task, train)
    found = fitted.scores(task, queries, train)
    assert unchanged(model, before) and isinstance(fitted, FittedInfluence)
    wanted = source_written_out(task, fitted, segments, train, queries)
    np.testing.assert_allclose(found.values, wanted, rtol=1e-5, atol=1e-6 * np.abs(wanted).max())


def maps(task: Task, data: list[Any]) -> dict[str, np.ndarray]:
    """Gradients of the linear maps, flattened with the bias as last column."""
    flat = torch.from_numpy(flat_gradients(task, data))
    found, start = {}, 0
    for name, module in task.model.named_modules():
        if isinstance(module, nn.Linear):
            o, i = module.weight.shape
            weight = flat[:, start : start + o * i].view(-1, o, i)
            bias = flat[:, start + o * i : start + o * i + o, None]
            found[name] = torch.cat([weight, bias], 2).flatten(1).numpy()
            start += o * i + o
    return found


def written_out(layer: Any) -> tuple[Tensor, Tensor]:
    left, right = (torch.block_diag(*side.blocks) for side in (layer.left, layer.right))
    basis = torch.kron(left.contiguous(), right.contiguous())
    H = basis @ torch.diag(layer.eigenvalues.flatten()) @ basis.mT
    return H, torch.eye(len(H), dtype=H.dtype)


def test_a_short_segment_is_the_gradient_product_times_its_length() -> None:
    task, train, queries = perceptron()
    segment = Segment(checkpoints=[state_of(task.model)], learning_rate=1e-9, num_steps=10)
    found = SOURCE(segments=[segment], seed=0).fit(task, train).scores(task, queries, train)
    wanted = flat_gradients(task, queries) @ flat_gradients(task, train).T * 1e-8
    np.testing.assert_allclose(found.values, wanted, rtol=1e-6)


def test_the_factors_of_a_segment_have_their_limits() -> None:
    eigenvalues = torch.tensor([[0.0, 1e-30, 1e-3, 10.0]]).double()
    step = step_factor(eigenvalues, 100.0)[0]
    assert step[:2].tolist() == [100.0, 100.0]
    assert float(step[3]) == pytest.approx(0.1)
    assert float(step[2]) == pytest.approx((1 - np.exp(-0.1)) / 1e-3)
    assert decay_factor(eigenvalues, 100.0)[0, [0, 3]].tolist() == pytest.approx([1, 0])


def test_source_refuses_another_model_and_impossible_segments() -> None:
    task, train, queries = perceptron()
    segment = Segment(checkpoints=[state_of(task.model)], learning_rate=0.1, num_steps=10)
    fitted = SOURCE(segments=[segment], seed=0).fit(task, train)
    with torch.no_grad():
        next(task.model.parameters()).add_(1)
    with pytest.raises(StoreMismatchError, match="at the end of training that was fitted"):
        fitted.scores(task, queries, train)
    with pytest.raises(ValueError, match="`checkpoints` must hold at least one"):
        Segment(checkpoints=[], learning_rate=0.1, num_steps=10)
    with pytest.raises(ValueError, match=r"`learning_rate` must be positive\. Got -1"):
        Segment(checkpoints=[{}], learning_rate=-1.0, num_steps=10)
    with pytest.raises(ValueError, match="`segments` must hold at least one"):
        SOURCE(segments=[], seed=0)


def test_hypergradients_are_what_retraining_with_other_hyperparameters_changes() -> None:
    # Weights of examples and a shift of targets, in a ridge regression that is refitted.
    task, train, queries = ridge()
    weights = torch.linspace(0.5, 1.5, len(train)).double().requires_grad_()
    shift = torch.tensor([0.3, -0.2]).double().requires_grad_()
    X, Y = (torch.stack(side) for side in zip(*train, strict=True))
    X = torch.cat([X, torch.ones(len(X), 1).double()], 1)

    def optimum() -> Tensor:
        gram = X.mT @ (weights[:, None] * X) / len(X) + 0.4 * torch.eye(4)
        return torch.linalg.solve(gram, X.mT @ (weights[:, None] * (Y + shift)) / len(X)).mT

    A, B = task.collate(queries)
    W = optimum()
    loss = (A @ W[:, :3].mT + W[:, 3] - B).square().sum(1).mean() / 2
    wanted = torch.autograd.grad(loss, [weights, shift])
    with torch.no_grad():
        task.model.weight.copy_(W[:, :3])  # pyright: ignore
        task.model.bias.copy_(W[:, 3])  # pyright: ignore

    class Weighted(Regression):
        def losses(self, batch: Any) -> Tensor:
            rows = (batch[0][:, None] == X[None, :, :3]).all(2).double()
            errors = self.model(batch[0]) - batch[1] - shift
            return rows @ weights * errors.square().sum(1) / 2

    weighted = Weighted(task.model)
    solver = ConjugateGradients(tolerance=1e-11)
    inverse = Inverse(matrix=Hessian(), solver=solver, damping=0.4).fit(weighted, train)
    found = hypergradients(inverse, task, queries, losses=weighted.losses, hyper=[weights, shift])
    for value, truth in zip(found, wanted, strict=True):
        torch.testing.assert_close(value, truth, rtol=1e-7, atol=1e-9)
    unused = torch.ones(1).double().requires_grad_()
    with pytest.raises(ValueError, match=r"They do not on `hyper\[1\]`"):
        hypergradients(inverse, task, queries, losses=weighted.losses, hyper=[shift, unused])
