"""Every solver against the dense inverse in float64, by one contract with a row a method."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cases
import numpy as np
import pytest
import torch
from oracles import DenseMatrix, flat_gradients
from torch import Tensor, nn
from torch.func import functional_call

from influence import (
    ASTRA,
    EKFAC,
    AbsoluteDamping,
    Arnoldi,
    ConjugateGradients,
    CurvaturePreconditioner,
    Diagonal,
    FittedInfluence,
    GaussNewton,
    Hessian,
    Inverse,
    LiSSA,
    Matrix,
    Neumann,
    NoPreconditioner,
    Nystroem,
    Solver,
    SymmetricMatrix,
)
from influence.arnoldi import krylov
from influence.power_iteration import largest_eigenvalue
from influence.richardson import Steps, drawn_rows
from projections import (
    CausalLM,
    Classification,
    ConvergenceError,
    HeadSplit,
    NonDeterministicError,
    NonFiniteError,
    PassSettings,
    Regression,
    StoreMismatchError,
    Task,
    as_rows,
)

EXACT = 1e-9  # float64 sums in another order
SOLVED = 1e-7  # what solvers are asked for, with room for the condition of the matrix
DAMPING = 0.05


def perceptron(count: int = 14, queries: int = 3) -> tuple[Task, list[Any], list[Any]]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double().eval()
    rows = [(torch.randn(3).double(), row % 3) for row in range(count + queries)]
    return Classification(model), rows[:count], rows[count:]


def named(model: nn.Module, flat: Tensor) -> dict[str, Tensor]:
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    pieces = flat.split([p.numel() for p in parameters.values()])
    return {
        name: piece.view_as(p) for (name, p), piece in zip(parameters.items(), pieces, strict=True)
    }


def dense_hessian(task: Task, data: list[Any]) -> Tensor:
    """The Hessian of the mean loss of one row after the other, by `torch.func`."""
    inputs, labels = task.collate(data)
    model = task.model

    def mean_loss(flat: Tensor) -> Tensor:
        outputs = functional_call(model, named(model, flat), (inputs,))
        return nn.functional.cross_entropy(outputs, labels)

    flat = torch.cat([p.detach().flatten() for p in model.parameters() if p.requires_grad])
    return torch.func.hessian(mean_loss)(flat)


def dense_gauss_newton(task: Task, data: list[Any]) -> Tensor:
    """``J^T (diag(p) - p p^T) J`` of a classifier, written out."""
    inputs, _ = task.collate(data)
    model = task.model
    flat = torch.cat([p.detach().flatten() for p in model.parameters() if p.requires_grad])
    outputs = lambda flat: functional_call(model, named(model, flat), (inputs,))  # noqa: E731
    J = torch.func.jacrev(outputs)(flat)
    p = outputs(flat).softmax(-1)
    middle = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    return torch.einsum("ncd,nce,nef->df", J, middle, J) / len(data)


def state_of(model: nn.Module) -> Any:
    return (
        {name: value.clone() for name, value in model.state_dict().items()},
        [p.requires_grad for p in model.parameters()],
        [p.grad is None for p in model.parameters()],
        [(m.training, len(m._forward_hooks)) for m in model.modules()],
    )


def assert_same_state(found: Any, wanted: Any) -> None:
    assert found[1:] == wanted[1:]
    assert all(torch.equal(found[0][name], value) for name, value in wanted[0].items())


def trainable(task: Task) -> int:
    return sum(p.numel() for p in task.model.parameters() if p.requires_grad)


@dataclass(frozen=True)
class Row:
    """A method under the contract: how it is made, and how near it comes to the inverse."""

    solver: Callable[[Task, list[Any]], Solver]
    tolerance: float = SOLVED
    damping: float = DAMPING


def curved(kind: Any) -> Callable[[Task, list[Any]], Solver]:
    return lambda task, train: ConjugateGradients(
        tolerance=1e-10, preconditioner=CurvaturePreconditioner(kind.fit(task, train))
    )


SOLVERS = {
    "conjugate gradients": Row(lambda t, d: ConjugateGradients(tolerance=1e-10)),
    "conjugate gradients, jacobi": Row(curved(Diagonal(seed=0))),
    "conjugate gradients, ek-fac": Row(curved(EKFAC(seed=0))),
    "conjugate gradients, nystroem": Row(
        lambda t, d: ConjugateGradients(tolerance=1e-10, preconditioner=Nystroem(rank=8, seed=0))
    ),
    "neumann": Row(lambda t, d: Neumann(tolerance=1e-9), damping=0.5),
    "lissa, all rows": Row(
        lambda t, d: LiSSA(num_steps=150, batch_size=99, tolerance=1e-6, seed=0), 1e-5, 0.5
    ),
    "astra": Row(
        lambda t, d: ASTRA(
            preconditioner=CurvaturePreconditioner(EKFAC(seed=0).fit(t, d)), tolerance=1e-9, seed=0
        ),
        damping=0.5,
    ),
    "arnoldi, the whole space": Row(
        lambda t, d: Arnoldi(num_steps=trainable(t), num_kept=trainable(t), tolerance=1e-7, seed=0)
    ),
}
each_solver = pytest.mark.parametrize("row", SOLVERS.values(), ids=list(SOLVERS))


def fitted(row: Row, task: Task, train: list[Any]) -> Any:
    solver = row.solver(task, train)
    return Inverse(matrix=GaussNewton(seed=0), solver=solver, damping=row.damping).fit(task, train)


@each_solver
def test_scores_equal_the_dense_inverse(row: Row) -> None:
    task, train, queries = perceptron()
    matrix = dense_gauss_newton(task, train)
    damped = (matrix + row.damping * torch.eye(len(matrix))).numpy()
    wanted = flat_gradients(task, queries) @ np.linalg.solve(damped, flat_gradients(task, train).T)
    method = fitted(row, task, train)
    found = method.scores(task, queries, train)
    scale = np.abs(wanted).max()
    np.testing.assert_allclose(found.values, wanted, atol=row.tolerance * scale, rtol=0)
    solves = found.provenance["solves"]
    assert len(solves) == 3 and all(solve["num_steps"] >= 0 for solve in solves)
    assert isinstance(method, FittedInfluence)


@each_solver
def test_solutions_are_linear_in_the_right_hand_side(row: Row) -> None:
    task, train, _ = perceptron()
    solver = fitted(row, task, train).solver
    torch.manual_seed(1)
    a, b = torch.randn(2, 1, 31).double()
    both = solver.solve(torch.cat([a, b, 2 * a - 3 * b])).vectors
    torch.testing.assert_close(
        both[2], 2 * both[0] - 3 * both[1], atol=row.tolerance * 100, rtol=row.tolerance
    )


@each_solver
def test_scores_among_training_rows_are_symmetric_and_self_influence_is_their_diagonal(
    row: Row,
) -> None:
    task, train, _ = perceptron(6)
    method = fitted(row, task, train)
    pairs = method.scores(task, train, train).values
    atol = row.tolerance * np.abs(pairs).max()
    np.testing.assert_allclose(pairs, pairs.T, atol=atol, rtol=0)
    own = method.self_influence(task, train)
    np.testing.assert_allclose(own.values, np.diag(pairs), atol=atol, rtol=0)
    assert (own.values > 0).all() and len(own.provenance["solves"]) == 6


@each_solver
def test_nothing_about_the_model_is_changed(row: Row) -> None:
    task, train, queries = perceptron(6)
    next(iter(task.model.parameters())).requires_grad_(False)
    before = state_of(task.model)
    method = fitted(row, task, train)
    method.scores(task, queries, train)
    method.self_influence(task, queries)
    assert_same_state(state_of(task.model), before)


@each_solver
def test_fitted_solvers_refuse_a_model_that_has_changed(row: Row) -> None:
    task, train, queries = perceptron(6)
    method = fitted(row, task, train)
    with torch.no_grad():
        next(task.model.parameters()).add_(1)
    with pytest.raises(StoreMismatchError, match=r"fitted to.*Fit again"):
        method.scores(task, queries, train)


def test_hessian_products_equal_the_dense_hessian() -> None:
    task, train, _ = perceptron()
    wanted = dense_hessian(task, train)
    matrix = Hessian().of(task, train, settings=PassSettings(batch_size=5))
    found = matrix.apply(torch.eye(31).double())
    torch.testing.assert_close(found, wanted, rtol=EXACT, atol=EXACT)


def test_gauss_newton_products_equal_the_dense_matrix() -> None:
    task, train, _ = perceptron()
    wanted = dense_gauss_newton(task, train)
    settings = PassSettings(batch_size=4, shard_size=5)
    found = GaussNewton(seed=0).of(task, train, settings=settings).apply(torch.eye(31).double())
    torch.testing.assert_close(found, wanted, rtol=EXACT, atol=EXACT)


def test_the_empirical_matrix_is_the_mean_of_outer_products() -> None:
    task, train, _ = perceptron()
    G = torch.from_numpy(flat_gradients(task, train))
    found = GaussNewton(fisher="empirical", seed=0).of(task, train).apply(torch.eye(31).double())
    torch.testing.assert_close(found, G.mT @ G / len(train), rtol=EXACT, atol=EXACT)


def test_the_mean_over_some_rows_is_that_of_these_rows_alone() -> None:
    task, train, _ = perceptron()
    labels = GaussNewton(fisher="sampled", seed=3)
    rows = [{"id": f"r{number}", "x": x, "label": y} for number, (x, y) in enumerate(train)]

    class Mapped(Classification):
        def collate(self, examples: Any) -> Any:
            pairs = [(example["x"], example["label"]) for example in examples]
            return super().collate(pairs)

    mapped = Mapped(task.model)
    some = [1, 4, 7]
    part = labels.of(mapped, rows).of_rows(some).apply(torch.eye(31).double())
    alone = labels.of(mapped, [rows[row] for row in some]).apply(torch.eye(31).double())
    torch.testing.assert_close(part, alone, rtol=EXACT, atol=EXACT)


PRODUCT_CASES = ["mlp-layernorm-subclass", "convnet-groups-reflect", "gpt2-tied", "used-twice"]


@pytest.mark.parametrize("name", PRODUCT_CASES)
@pytest.mark.parametrize("matrix", [Hessian(), GaussNewton(fisher="sampled", seed=0)])
def test_products_are_symmetric_and_do_not_depend_on_batches(name: str, matrix: Matrix) -> None:
    task, data = cases.build(name, 5)
    whole = matrix.of(task, data, settings=PassSettings(batch_size=5))
    torch.manual_seed(0)
    vectors = torch.randn(3, whole.num_dims).double()
    images = whole.apply(vectors)
    pairs = vectors @ images.mT
    torch.testing.assert_close(pairs, pairs.mT, rtol=EXACT, atol=EXACT * float(pairs.abs().max()))
    pieces = matrix.of(task, data, settings=PassSettings(batch_size=2, shard_size=3))
    one = torch.cat([pieces.apply(vector[None]) for vector in vectors])
    torch.testing.assert_close(one, images, rtol=EXACT, atol=EXACT * float(images.abs().max()))


@pytest.mark.parametrize("name", PRODUCT_CASES)
def test_the_empirical_matrix_is_that_of_captured_gradients(name: str) -> None:
    # Capture and double backward are two ways to the same numbers, in one layout.
    task, data = cases.build(name, 4)
    fit = Inverse(
        matrix=GaussNewton(fisher="empirical", seed=0), solver=ConjugateGradients(), damping=1.0
    ).fit(task, data)
    G = next(fit._gradients(task, as_rows(data), None, 1 << 30))
    vectors = torch.randn(2, fit.matrix.num_dims).double()
    wanted = (vectors @ G.mT) @ G / len(data)
    torch.testing.assert_close(
        fit.matrix.apply(vectors), wanted, rtol=EXACT, atol=EXACT * float(wanted.abs().max())
    )


@pytest.mark.parametrize("name", PRODUCT_CASES)
def test_scores_equal_products_of_captured_gradients_with_solutions(name: str) -> None:
    task, data = cases.build(name, 4)
    solver = ConjugateGradients(tolerance=1e-10, max_steps=60)
    matrix = GaussNewton(fisher="empirical", seed=0)
    method = Inverse(matrix=matrix, solver=solver, damping=1.0).fit(task, data)
    G = next(method._gradients(task, as_rows(data), None, 1 << 30))
    kernel = G @ G.mT
    # The dual form of the damped inverse of the mean of outer products.
    wanted = kernel @ torch.linalg.inv(kernel / len(data) + torch.eye(len(data)))
    found = method.scores(task, data, data, settings=PassSettings(batch_size=3)).values
    np.testing.assert_allclose(found, wanted.numpy(), rtol=1e-6, atol=1e-8)


def test_queries_that_do_not_fit_the_memory_give_the_same_scores() -> None:
    task, train, queries = perceptron()
    method = fitted(SOLVERS["conjugate gradients"], task, train)
    whole = method.scores(task, queries, train)
    parts = method.scores(task, queries, train, memory=1)
    np.testing.assert_allclose(whole.values, parts.values, rtol=SOLVED)
    assert len(parts.provenance["solves"]) == 3


def test_dropout_and_mean_losses_are_refused_before_any_product() -> None:
    task, train, _ = perceptron()
    task.model.append(nn.Dropout(0.5))  # pyright: ignore[reportCallIssue]
    task.model.train()
    with pytest.raises(NonDeterministicError, match="dropout must be off"):
        GaussNewton(seed=0).of(task, train)

    class Mean(Classification):
        def losses(self, batch: Any) -> Tensor:
            losses = super().losses(batch)
            return losses.mean().expand(len(losses))

        def statistics(self, batch: Any) -> dict[str, Tensor]:
            return {"loss": self.losses(batch)}

    task, train, _ = perceptron()
    with pytest.raises(NonDeterministicError, match="rest of its batch"):
        Hessian().of(Mean(task.model), train)


class Powers(nn.Module):
    """A power of something that is zero, whose second derivative is infinite."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3, bias=False)
        nn.init.zeros_(self.layer.weight)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.layer(inputs).abs().pow(1.5)


