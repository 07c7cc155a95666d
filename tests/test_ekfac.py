"""EK-FAC against the dense inverse of its own definition, in float64."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import influence.queries as query_module
from influence import (
    EKFAC,
    KFAC,
    AbsoluteDamping,
    Diagonal,
    FittedCurvature,
    Identity,
    Rotation,
    make_plan,
)
from influence.linear_layers import KINDS
from projections import (
    CausalLM,
    Classification,
    PassSettings,
    Regression,
    StoreMismatchError,
    Task,
    find_components,
)

EXACT = 1e-8  # float64 sums in another order


class Reused(nn.Module):
    """One linear layer used twice in a forward."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.inner(torch.tanh(self.inner(x)))))


class TiedWeights(nn.Module):
    """Two linear layers that share one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4, bias=False)
        self.second = nn.Linear(4, 4, bias=False)
        self.second.weight = self.first.weight
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.second(torch.tanh(self.first(x)))))


class TinyLM(nn.Module):
    """A causal model whose two projections read one tensor, with attention over real tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(7, 4)
        self.query = nn.Linear(4, 4)
        self.key = nn.Linear(4, 4)
        self.value = nn.Linear(4, 4, bias=False)
        self.head = nn.Linear(4, 7, bias=False)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        x = self.table(input_ids)
        scores = self.query(x) @ self.key(x).mT
        t = x.shape[1]
        seen = torch.tril(torch.ones(t, t, dtype=torch.bool, device=x.device))
        allowed = seen & attention_mask[:, None, :].bool()
        allowed = allowed | torch.eye(t, dtype=torch.bool, device=x.device)
        weights = scores.masked_fill(~allowed, -torch.inf).softmax(-1)
        return self.head(x + weights @ self.value(x))


def convolutions() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1, groups=2),
        nn.ReLU(inplace=True),
        nn.Conv2d(4, 2, 3, stride=2, padding="valid"),
        nn.Flatten(),
        nn.Linear(2 * 2 * 2, 3),
    )


def vectors(count: int, *shape: int) -> list[tuple[Tensor, int]]:
    return [(torch.randn(*shape, dtype=torch.float64), label % 3) for label in range(count)]


def texts(count: int) -> list[dict[str, list[int]]]:
    lengths = [2 + row % 5 for row in range(count)]
    return [{"input_ids": torch.randint(7, (length,)).tolist()} for length in lengths]


Case = tuple[Callable[[], Task], Callable[[int], list[Any]]]
CASES: dict[str, Case] = {
    "perceptron": (
        lambda: Classification(nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))),
        lambda count: vectors(count, 4),
    ),
    "convolutions": (lambda: Classification(convolutions()), lambda count: vectors(count, 2, 6, 6)),
    "reused": (lambda: Classification(Reused()), lambda count: vectors(count, 4)),
    "tied": (lambda: Classification(TiedWeights()), lambda count: vectors(count, 4)),
    "language": (lambda: CausalLM(TinyLM()), texts),
}


@pytest.fixture(params=CASES, ids=list(CASES))
def case(request: pytest.FixtureRequest) -> tuple[Task, list[Any], list[Any]]:
    torch.manual_seed(0)
    make_task, make_data = CASES[request.param]
    task = make_task()
    task.model.double().eval()
    return task, make_data(12), make_data(3)


def alone(task: Task, row: Any, loss: Callable[[Any], Tensor] | None = None) -> dict[str, Tensor]:
    """Batch-of-one gradients of linear maps, as matrices with the bias as last column."""
    batch = task.collate(task.encode([row]))
    task.model.zero_grad()
    (loss or task.losses)(batch).sum().backward()
    found = {}
    for name, module in task.model.named_modules():
        if not isinstance(module, nn.Linear | nn.Conv2d) or name == "second":
            continue
        assert module.weight.grad is not None
        groups = getattr(module, "groups", 1)
        weight = module.weight.grad.flatten(1)
        if module.bias is not None:
            assert module.bias.grad is not None
            weight = torch.cat([weight, module.bias.grad[:, None]], 1)
        for group, piece in enumerate(weight.chunk(groups)):
            found[name if groups == 1 else f"{name}[{group}]"] = piece.clone()
    return found


def dense(rotation: Rotation) -> Tensor:
    if not rotation.blocks:
        return torch.eye(rotation.size, dtype=torch.float64)
    return torch.block_diag(*rotation.blocks).double().contiguous()


