"""One test for each wrong result that was found in a published package, named by its symptom."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from oracles import DenseMatrix, gradients_one_by_one
from test_ekfac import Reused, TinyLM, alone, gauss_newton, regression, vectors
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from influence import (
    EKFAC,
    AbsoluteDamping,
    Arnoldi,
    ConjugateGradients,
    FittedCurvature,
    GaussNewton,
    Identity,
    LiSSA,
    Neumann,
)
from influence.covariances import Covariances
from influence.queries import FullQueries
from projections import (
    CausalLM,
    Classification,
    Gradient,
    Labels,
    OuterProducts,
    PassSettings,
    Task,
    run_pass,
)

EXACT = 1e-8  # float64 sums in another order


def double(model: nn.Module) -> nn.Module:
    return model.double().eval()


def true_products(task: Task, queries: list[Any], train: list[Any]) -> np.ndarray:
    """Inner products of whole gradients, by autograd, one example at a time."""
    sides = []
    for part in (queries, train):
        parts = [alone(task, row) for row in part]
        sides.append(torch.stack([torch.cat([g.flatten() for g in p.values()]) for p in parts]))
    return (sides[0] @ sides[1].mT).numpy()


def products(task: Task, queries: list[Any], train: list[Any]) -> np.ndarray:
    fitted = Identity().fit(task, train)
    return fitted.scores(task, queries, train).values


def test_every_use_of_a_module_that_is_used_twice_is_scored() -> None:
    torch.manual_seed(0)
    task = Classification(double(Reused()))
    train, queries = vectors(6, 4), vectors(2, 4)
    found, wanted = products(task, queries, train), true_products(task, queries, train)
    np.testing.assert_allclose(found, wanted, rtol=EXACT)


def test_scores_of_layers_do_not_add_up_over_batches() -> None:
    torch.manual_seed(0)
    task = Classification(double(nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))))
    train, queries = vectors(7, 4), vectors(2, 4)
    fitted = EKFAC(seed=0).fit(task, train)
    found = [
        fitted.layer_scores(task, queries, train, settings=PassSettings(batch_size=size)).columns
        for size in (1, 3, 7)
    ]
    for name in fitted.layers:
        for other in found[1:]:
            np.testing.assert_allclose(found[0][name], other[name], rtol=EXACT)


def test_a_convolution_with_groups_has_the_gradient_of_each_group() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(4, 4, 3, groups=2), nn.Flatten(), nn.Linear(16, 3))
    task = Classification(double(model))
    train, queries = vectors(5, 4, 4, 4), vectors(2, 4, 4, 4)
    found, wanted = products(task, queries, train), true_products(task, queries, train)
    np.testing.assert_allclose(found, wanted, rtol=EXACT)


def test_a_subclass_of_linear_is_a_linear_layer() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(NonDynamicallyQuantizableLinear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    fitted = EKFAC(seed=0).fit(Classification(double(model)), vectors(5, 4))
    assert set(fitted.layers) == {"0", "2"}


def test_settings_keep_their_types_on_disk(tmp_path) -> None:
    torch.manual_seed(0)
    task = Classification(double(nn.Linear(4, 3)))
    settings = PassSettings(batch_size=2, layers=("*",))
    fitted = EKFAC(seed=0).fit(task, vectors(5, 4), settings=settings)
    fitted.save(tmp_path / "fit")
    again = FittedCurvature.load(tmp_path / "fit")
    assert again.settings.layers == ("*",)
    assert again.layers[""].eigenvalues.dtype == fitted.layers[""].eigenvalues.dtype
    assert again.dampings == fitted.dampings


def test_gradients_are_rotated_into_the_eigenbasis_and_not_out_of_it() -> None:
    # Inputs and output gradients are independent here, so that the exact answer is known.
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(3, 4, bias=False), nn.Linear(4, 2, bias=False))
    task, data = regression(model, 9)
    fitted = EKFAC(seed=0, fisher="exact", damping=AbsoluteDamping(0.1)).fit(task, data)
    gradients = alone(task, data[0])
    found = fitted.precondition({name: g[None] for name, g in gradients.items()})
    for name, exact in gauss_newton(task, data, 2).items():
        damped = exact + 0.1 * torch.eye(len(exact), dtype=torch.float64)
        wanted = torch.linalg.solve(damped, gradients[name].flatten())
        torch.testing.assert_close(found[name].flatten(), wanted)


def test_the_bias_is_the_last_column_of_a_gradient() -> None:
    torch.manual_seed(0)
    task = Classification(double(nn.Linear(4, 3)))
    row = vectors(1, 4)[0]
    gradients = gradients_one_by_one(task, [row])
    weight, bias = gradients["weight"][0].view(3, 4), gradients["bias"][0]
    torch.testing.assert_close(alone(task, row)[""], torch.cat([weight, bias[:, None]], 1))
    fitted = Identity().fit(task, [row])
    (queries,) = fitted.query_gradients(task, [row]).values()
    assert isinstance(queries, FullQueries)
    torch.testing.assert_close(queries.gradients[0], alone(task, row)[""])


def test_layers_take_activations_with_positions() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Flatten(), nn.Linear(15, 3))
    task = Classification(double(model))
    train, queries = vectors(5, 3, 4), vectors(2, 3, 4)
    found, wanted = products(task, queries, train), true_products(task, queries, train)
    np.testing.assert_allclose(found, wanted, rtol=EXACT)
    assert set(EKFAC(seed=0).fit(task, train).layers) == {"0", "3"}


def test_the_fisher_of_a_uniform_prediction_is_not_zero() -> None:
    torch.manual_seed(0)
    model = nn.Linear(4, 3, bias=False).double().eval()
    nn.init.zeros_(model.weight)
    covariances = Covariances()
    run_pass(
        Classification(model),
        vectors(6, 4),
        accumulators=[covariances],
        labels=Labels(kind="exact"),
    )
    (grad,) = (value for key, value in covariances.state().items() if "grad" in key)
    # The output gradient is p - onehot, of mean squared length 1 - 1/3.
    assert float(grad.trace()) / 6 == pytest.approx(1 - 1 / 3)


def test_each_layer_is_damped_by_its_own_mean() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    fitted = EKFAC(seed=0).fit(Classification(double(model)), vectors(9, 4))
    for name, layer in fitted.layers.items():
        assert fitted.dampings[name] == pytest.approx(0.1 * float(layer.eigenvalues.mean()))
    assert len(set(fitted.dampings.values())) == 2


def test_damping_does_not_grow_with_each_call() -> None:
    torch.manual_seed(0)
    task = Classification(double(nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))))
    train, queries = vectors(6, 4), vectors(2, 4)
    fitted = EKFAC(seed=0).fit(task, train)
    before = {name: layer.eigenvalues.clone() for name, layer in fitted.layers.items()}
    first, second = (fitted.scores(task, queries, train).values for _ in range(2))
    np.testing.assert_array_equal(first, second)
    for name, layer in fitted.layers.items():
        assert torch.equal(layer.eigenvalues, before[name])


def test_the_last_weights_of_a_layer_without_bias_are_not_its_bias() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5, bias=False), nn.Tanh(), nn.Linear(5, 3, bias=False))
    task = Classification(double(model))
    train, queries = vectors(6, 4), vectors(2, 4)
    found, wanted = products(task, queries, train), true_products(task, queries, train)
    np.testing.assert_allclose(found, wanted, rtol=EXACT)
    assert EKFAC(seed=0).fit(task, train).layers["0"].eigenvalues.shape == (5, 4)


@dataclass
class OutputGrads:
    """The output gradients of the head, by row."""

    name: str = "output grads"
    rows: dict[int, Tensor] = field(default_factory=dict)

    def begin(self, batch: Any) -> None:
        self.ids = batch.ids.tolist()

    def observe(self, gradient: Gradient) -> None:
        if gradient.component.name == "head":
            (term,) = gradient.terms
            assert isinstance(term, OuterProducts)
            self.rows.update(zip(self.ids, term.output_grads, strict=True))

    def end(self, batch: Any) -> None:
        pass

    def state(self) -> dict[str, Tensor]:
        return {}

    def load(self, state: Any) -> None:
        pass

    def merge(self, state: Any) -> None:
        pass


def test_labels_are_not_drawn_for_padding_and_prompts() -> None:
    torch.manual_seed(0)
    rows = [
        {"input_ids": [1, 2, 3, 4, 5], "labels": [-100, -100, -100, 4, 5]},
        {"input_ids": [1, 2, 3], "labels": [1, 2, 3]},
    ]
    found = OutputGrads()
    run_pass(
        CausalLM(double(TinyLM())),
        rows,
        accumulators=[found],
        labels=Labels(kind="sampled", purpose="fit"),
    )
    nonzero = [found.rows[row].abs().sum(-1) > 0 for row in (0, 1)]
    # The position before a token predicts it.
    assert nonzero[0].tolist() == [False, False, True, True, False]
    assert nonzero[1].tolist() == [True, True, False, False, False]


def test_each_right_hand_side_has_a_tolerance_of_its_own_length() -> None:
    # The symptom: tolerances of columns were paired with rows, so that short ones stopped early.
    basis = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64)).Q
    eigenvalues = torch.logspace(-1, 2, 6, dtype=torch.float64)
    matrix = DenseMatrix(basis @ torch.diag(eigenvalues) @ basis.mT)
    vectors = torch.randn(4, 6, dtype=torch.float64) * torch.tensor([[1e-8], [1.0], [1e8], [1e-4]])
    solution = ConjugateGradients(tolerance=1e-9).prepare(matrix, 0.1).solve(vectors)
    damped = matrix.values + 0.1 * torch.eye(6, dtype=torch.float64)
    left = vectors - solution.vectors @ damped
    assert (left.norm(dim=1) <= 1e-9 * vectors.norm(dim=1)).all()


def test_the_krylov_matrix_of_symmetric_curvature_is_decomposed_as_symmetric() -> None:
    # The symptom: real parts of eigenvalues of a matrix that rounding had made unsymmetric.
    basis = torch.linalg.qr(torch.randn(40, 40, dtype=torch.float64)).Q
    eigenvalues = torch.cat([torch.tensor([100.0, -90.0, 80.0]), torch.linspace(-1, 1, 37)])
    matrix = DenseMatrix((basis @ torch.diag(eigenvalues.double()) @ basis.mT).float())
    found = Arnoldi(num_steps=30, num_kept=3, seed=0).prepare(matrix, 95.0)
    np.testing.assert_allclose(found.eigenvalues.numpy(), [100, -90, 80], rtol=1e-5)
    vectors = found.eigenvectors
    np.testing.assert_allclose((vectors @ vectors.mT).numpy(), np.eye(3), atol=1e-5)


def test_the_damping_of_a_series_is_taken_off_and_not_added() -> None:
    # The symptom: the sign of the damping, which gave the inverse of the curvature less it.
    values = torch.diag(torch.tensor([0.0, 1.0, 3.0], dtype=torch.float64))
    solver = Neumann(tolerance=1e-10).prepare(DenseMatrix(values), 0.5)
    found = solver.solve(torch.eye(3, dtype=torch.float64)).vectors
    np.testing.assert_allclose(found.numpy(), np.diag([2.0, 1 / 1.5, 1 / 3.5]), rtol=1e-8)
    torch.manual_seed(0)
    task = Classification(double(nn.Linear(4, 3)))
    data, vector = vectors(6, 4), torch.randn(1, 15, dtype=torch.float64)
    whole = GaussNewton(seed=0).of(task, data)
    lissa = LiSSA(num_steps=60, batch_size=6, tolerance=1e-3, seed=0).prepare(whole, 2.0)
    x = lissa.solve(vector).vectors
    np.testing.assert_allclose((whole.apply(x) + 2.0 * x).numpy(), vector.numpy(), atol=1e-3)