def test_products_that_are_not_finite_are_refused() -> None:
    _, train, _ = perceptron(4)
    matrix = Hessian().of(Classification(Powers().double().eval()), train)
    with pytest.raises(NonFiniteError, match=r"must be finite, and is not.*Use GaussNewton"):
        matrix.apply(torch.ones(1, 9).double())


def test_solvers_ask_for_the_same_model_and_not_for_an_equal_one() -> None:
    task, train, queries = perceptron(4)
    other, *_ = perceptron(4)
    method = fitted(SOLVERS["conjugate gradients"], task, train)
    with pytest.raises(StoreMismatchError, match="the same object"):
        method.scores(other, queries, train)


def test_layers_taken_apart_by_head_are_refused() -> None:
    task, train, _ = perceptron(4)
    settings = PassSettings(heads=(HeadSplit(layers="0", slots=("a", "b")),))
    with pytest.raises(ValueError, match=r"must not take layers apart by head.*Got 1 layers"):
        GaussNewton(seed=0).of(task, train, settings=settings)


def test_the_damping_must_be_positive() -> None:
    for damping in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match=r"`damping` must be positive\. Got"):
            Inverse(matrix=Hessian(), solver=ConjugateGradients(), damping=damping)


def spectrum(eigenvalues: Tensor) -> DenseMatrix:
    torch.manual_seed(0)
    basis = torch.linalg.qr(torch.randn(len(eigenvalues), len(eigenvalues)).double()).Q
    return DenseMatrix(basis @ torch.diag(eigenvalues.double()) @ basis.mT)