def dense_scores(
    fitted: FittedCurvature, train: list[dict[str, Tensor]], queries: list[dict[str, Tensor]]
) -> Tensor:
    """``G^T (U diag(lambda) U^T + damping)^-1 G`` with every matrix written out."""
    total = torch.zeros(len(queries), len(train), dtype=torch.float64)
    for name, layer in fitted.layers.items():
        basis = torch.kron(dense(layer.left), dense(layer.right))
        hessian = basis @ torch.diag(layer.eigenvalues.flatten().double()) @ basis.mT
        damped = hessian + fitted.dampings[name] * torch.eye(len(hessian), dtype=torch.float64)
        G = torch.stack([gradient[name].flatten() for gradient in train], 1)
        Q = torch.stack([gradient[name].flatten() for gradient in queries], 1)
        total += Q.mT @ torch.linalg.solve(damped, G)
    return total


CURVATURES = {
    "ekfac": EKFAC(seed=0),
    "ekfac, empirical": EKFAC(seed=0, fisher="empirical"),
    "ekfac, three draws": EKFAC(seed=0, fisher="sampled", num_label_samples=3),
    "ekfac, diagonal blocks": EKFAC(seed=0, max_factor=3),
    "kfac": KFAC(seed=0),
    "diagonal": Diagonal(seed=0),
    "identity": Identity(),
}


@pytest.mark.parametrize("curvature", CURVATURES.values(), ids=list(CURVATURES))
def test_scores_equal_the_dense_inverse(case, curvature) -> None:
    task, train, queries = case
    fitted = curvature.fit(task, train)
    found = fitted.scores(task, queries, train).values
    wanted = dense_scores(
        fitted, [alone(task, r) for r in train], [alone(task, r) for r in queries]
    )
    np.testing.assert_allclose(
        found, wanted.numpy(), rtol=EXACT, atol=EXACT * float(wanted.abs().max())
    )


@pytest.mark.parametrize("curvature", CURVATURES.values(), ids=list(CURVATURES))
def test_self_influence_is_the_diagonal_of_the_scores(case, curvature) -> None:
    task, train, _ = case
    fitted = curvature.fit(task, train)
    pairs = fitted.scores(task, train, train).values
    own = fitted.self_influence(task, train).values
    np.testing.assert_allclose(own, np.diag(pairs), rtol=EXACT)


def test_empirical_eigenvalues_are_the_mean_squares_in_the_eigenbasis(case) -> None:
    task, train, _ = case
    fitted = EKFAC(seed=0, fisher="empirical").fit(task, train)
    gradients = [alone(task, row) for row in train]
    for name, layer in fitted.layers.items():
        left, right = (torch.block_diag(*side.blocks) for side in (layer.left, layer.right))
        squares = [(left.mT @ g[name] @ right).square() for g in gradients]
        torch.testing.assert_close(layer.eigenvalues, torch.stack(squares).mean(0))


def test_a_fit_does_not_depend_on_batches_or_shards(case) -> None:
    task, train, queries = case
    whole = EKFAC(seed=0).fit(task, train, settings=PassSettings(batch_size=12))
    scores = whole.scores(task, queries, train).values
    pieces = EKFAC(seed=0).fit(task, train, settings=PassSettings(batch_size=1, shard_size=5))
    np.testing.assert_allclose(pieces.scores(task, queries, train).values, scores, rtol=EXACT)


def test_left_padding_gives_the_scores_of_right_padding() -> None:
    torch.manual_seed(0)
    task = CausalLM(TinyLM().double().eval())
    train, queries = texts(10), texts(3)

    class Left(CausalLM):
        def collate(self, examples: Any) -> dict[str, Tensor]:
            batch = super().collate(examples)
            shifts = [batch["input_ids"].shape[1] - self.size(example) for example in examples]
            return {
                key: torch.stack([row.roll(s) for row, s in zip(value, shifts, strict=True)])
                for key, value in batch.items()
            }

    left = Left(task.model)
    right_scores = EKFAC(seed=0).fit(task, train).scores(task, queries, train).values
    left_scores = EKFAC(seed=0).fit(left, train).scores(left, queries, train).values
    np.testing.assert_allclose(left_scores, right_scores, rtol=EXACT)