def test_conjugate_gradients_take_one_step_for_each_different_eigenvalue() -> None:
    matrix = spectrum(torch.tensor([1.0] * 5 + [3.0] * 5 + [10.0] * 5))
    assert isinstance(matrix, SymmetricMatrix)
    prepared = ConjugateGradients(tolerance=1e-12).prepare(matrix, 0.5)
    solution = prepared.solve(torch.randn(4, 15).double())
    assert max(solution.num_steps) <= 4


def test_conjugate_gradients_give_nothing_for_nothing() -> None:
    prepared = ConjugateGradients().prepare(spectrum(torch.arange(5)), 0.5)
    vectors = torch.stack([torch.zeros(5), torch.ones(5)]).double()
    solution = prepared.solve(vectors)
    assert solution.num_steps[0] == 0 and not solution.vectors[0].any()
    assert solution.residuals[0] == 0 and solution.residuals[1] <= 1e-4
    assert not prepared.solve(vectors[:0]).vectors.numel()


def test_conjugate_gradients_that_do_not_converge_name_the_residual_and_the_setting() -> None:
    prepared = ConjugateGradients(tolerance=1e-8, max_steps=3).prepare(
        spectrum(torch.logspace(-4, 4, 20)), 1e-4
    )
    message = r"at most 1e-08 .* After 3 steps 2 of 2 .* largest at \d\.\d+\. Raise `max_steps`"
    with pytest.raises(ConvergenceError, match=message):
        prepared.solve(torch.ones(2, 20).double())


def test_conjugate_gradients_refuse_a_direction_of_negative_curvature() -> None:
    prepared = ConjugateGradients().prepare(spectrum(torch.tensor([-1.0, 1.0, 2.0])), 0.5)
    with pytest.raises(ConvergenceError, match=r"must be positive.*damping of 0\.5. Raise"):
        prepared.solve(torch.ones(1, 3).double())


def test_the_reported_residual_is_the_true_one_in_single_precision() -> None:
    values = spectrum(torch.logspace(-2, 2, 60)).values.float()
    prepared = ConjugateGradients(tolerance=1e-4, max_steps=500).prepare(DenseMatrix(values), 0.1)
    vectors = torch.randn(3, 60)
    solution = prepared.solve(vectors)
    left = vectors.double() - solution.vectors.double() @ (
        values.double() + 0.1 * torch.eye(60).double()
    )
    assert ((left.norm(dim=1) / vectors.norm(dim=1)) < 1.1e-4).all()


def test_a_sketch_of_full_rank_is_the_inverse_up_to_its_smallest_eigenvalue() -> None:
    matrix = spectrum(torch.linspace(0.5, 9, 12))
    inverse = Nystroem(rank=12, seed=0).prepare(matrix, 0.1)
    found = inverse(torch.eye(12).double())
    wanted = torch.linalg.inv(matrix.values + 0.1 * torch.eye(12)) * (0.1 + 0.5)
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-8)