def gauss_newton(task: Task, data: list[Any], num_out: int) -> dict[str, Tensor]:
    """The exact block-diagonal Gauss-Newton of a squared loss, mean over the data."""
    blocks: dict[str, Tensor] = {}
    for row in data:
        for output in range(num_out):
            gradient = alone(task, row, lambda batch, o=output: task.model(batch[0])[:, o])
            for name, g in gradient.items():
                flat = g.flatten()
                blocks[name] = blocks.get(name, 0) + torch.outer(flat, flat) / len(data)
    return blocks


def assembled(fitted: FittedCurvature, name: str) -> Tensor:
    layer = fitted.layers[name]
    basis = torch.kron(
        torch.block_diag(*layer.left.blocks).contiguous(),
        torch.block_diag(*layer.right.blocks).contiguous(),
    )
    return basis @ torch.diag(layer.eigenvalues.flatten()) @ basis.mT


def regression(model: nn.Module, count: int) -> tuple[Task, list[Any]]:
    data = [
        (torch.randn(3, dtype=torch.float64), torch.randn(2, dtype=torch.float64))
        for _ in range(count)
    ]
    return Regression(model.double().eval()), data


def test_ekfac_is_the_gauss_newton_of_a_linear_network_with_squared_loss() -> None:
    # Output gradients of the exact Fisher do not depend on the input here, so the factors
    # are independent and the Kronecker form is exact.
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4, bias=False), nn.Linear(4, 2, bias=False))
    task, data = regression(model, 9)
    fitted = EKFAC(seed=0, fisher="exact").fit(task, data)
    for name, exact in gauss_newton(task, data, 2).items():
        torch.testing.assert_close(assembled(fitted, name), exact)


def test_ekfac_is_the_gauss_newton_of_one_example() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    task, data = regression(model, 1)
    fitted = EKFAC(seed=0, fisher="exact").fit(task, data)
    for name, exact in gauss_newton(task, data, 2).items():
        torch.testing.assert_close(assembled(fitted, name), exact)


def test_ekfac_is_never_further_from_the_gauss_newton_than_kfac() -> None:
    for seed in range(5):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
        task, data = regression(model, 7)
        corrected = EKFAC(seed=0, fisher="exact").fit(task, data)
        plain = KFAC(seed=0, fisher="exact").fit(task, data)
        for name, exact in gauss_newton(task, data, 2).items():
            distance = (assembled(corrected, name) - exact).norm()
            assert distance <= (assembled(plain, name) - exact).norm() + EXACT * exact.norm()


def test_kfac_is_exact_for_one_linear_layer_with_squared_loss() -> None:
    torch.manual_seed(0)
    task, data = regression(nn.Linear(3, 2), 8)
    fitted = KFAC(seed=0, fisher="exact").fit(task, data)
    torch.testing.assert_close(assembled(fitted, ""), gauss_newton(task, data, 2)[""])


def test_exact_labels_are_what_many_draws_converge_to() -> None:
    torch.manual_seed(0)
    task = Classification(nn.Linear(3, 3).double().eval())
    data = vectors(6, 3)
    exact = assembled(EKFAC(seed=0, fisher="exact").fit(task, data), "")
    fitted = EKFAC(seed=0, fisher="sampled", num_label_samples=4000).fit(task, data)
    # Standard error of 4,000 draws of numbers of the size of the curvature itself.
    torch.testing.assert_close(assembled(fitted, ""), exact, rtol=0, atol=float(exact.max()) / 15)


def test_a_saved_fit_gives_the_same_bits(case, tmp_path) -> None:
    task, train, queries = case
    fitted = EKFAC(seed=0).fit(task, train)
    fitted.save(tmp_path / "ekfac.safetensors")
    loaded = FittedCurvature.load(tmp_path / "ekfac.safetensors")
    first = fitted.scores(task, queries, train).values
    assert (loaded.scores(task, queries, train).values == first).all()


def test_a_saved_fit_keeps_its_damping(tmp_path) -> None:
    @dataclass(frozen=True)
    class Own:
        def of(self, mean_eigenvalue: float) -> float:
            return 1.0

    torch.manual_seed(0)
    task = Classification(nn.Linear(4, 3).double().eval())
    fitted = EKFAC(seed=0, damping=AbsoluteDamping(0.3)).fit(task, vectors(5, 4))
    fitted.save(tmp_path / "fit")
    assert FittedCurvature.load(tmp_path / "fit").damping == AbsoluteDamping(0.3)
    fitted.with_damping(Own()).save(tmp_path / "own")
    with pytest.raises(StoreMismatchError, match=r"`damping` must be given: .* is a Own"):
        FittedCurvature.load(tmp_path / "own")
    assert FittedCurvature.load(tmp_path / "own", damping=Own()).dampings == {"": 1.0}