def test_a_sketch_of_low_rank_is_the_formula_and_takes_fewer_steps() -> None:
    eigenvalues = torch.cat([torch.logspace(4, 2, 10), torch.full((90,), 1e-3)])
    matrix = spectrum(eigenvalues)
    vectors = torch.randn(2, 100).double()
    plain = ConjugateGradients(tolerance=1e-9, max_steps=400)
    sketched = ConjugateGradients(tolerance=1e-9, preconditioner=Nystroem(rank=20, seed=0))
    steps = [max(s.prepare(matrix, 1e-2).solve(vectors).num_steps) for s in (sketched, plain)]
    assert steps[0] < steps[1] / 2


def test_a_sketch_refuses_negative_eigenvalues_and_impossible_ranks() -> None:
    with pytest.raises(ConvergenceError, match=r"no negative eigenvalues.*GaussNewton"):
        Nystroem(rank=3, seed=0).prepare(spectrum(torch.tensor([-5.0, -1.0, 2.0, 3.0])), 0.1)
    with pytest.raises(ValueError, match=r"`rank` must be in \[1, 4\].*Got 5"):
        Nystroem(rank=5, seed=0).prepare(spectrum(torch.ones(4)), 0.1)


def test_a_curvature_preconditions_only_the_model_and_layers_it_was_fitted_to() -> None:
    task, train, _ = perceptron()
    other, *_ = perceptron()
    with torch.no_grad():
        next(other.model.parameters()).add_(1)
    jacobi = CurvaturePreconditioner(Diagonal(seed=0).fit(task, train))
    matrix = GaussNewton(seed=0)
    with pytest.raises(StoreMismatchError, match="must be used with the model it was fitted to"):
        jacobi.prepare(matrix.of(other, train), 0.1)
    first = matrix.of(task, train, settings=PassSettings(layers=("0",)))
    with pytest.raises(StoreMismatchError, match=r"also has \['2'\]"):
        jacobi.prepare(first, 0.1)
    with pytest.raises(TypeError, match=r"Got DenseMatrix\. Use Nystroem"):
        jacobi.prepare(spectrum(torch.ones(3)), 0.1)


@pytest.mark.parametrize("name", ["convnet-groups-reflect", "gpt2-tied", "mlp-layernorm-subclass"])
def test_a_curvature_preconditions_as_it_attributes(name: str) -> None:
    task, data = cases.build(name, 4)
    curvature = EKFAC(seed=0, fisher="empirical").fit(task, data)
    matrix = GaussNewton(seed=0, fisher="empirical").of(task, data)
    precondition = CurvaturePreconditioner(curvature).prepare(matrix, 0.3)
    vectors = torch.randn(2, matrix.num_dims).double()
    pairs = vectors @ precondition(vectors).mT
    torch.testing.assert_close(pairs, pairs.mT)
    images = precondition(vectors)
    inside = torch.zeros(matrix.num_dims, dtype=torch.bool)
    for component, _maps in matrix.space.linear_maps(vectors):
        if component.name in curvature.layers or f"{component.name}[0]" in curvature.layers:
            for part in component.parameters:
                start = matrix.space.coordinates.starts[part.name]
                inside[start : start + part.size] = True
    total = sum(float(layer.eigenvalues.sum()) for layer in curvature.layers.values())
    mean = total / sum(layer.eigenvalues.numel() for layer in curvature.layers.values())
    torch.testing.assert_close(images[:, ~inside], vectors[:, ~inside] / (mean + 0.3))
    assert bool(inside.any()) and bool((~inside).any())


def test_solvers_and_ek_fac_agree_where_the_factors_are_exact() -> None:
    # A linear network with squared loss: EK-FAC is the block-diagonal Gauss-Newton matrix.
    torch.manual_seed(0)
    task = Regression(nn.Linear(3, 2).double().eval())
    data = [(torch.randn(3).double(), torch.randn(2).double()) for _ in range(9)]
    curvature = EKFAC(seed=0, fisher="exact", damping=AbsoluteDamping(0.2)).fit(task, data)
    solver = ConjugateGradients(tolerance=1e-11)
    method = Inverse(matrix=GaussNewton(seed=0, fisher="exact"), solver=solver, damping=0.2)
    found = method.fit(task, data).scores(task, data[:2], data).values
    np.testing.assert_allclose(found, curvature.scores(task, data[:2], data).values, rtol=1e-8)


def test_language_models_are_solved_for_with_the_labels_that_seeds_draw() -> None:
    task, data = cases.build("gpt2-tied", 4)
    assert isinstance(task, CausalLM)
    method = Inverse(
        matrix=GaussNewton(seed=0), solver=ConjugateGradients(max_steps=60), damping=1.0
    )
    first, second = (
        method.fit(task, data, settings=PassSettings(batch_size=size)).scores(task, data, data)
        for size in (1, 4)
    )
    np.testing.assert_allclose(first.values, second.values, rtol=1e-2)


def test_the_power_iteration_finds_the_largest_eigenvalue_from_below() -> None:
    matrix = spectrum(torch.linspace(0.1, 7, 30))
    found = largest_eigenvalue(matrix, 0.5, lambda vectors: vectors, num_steps=200)
    assert 0.9 * 7.5 < found <= 7.5 * (1 + EXACT)
    half = torch.linalg.inv(matrix.values + torch.eye(30))
    found = largest_eigenvalue(matrix, 1.0, lambda vectors: vectors @ half, num_steps=5)
    assert found == pytest.approx(1)


def test_the_power_iteration_refuses_a_direction_of_negative_curvature() -> None:
    with pytest.raises(ConvergenceError, match=r"must be positive.*Raise `damping`"):
        largest_eigenvalue(spectrum(torch.tensor([-9.0, 1.0])), 0.5, lambda vectors: vectors)