def test_layers_that_read_one_tensor_share_one_eigenbasis_on_disk(tmp_path) -> None:
    torch.manual_seed(0)
    fitted = EKFAC(seed=0).fit(CausalLM(TinyLM().double().eval()), texts(8))
    assert fitted.layers["query"].right is fitted.layers["key"].right
    assert fitted.layers["query"].right is not fitted.layers["value"].right  # has no bias


def test_damping_changes_after_fitting_without_another_pass(case) -> None:
    task, train, queries = case
    fitted = EKFAC(seed=0).fit(task, train)
    assert set(fitted.dampings) == set(fitted.layers)
    other = fitted.with_damping(AbsoluteDamping(0.5))
    assert set(other.dampings.values()) == {0.5}
    wanted = dense_scores(other, [alone(task, r) for r in train], [alone(task, r) for r in queries])
    np.testing.assert_allclose(other.scores(task, queries, train).values, wanted, rtol=1e-7)


def test_the_top_and_bottom_are_those_of_all_scores(case) -> None:
    task, train, queries = case
    fitted = EKFAC(seed=0).fit(task, train)
    scores = fitted.scores(task, queries, train).values
    small = PassSettings(batch_size=2, shard_size=5)
    top, bottom = fitted.top(task, queries, train, k=4, settings=small, memory=1)
    np.testing.assert_array_equal(top.ids, np.argsort(-scores, axis=1, kind="stable")[:, :4])
    np.testing.assert_array_equal(bottom.ids, np.argsort(scores, axis=1, kind="stable")[:, :4])
    np.testing.assert_allclose(top.scores, -np.sort(-scores, axis=1)[:, :4], rtol=EXACT)


def test_scores_of_layers_add_up(case) -> None:
    task, train, queries = case
    fitted = EKFAC(seed=0).fit(task, train)
    layers = fitted.layer_scores(task, queries, train)
    assert layers.names == list(fitted.layers)
    total = np.sum(list(layers.columns.values()), axis=0)
    np.testing.assert_allclose(total, fitted.scores(task, queries, train).values, rtol=1e-7)


def test_a_fit_in_partitions_is_the_same_fit(case) -> None:
    task, train, queries = case
    plan = make_plan(task, train, memory=10**9, num_queries=3)
    assert len(plan.partitions) == 1
    assert plan.queries_per_pass == 3
    components = [name for part in plan.partitions for name in part]
    fitted = EKFAC(seed=0).fit(task, train, partitions=[[name] for name in components])
    whole = EKFAC(seed=0).fit(task, train)
    assert set(fitted.layers) == set(whole.layers)
    np.testing.assert_allclose(
        fitted.scores(task, queries, train).values,
        whole.scores(task, queries, train).values,
        rtol=EXACT,
    )


def test_partitions_that_are_fitted_stay_in_files_and_take_no_memory(case, tmp_path) -> None:
    task, train, queries = case
    parts = [[name] for name in find_components(task.model, kinds=KINDS).components]
    fitted = EKFAC(seed=0).fit(task, train, partitions=parts, path=tmp_path)
    files = [tmp_path / f"partition-{n}" / "fitted.safetensors" for n in range(len(parts))]
    maps = Path("/proc/self/maps")
    if maps.exists():
        mapped = maps.read_text()
        assert all(str(file) in mapped for file in files)
    whole = EKFAC(seed=0).fit(task, train).scores(task, queries, train).values
    atol = EXACT * np.abs(whole).max()
    found = fitted.scores(task, queries, train).values
    np.testing.assert_allclose(found, whole, rtol=EXACT, atol=atol)
    loaded = FittedCurvature.load(files[0])
    for name, layer in FittedCurvature.open(files[0]).layers.items():
        assert torch.equal(layer.eigenvalues, loaded.layers[name].eigenvalues)
    with pytest.raises(StoreMismatchError, match="must be a saved curvature"):
        FittedCurvature.open(tmp_path / "none")