def test_a_neumann_series_is_the_partial_sum_of_its_formula() -> None:
    matrix = spectrum(torch.linspace(0.1, 2, 6))
    step, damped = 0.3, matrix.values + 0.5 * torch.eye(6)
    steps = Steps(lambda step: matrix, 0.5, step, lambda v: v, num_steps=4, tolerance=0.0)
    vector = torch.randn(1, 6).double()
    found, _ = steps.run(vector)
    wanted = sum(
        vector @ torch.linalg.matrix_power(torch.eye(6) - step * damped, t) for t in range(4)
    )
    torch.testing.assert_close(found, step * wanted)


def test_series_that_do_not_converge_name_the_residual_and_the_setting() -> None:
    matrix = spectrum(torch.logspace(-3, 2, 12))
    vectors = torch.ones(2, 12).double()
    message = r"at most 0\.01 .* After 5 steps 2 of 2 .* largest at 0\.\d+\. Raise `max_steps`"
    for solver in (
        Neumann(max_steps=5),
        ASTRA(preconditioner=NoPreconditioner(), max_steps=5, seed=0),
    ):
        with pytest.raises(ConvergenceError, match=message):
            solver.prepare(matrix, 0.01).solve(vectors)
    with pytest.raises(ConvergenceError, match=r"`num_steps` and `num_kept`"):
        Arnoldi(num_steps=3, num_kept=3, tolerance=0.1, seed=0).prepare(matrix, 0.01).solve(vectors)


def test_a_series_that_diverges_says_so_and_names_the_setting() -> None:
    matrix = spectrum(torch.linspace(0.1, 2, 6))
    steps = Steps(lambda step: matrix, 0.5, 2.0, lambda v: v, num_steps=400, tolerance=0.0)
    message = r"this one diverges: after \d+ steps .* step of 2\. Raise `margin`.*`damping`"
    with pytest.raises(ConvergenceError, match=message):
        steps.run(torch.ones(1, 6).double())


@pytest.mark.parametrize("tolerance", [1.0, float("inf"), float("nan"), -0.1])
@pytest.mark.parametrize(
    "solver",
    [
        lambda tolerance: ConjugateGradients(tolerance=tolerance),
        lambda tolerance: Neumann(tolerance=tolerance),
        lambda tolerance: ASTRA(preconditioner=NoPreconditioner(), tolerance=tolerance, seed=0),
    ],
    ids=["conjugate gradients", "neumann", "astra"],
)
def test_a_tolerance_that_the_zero_start_meets_is_refused(solver: Any, tolerance: float) -> None:
    with pytest.raises(ValueError, match=r"in \[0, 1\).* met by scores of zero\. Got .*LiSSA"):
        solver(tolerance)


def test_astra_takes_all_its_steps_on_drawn_rows_whatever_the_residual() -> None:
    task, train, queries = perceptron()
    ekfac = CurvaturePreconditioner(EKFAC(seed=0).fit(task, train))
    solver = ASTRA(
        preconditioner=ekfac, batch_size=len(train), max_steps=2, tolerance=float("inf"), seed=0
    )
    method = Inverse(matrix=GaussNewton(seed=0), solver=solver, damping=0.5).fit(task, train)
    found = method.scores(task, queries, train)
    assert all(solve["num_steps"] == 2 for solve in found.provenance["solves"])
    assert np.abs(found.values).max() > 0


def test_random_rows_are_those_that_seed_and_step_say() -> None:
    task, train, _ = perceptron(20)
    matrix = GaussNewton(seed=0).of(task, train)
    first: Any = drawn_rows(matrix, 5, seed=1, name="a")
    assert list(first(3).positions) == list(first(3).positions)
    assert list(first(3).positions) != list(first(4).positions)
    assert len(set(first(3).positions)) == 5
    counts = np.bincount(np.concatenate([first(step).positions for step in range(400)]))
    assert counts.min() > 60 and counts.max() < 140  # 100 expected, standard deviation 9
    with pytest.raises(TypeError, match=r"matrix over a dataset\. Got DenseMatrix\. Use Neumann"):
        drawn_rows(spectrum(torch.ones(3)), 5, seed=0, name="a")


def test_lissa_on_random_rows_comes_near_the_inverse_and_more_runs_nearer() -> None:
    task, train, queries = perceptron()
    residuals = []
    for num_runs in (1, 6):
        solver = LiSSA(num_steps=40, batch_size=5, num_runs=num_runs, tolerance=2.0, seed=0)
        method = Inverse(matrix=GaussNewton(seed=0), solver=solver, damping=0.5).fit(task, train)
        solves = method.scores(task, queries, train).provenance["solves"]
        residuals.append(np.mean([solve["residual"] for solve in solves]))
    assert residuals[1] < residuals[0] / 1.5
    assert residuals[1] < 0.3


def test_astra_needs_fewer_steps_than_the_series_without_ek_fac() -> None:
    task, train, queries = perceptron()
    ekfac = CurvaturePreconditioner(EKFAC(seed=0).fit(task, train))
    steps = []
    for preconditioner in (ekfac, NoPreconditioner()):
        solver = ASTRA(preconditioner=preconditioner, max_steps=500, seed=0)
        method = Inverse(matrix=GaussNewton(seed=0), solver=solver, damping=0.02).fit(task, train)
        solves = method.scores(task, queries, train).provenance["solves"]
        steps.append(max(solve["num_steps"] for solve in solves))
    assert steps[0] < steps[1]


def test_arnoldi_inverts_the_largest_eigenvalues_and_takes_the_rest_for_zero() -> None:
    matrix = spectrum(torch.tensor([9.0, -7.0, 5.0, 1.0, 0.5, 0.1]))
    prepared = Arnoldi(num_steps=6, num_kept=3, seed=0).prepare(matrix, 8.0)
    assert torch.allclose(prepared.eigenvalues, torch.tensor([9.0, -7.0, 5.0]).double())
    values, vectors = torch.linalg.eigh(matrix.values)
    kept = torch.where(values.abs() > 2, values, 0.0)
    wanted = vectors @ torch.diag(1 / (kept + 8.0)) @ vectors.mT
    found = prepared.solve(torch.eye(6).double())
    torch.testing.assert_close(found.vectors, wanted)
    assert bool((found.residuals > 0).any())


def test_arnoldi_goes_on_where_the_space_closes() -> None:
    # Eigenvalues that occur several times close a Krylov space early.
    matrix = spectrum(torch.tensor([4.0, 4.0, 4.0, 1.0, 1.0, 0.0]))
    found = Arnoldi(num_steps=6, num_kept=6, seed=0).prepare(matrix, 0.5)
    wanted = torch.linalg.inv(matrix.values + 0.5 * torch.eye(6))
    torch.testing.assert_close(found.solve(torch.eye(6).double()).vectors, wanted)


def test_arnoldi_stays_orthogonal_over_many_steps() -> None:
    matrix = spectrum(torch.logspace(-8, 4, 80))
    basis, diagonal, beside = krylov(DenseMatrix(matrix.values.float()), 60, 0)
    assert (basis @ basis.mT - torch.eye(60)).abs().max() < 1e-5
    inner = torch.diag(diagonal) + torch.diag(beside, 1) + torch.diag(beside, -1)
    assert float(torch.linalg.eigvalsh(inner).max()) == pytest.approx(1e4, rel=1e-4)


def test_arnoldi_refuses_eigenvalues_that_the_damping_does_not_lift() -> None:
    with pytest.raises(ConvergenceError, match=r"smallest is -7 and the damping 0\.5\. Raise"):
        Arnoldi(num_steps=2, num_kept=2, seed=0).prepare(spectrum(torch.tensor([-7.0, 1.0])), 0.5)
    with pytest.raises(ValueError, match=r"`num_kept` must be in \[1, 3\] .*Got 4"):
        Arnoldi(num_steps=3, num_kept=4, seed=0)
    with pytest.raises(ValueError, match=r"`num_steps` must be in \[1, 2\] .*Got 3"):
        Arnoldi(num_steps=3, num_kept=3, seed=0).prepare(spectrum(torch.ones(2)), 0.5)