def test_layers_that_share_their_inputs_share_them_on_another_device() -> None:
    torch.manual_seed(0)
    task = CausalLM(TinyLM().double().eval())
    fitted = EKFAC(seed=0).fit(task, texts(5))
    moved = fitted.to("cpu")
    query, key, value = (moved.layers[name] for name in ("query", "key", "value"))
    assert query.right is key.right
    assert value.right is not key.right
    assert moved.layers.keys() == fitted.layers.keys()


def test_a_fit_that_is_continued_has_the_means_over_all_data(case) -> None:
    task, train, _ = case
    method = EKFAC(seed=0, fisher="empirical")
    first = method.fit(task, train[:7])
    both = method.extend(first, task, train[7:])
    for name, layer in both.layers.items():
        left, right = dense(layer.left), dense(layer.right)
        squares = [(left.mT @ alone(task, row)[name] @ right).square() for row in train]
        torch.testing.assert_close(layer.eigenvalues, torch.stack(squares).mean(0))
    assert both.provenance["num_examples"] == 12
    plain = KFAC(seed=0).fit(task, train[:7])
    for method, start in ((KFAC(seed=0), plain), (EKFAC(seed=0), plain), (KFAC(seed=0), first)):
        with pytest.raises(TypeError, match="only EKFAC has eigenvalues that are means"):
            method.extend(start, task, train[7:])


def test_a_plan_counts_bytes_and_operations_from_shapes() -> None:
    model = nn.Sequential(nn.Linear(9, 5), nn.Tanh(), nn.Linear(5, 3, bias=False))
    task = Classification(model.eval())
    data = [(torch.randn(9), 0)] * 7
    plan = make_plan(task, data, memory="1MB", num_queries=2)
    # Covariances, eigenvectors and eigenvalues of a 5 x 10 and a 3 x 5 layer, in float32.
    assert plan.stages[0].num_bytes == 4 * (2 * (100 + 25) + 50 + 2 * (25 + 9) + 15)
    assert plan.stages[-1].num_bytes == 4 * 2 * 65
    # One position: forward and backward, then the upper triangles of all four covariances.
    triangles = 5 * 5 + 10 * 10 + 3 * 3 + 5 * 5
    assert plan.stages[0].operations == 7 * (2 * 65 + triangles)
    # Of two queries: forward and backward, rotated factors, the gradient, and back.
    rotated = (5 * 5 + 10 * 10 + 50) + (3 * 3 + 5 * 5 + 15)
    back = 5 * 10 * (5 + 10) + 3 * 5 * (3 + 5)
    assert plan.stages[3].operations == 2 * (2 * 65 + rotated + back)
    assert "2 linear maps, 65 parameters" in str(plan)
    small = make_plan(task, data, memory=1500)
    assert small.partitions == (("2",), ("0",))
    with pytest.raises(ValueError, match="`memory` must hold the factors of every layer alone"):
        make_plan(task, data, memory=100)
    with pytest.raises(ValueError, match="Got 'much'"):
        make_plan(task, data, memory="much")


def test_scores_of_tokens_add_up() -> None:
    torch.manual_seed(0)
    task = CausalLM(TinyLM().double().eval())
    train, queries = texts(6), texts(2)
    fitted = EKFAC(seed=0).fit(task, train)
    tokens = fitted.token_scores(task, queries, train)
    assert [tokens[row].shape[1] for row in range(6)] == [len(row["input_ids"]) for row in train]
    totals = np.stack([tokens[row].sum(1) for row in range(6)], 1)
    np.testing.assert_allclose(totals, fitted.scores(task, queries, train).values, rtol=1e-7)


def test_queries_of_full_rank_give_the_exact_scores_and_low_rank_ones_come_near(case) -> None:
    task, train, queries = case
    fitted = EKFAC(seed=0).fit(task, train)
    exact = fitted.scores(task, queries, train).values
    full = fitted.scores(task, queries, train, query_rank=100).values
    np.testing.assert_allclose(full, exact, rtol=1e-7)
    near = fitted.scores(task, queries, train, query_rank=2).values
    assert np.corrcoef(near.ravel(), exact.ravel())[0, 1] > 0.9


def test_a_fit_that_was_stopped_goes_on_to_the_same_bits(case, tmp_path) -> None:
    task, train, _ = case
    settings = PassSettings(batch_size=2, shard_size=4)
    whole = EKFAC(seed=0).fit(task, train, settings=settings)

    class Stopping(list):
        reads = 0

        def __getitem__(self, position: Any) -> Any:
            Stopping.reads += 1
            if Stopping.reads == 20:
                raise RuntimeError("stopped")
            return super().__getitem__(position)

    with pytest.raises(RuntimeError, match="stopped"):
        EKFAC(seed=0).fit(task, Stopping(train), settings=settings, path=tmp_path)
    again = EKFAC(seed=0).fit(task, train, settings=settings, path=tmp_path)
    assert all(
        (again.layers[name].eigenvalues == layer.eigenvalues).all()
        for name, layer in whole.layers.items()
    )


def test_another_model_is_refused() -> None:
    task = Classification(nn.Linear(3, 3).double().eval())
    fitted = EKFAC(seed=0).fit(task, vectors(4, 3))
    other = Classification(nn.Linear(3, 3).double().eval())
    with pytest.raises(Exception, match="must be used with the model it was fitted to"):
        fitted.scores(other, vectors(1, 3), vectors(2, 3))


def test_a_layer_whose_curvature_is_zero_needs_damping() -> None:
    task = Classification(nn.Linear(3, 3).double().eval())
    fitted = EKFAC(seed=0).fit(task, vectors(4, 3)).with_damping(AbsoluteDamping(0.0))
    layer = fitted.layers[""]
    layer.eigenvalues.zero_()
    with pytest.raises(Exception, match="must be above zero"):
        fitted.scores(task, vectors(1, 3), vectors(2, 3))


def test_softmax_draws_follow_the_model() -> None:
    torch.manual_seed(0)
    from projections import Labels

    task = Classification(nn.Linear(2, 3).double().eval())
    inputs = torch.randn(1, 2, dtype=torch.float64)
    labels = Labels(kind="sampled", num_samples=3000, seed=0)
    with torch.no_grad():
        losses = task.fisher_losses((inputs, torch.tensor([0])), labels, np.array([5]))
        scores = functional.log_softmax(task.model(inputs), -1)[0]
    values = torch.cat(losses) * 3000**0.5
    shares = [(values - -score).abs().lt(1e-9).double().mean() for score in scores]
    # Four standard errors of a share over 3,000 draws.
    assert all(abs(a - b) < 4 * 0.5 / 3000**0.5 for a, b in zip(shares, scores.exp(), strict=True))


@pytest.mark.parametrize(("positions", "count"), [(1, 3), (5, 3), (5, 70)])
def test_queries_in_blocks_and_pieces_meet_every_gradient(
    positions: int, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(query_module, "PIECE_ENTRIES", 12)
    monkeypatch.setattr(query_module, "LEAST_ENTRIES", 1)
    generator = torch.Generator().manual_seed(0)
    blocks = [torch.randn(4, height, 6, generator=generator).double() for height in (8, 2, 3)]
    inputs = torch.randn(count, positions, 6, generator=generator).double()
    grads = torch.randn(count, positions, 13, generator=generator).double()
    gradients = torch.einsum("nto,nti->noi", grads, inputs)
    expected = torch.einsum("noi,qoi->nq", gradients, torch.cat(blocks, dim=1))
    found = query_module.FullQueries(tuple(blocks)).scores(inputs, grads)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_query_gradients_lie_in_blocks_that_scores_are_right_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(0)
    task = Regression(nn.Sequential(nn.Linear(6, 11), nn.Tanh(), nn.Linear(11, 7)).double())
    data = [(torch.randn(6).double(), torch.randn(7).double()) for _ in range(40)]
    fitted = EKFAC(seed=0, fisher="empirical").fit(task, data)
    expected = fitted.scores(task, data[:3], data).values
    for name, value in {"LEAST_OUTPUTS": 4, "PIECE_ENTRIES": 16, "LEAST_ENTRIES": 1}.items():
        monkeypatch.setattr(query_module, name, value)
    monkeypatch.setattr(query_module, "FORMED_ENTRIES", {"cpu": 1})
    queries = fitted.query_gradients(task, data[:3])
    full = [part for part in queries.values() if isinstance(part, query_module.FullQueries)]
    assert sorted(len(part.blocks) for part in full) == [2, 3]
    found = fitted.scores(task, data[:3], data).values
    np.testing.assert_allclose(found, expected, rtol=1e-12)
