"""Per-example gradients are those of one backward pass an example, for every layer and use."""

import warnings
from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import Any

import cases
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import flatten, gradients_one_by_one
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from projections import (
    CausalLM,
    Classification,
    Component,
    Gradient,
    GradientNorm,
    OuterProducts,
    Parameter,
    Regression,
    TableRows,
    Task,
    UnsupportedLayerError,
    Vectors,
    find_components,
    run_pass,
)
from projections.capture import Capture
from projections.errors import NonDeterministicError
from projections.evaluation_mode import check_evaluation_mode
from projections.per_example import merge_terms

EXACT = 1e-10  # float64 rounding over sums of a few hundred terms
# Llama normalises in float32 whatever its own precision; sums there may be ordered by batch.
SINGLE = 1e-6
TOLERANCES = {"llama-tied": SINGLE, "llama-left-padding": SINGLE}


def capture_all(
    task: Task, examples: Sequence[Any], layers: Sequence[str] | None = None
) -> dict[str, Gradient]:
    """Every component's gradient by its name."""
    found: dict[str, Gradient] = {}
    capture = Capture(task.model, find_components(task.model, layers))
    batch = task.collate(examples)
    with capture.hooks():
        losses = capture.forward(lambda: task.losses(batch), len(examples))
        capture.backward(losses, lambda g: found.setdefault(g.component.name, g) and None)
    return found


def materialized(found: dict[str, Gradient]) -> dict[str, Tensor]:
    return {name: value for g in found.values() for name, value in g.materialize().items()}


@pytest.mark.parametrize("num", [1, 2, 5])
@pytest.mark.parametrize("name", cases.MODELS)
def test_gradients_equal_autograd_one_example_at_a_time(name: str, num: int) -> None:
    task, examples = cases.build(name, num)
    expected = gradients_one_by_one(task, examples)
    found = capture_all(task, examples)
    norms = {name: g.sq_norms for name, g in found.items()}
    dense = materialized(found)
    assert set(dense) <= set(expected)
    tolerance = TOLERANCES.get(name, EXACT)
    for parameter, values in expected.items():
        got = dense.get(parameter, torch.zeros_like(values))
        torch.testing.assert_close(got, values, rtol=tolerance, atol=tolerance, msg=parameter)
    for component, gradient in found.items():
        direct = flatten(gradient).square().sum(1)
        torch.testing.assert_close(norms[component], direct, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", cases.MODELS)
def test_the_norm_of_a_pass_is_the_norm_of_all_gradients(name: str) -> None:
    task, examples = cases.build(name, 3)
    grads = gradients_one_by_one(task, examples)
    expected = sum(value.flatten(1).square().sum(1) for value in grads.values())
    assert isinstance(expected, Tensor)
    total = run_pass(task, examples, [GradientNorm()]).columns["grad_norm"]
    torch.testing.assert_close(
        torch.from_numpy(total),
        expected.sqrt(),
        rtol=TOLERANCES.get(name, EXACT),
        atol=TOLERANCES.get(name, EXACT),
    )


@pytest.mark.parametrize("name", ["gpt2-left-padding", "llama-left-padding"])
def test_padding_on_either_side_gives_the_same_losses(name: str) -> None:
    left, examples = cases.build(name, 4)
    right = CausalLM(left.model)
    together = left.losses(left.collate(examples))
    torch.testing.assert_close(together, right.losses(right.collate(examples)), rtol=SINGLE, atol=0)


# The two ways to a squared norm: Gram matrices of positions, or the formed product.


@settings(max_examples=60, deadline=None)
@given(
    num=st.integers(1, 3),
    groups=st.integers(1, 3),
    positions=st.integers(1, 30),
    num_in=st.integers(1, 8),
    num_out=st.integers(1, 8),
    has_bias=st.booleans(),
    seed=st.integers(0, 100),
)
def test_squared_norms_do_not_depend_on_how_they_are_computed(
    num: int, groups: int, positions: int, num_in: int, num_out: int, has_bias: bool, seed: int
) -> None:
    draw = partial(torch.randn, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    weight = Parameter("w.weight", (groups * num_out, num_in))
    bias = [Parameter("w.bias", (groups * num_out,))] if has_bias else []
    component = Component("w", (weight, *bias))
    shape = (num,) if groups == 1 else (num, groups)
    inputs, grads = draw(*shape, positions, num_in), draw(*shape, positions, num_out)
    fresh = OuterProducts(component, inputs, grads)
    formed = OuterProducts(component, inputs, grads)
    expected = flatten(Gradient(component, (formed,))).square().sum(1)
    torch.testing.assert_close(fresh.sq_norm(), expected, rtol=EXACT, atol=EXACT)
    torch.testing.assert_close(formed.sq_norm(), expected, rtol=EXACT, atol=EXACT)


@pytest.mark.parametrize(
    ("positions", "width", "forms"), [(2, 50, False), (50, 3, True)], ids=["short", "long"]
)
def test_the_product_is_formed_only_where_that_is_cheaper(
    positions: int, width: int, forms: bool
) -> None:
    component = Component("w", (Parameter("w.weight", (width, width)),))
    tensor = torch.ones(2, positions, width, dtype=torch.float64)
    term = OuterProducts(component, tensor, tensor)
    squared = term.sq_norm()
    assert ("_sq_norm" in vars(term)) == forms
    torch.testing.assert_close(squared, torch.full_like(squared, (positions * width) ** 2))


@settings(max_examples=30, deadline=None)
@given(num=st.integers(1, 3), lookups=st.integers(1, 9), positions=st.integers(1, 9))
def test_a_weight_that_is_both_table_and_layer_has_the_norm_of_the_sum(
    num: int, lookups: int, positions: int
) -> None:
    draw = partial(torch.randn, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    component = Component("w", (Parameter("w.weight", (6, 4)),), "mixed")
    ids = torch.randint(6, (num, lookups), generator=torch.Generator().manual_seed(2))
    terms = (
        TableRows(component, ids, draw(num, lookups, 4)),
        OuterProducts(component, draw(num, positions, 4), draw(num, positions, 6)),
        TableRows(component, ids, draw(num, lookups, 4)),
        OuterProducts(component, draw(num, positions, 4), draw(num, positions, 6)),
    )
    unmerged, merged = Gradient(component, terms), merge_terms(component, terms)
    assert len(merged.terms) == 2
    expected = flatten(unmerged).square().sum(1)
    torch.testing.assert_close(flatten(merged), flatten(unmerged), rtol=EXACT, atol=EXACT)
    torch.testing.assert_close(merged.sq_norms, expected, rtol=EXACT, atol=EXACT)
    torch.testing.assert_close(
        Gradient(component, terms).sq_norms, expected, rtol=EXACT, atol=EXACT
    )


def test_a_gradient_that_cancels_has_a_norm_and_no_nan() -> None:
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.Flatten(), nn.Linear(128, 1))

    class Cancelling(Regression):
        def losses(self, batch: Any) -> Tensor:
            # The gradients at the two positions are opposite and the inputs are equal.
            hidden = self.model.get_submodule("0")(batch[0])
            return ((hidden[:, 0] - hidden[:, 1]) * batch[1]).sum(1)

    inputs = torch.randn(50, 1, 64, generator=generator).expand(50, 2, 64)
    targets = torch.randn(50, 64, generator=generator)
    data = list(zip(inputs, targets, strict=True))
    norms = run_pass(Cancelling(model), data, [GradientNorm()]).columns["grad_norm"]
    assert (norms < 0.1).all()


# What a capture leaves alone.


def state_of(model: nn.Module) -> list[Any]:
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    modes = [m.training for m in model.modules()]
    return [modes, hooks, [(p.requires_grad, p.grad) for p in model.parameters()]]


@pytest.mark.parametrize("name", ["mlp-inplace-relu", "gpt2-tied", "gpt2-checkpoint-reentrant"])
def test_the_model_is_left_as_it_was(name: str) -> None:
    task, examples = cases.build(name, 2)
    next(task.model.parameters()).requires_grad_(False)
    before = state_of(task.model)
    run_pass(task, examples, [GradientNorm()])
    assert state_of(task.model) == before


def test_the_model_is_left_as_it_was_when_the_forward_raises() -> None:
    class Failing(Classification):
        def losses(self, batch: Any) -> Tensor:
            super().losses(batch)
            raise RuntimeError("no such luck")

        def statistics(self, batch: Any) -> dict[str, Tensor]:
            return {"loss": self.losses(batch)}

    task, examples = cases.build("mlp-inplace-relu", 2)
    before = state_of(task.model)
    with pytest.raises(RuntimeError, match="no such luck"):
        run_pass(Failing(task.model), examples, [GradientNorm()])
    assert state_of(task.model) == before


def test_the_model_is_left_as_it_was_when_an_observer_raises() -> None:
    task, examples = cases.build("gpt2-tied", 2)
    before = state_of(task.model)
    capture = Capture(task.model, find_components(task.model))

    def fail(gradient: Gradient) -> None:
        raise RuntimeError(gradient.component.name)

    with pytest.raises(RuntimeError, match=r"lm_head|wte|ln_f"), capture.hooks():
        losses = capture.forward(lambda: task.losses(task.collate(examples)), 2)
        capture.backward(losses, fail)
    assert state_of(task.model) == before


def test_no_weight_gradient_is_computed_while_capturing() -> None:
    task, examples = cases.build("gpt2-tied", 2)
    capture = Capture(task.model, find_components(task.model))
    wanted: list[bool] = []
    with capture.hooks():
        wanted += [parameter.requires_grad for parameter in task.model.parameters()]
        losses = capture.forward(lambda: task.losses(task.collate(examples)), 2)
        capture.backward(losses, lambda gradient: None)
    assert not any(wanted)
    assert all(parameter.grad is None for parameter in task.model.parameters())


def test_each_component_is_handed_on_once() -> None:
    for name in cases.MODELS:
        task, examples = cases.build(name, 2)
        capture = Capture(task.model, find_components(task.model))
        seen: Counter[str] = Counter()
        with capture.hooks():
            losses = capture.forward(partial(task.losses, task.collate(examples)), 2)
            capture.backward(losses, lambda g, seen=seen: seen.update([g.component.name]))
        assert set(seen.values()) == {1}, name


def test_a_second_backward_from_one_forward_gives_the_same_gradients() -> None:
    task, examples = cases.build("gpt2-tied", 2)
    capture = Capture(task.model, find_components(task.model))
    first: dict[str, Gradient] = {}
    second: dict[str, Gradient] = {}
    with capture.hooks():
        losses = capture.forward(lambda: task.losses(task.collate(examples)), 2)
        capture.backward(losses, lambda g: first.update({g.component.name: g}), again=True)
        capture.backward(2 * losses, lambda g: second.update({g.component.name: g}))
    assert set(first) == set(second)
    for name, gradient in first.items():
        torch.testing.assert_close(2 * flatten(gradient), flatten(second[name]))


# What is looked at.


def test_an_embedding_keeps_only_the_rows_that_were_looked_up() -> None:
    task, examples = cases.build("used-twice", 2)
    (term,) = capture_all(task, examples)["table"].terms
    assert isinstance(term, TableRows)
    assert term.output_grads.shape == (2, 12, 4)
    assert term.ids.shape == (2, 12)


def test_a_tied_head_is_one_component_of_two_terms() -> None:
    task, examples = cases.build("gpt2-tied", 2)
    gradient = capture_all(task, examples)["transformer.wte"]
    assert {type(term) for term in gradient.terms} == {OuterProducts, TableRows}
    assert gradient.component.kind == "mixed"


def test_layers_that_read_one_tensor_share_an_input_key() -> None:
    task, examples = cases.build("llama-tied", 2)
    found = capture_all(task, examples)
    keys = {
        name.rpartition(".")[2]: term.input_key
        for name, gradient in found.items()
        for term in gradient.terms
        if "layers.0" in name and isinstance(term, OuterProducts)
    }
    assert keys["q_proj"] == keys["k_proj"] == keys["v_proj"] != keys["o_proj"]
    assert keys["gate_proj"] == keys["up_proj"] != keys["down_proj"]


def test_frozen_parameters_are_left_out() -> None:
    task, examples = cases.build("mlp-layernorm-subclass", 2)
    frozen = ("0.weight", "1.bias", "5.bias")
    for name, parameter in task.model.named_parameters():
        parameter.requires_grad_(name not in frozen)
    expected = gradients_one_by_one(task, examples)
    dense = materialized(capture_all(task, examples))
    assert set(dense) == set(expected) == {"0.bias", "1.weight", "3.weight", "3.bias", "5.weight"}
    for name, values in expected.items():
        torch.testing.assert_close(dense[name], values, rtol=EXACT, atol=EXACT)


@pytest.mark.parametrize(
    ("layers", "components"),
    [
        (None, ["0", "1.weight", "1.bias", "3", "5"]),
        ("3", ["3"]),
        (["0", "1.weight"], ["0", "1.weight"]),
        (["1*"], ["1.weight", "1.bias"]),
        (["*.bias"], ["0.bias", "1.bias", "3.bias", "5.bias"]),
    ],
    ids=["all", "text", "names", "star", "parameters"],
)
def test_layers_are_chosen_by_pattern(layers: Any, components: list[str]) -> None:
    model = cases.mlp()
    assert list(find_components(model, layers).components) == components


def test_a_tied_parameter_answers_to_both_its_names() -> None:
    model = cases.gpt2()
    head = find_components(model, "lm_head")
    assert list(head.components) == list(find_components(model, "transformer.wte").components)
    assert len(head.uses) == 2


def test_kinds_of_components_can_be_chosen() -> None:
    model = nn.Sequential(nn.Embedding(5, 4), nn.LayerNorm(4), nn.Linear(4, 3), nn.LSTM(3, 2))
    assert list(find_components(model, kinds=["linear"]).components) == ["2"]
    assert list(find_components(model, kinds=["table", "vector"]).components) == [
        "0",
        "1.weight",
        "1.bias",
    ]


def test_chosen_layers_have_the_same_gradients_as_among_all() -> None:
    for name in ("gpt2-tied", "gpt2-checkpoint-plain", "llama-left-padding", "convnet-zeros"):
        task, examples = cases.build(name, 2)
        everything = capture_all(task, examples)
        some = [component for component in everything if "1" in component][:4]
        for component, gradient in capture_all(task, examples, some).items():
            torch.testing.assert_close(
                flatten(gradient), flatten(everything[component]), rtol=EXACT, atol=EXACT
            )


# Refusals.


class Wrapped(nn.Module):
    """Applies a layer and takes what it gives first."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer, self.head = layer, nn.Linear(4, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        output = self.layer(inputs)
        return self.head(output[0] if isinstance(output, tuple) else output)


VECTORS = [(torch.ones(4), 0), (torch.zeros(4), 1)]


class Random(nn.Module):
    """A stray parameter and a forward that nothing can repeat."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(4))
        self.calls = 0

    def forward(self, inputs: Tensor) -> Tensor:
        self.calls += 1
        if self.calls > 3:
            raise RuntimeError("once is enough")
        return inputs * self.scale


def test_a_module_that_cannot_run_again_is_refused_by_name() -> None:
    task = Classification(Wrapped(Random()).eval())
    message = r"must run again.*'layer' \(Random\) does not: once is enough.*Leave it out"
    with pytest.raises(UnsupportedLayerError, match=message):
        run_pass(task, VECTORS, [GradientNorm()])


def test_an_embedding_bag_that_rescales_its_rows_is_refused_by_name() -> None:
    with pytest.raises(UnsupportedLayerError, match=r"max_norm=None.*The layer is 'layer'"):
        find_components(Wrapped(nn.EmbeddingBag(4, 4, max_norm=1.0)))


def test_an_embedding_with_more_parameters_is_refused_by_name() -> None:
    class Biased(nn.Embedding):
        def __init__(self) -> None:
            super().__init__(5, 4)
            self.bias = nn.Parameter(torch.ones(4))

    with pytest.raises(UnsupportedLayerError, match=r"'layer' \(Biased\) has the parameters"):
        find_components(Wrapped(Biased()))


def test_a_layer_without_a_rule_may_be_frozen_or_left_out() -> None:
    model = Wrapped(nn.PReLU())
    assert list(find_components(model, "head").components) == ["head"]
    model.layer.requires_grad_(False)
    assert list(find_components(model).components) == ["head"]


def test_dropout_that_is_on_is_refused() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.1), nn.Linear(4, 3))
    with pytest.raises(NonDeterministicError, match=r"layer '1' is in training mode with p=0\.1"):
        run_pass(Classification(model), VECTORS, [GradientNorm()])


@pytest.mark.parametrize(
    "layer",
    [nn.MultiheadAttention(4, 2, dropout=0.25), nn.LSTM(4, 4, num_layers=2, dropout=0.25)],
    ids=["attention", "recurrent"],
)
def test_dropout_inside_a_layer_is_refused(layer: nn.Module) -> None:
    check_evaluation_mode(layer.eval())
    with pytest.raises(NonDeterministicError, match=r"is in training mode with p=0\.25"):
        check_evaluation_mode(layer.train())


def test_a_lazy_layer_before_its_first_call_is_refused() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says that lazy layers may change
        model = nn.Sequential(nn.LazyLinear(3))
    with pytest.raises(UnsupportedLayerError, match=r"'0.weight' is that of a lazy layer"):
        find_components(model)


def test_dropout_without_a_layer_is_refused() -> None:
    class Noisy(nn.Linear):
        def forward(self, inputs: Tensor) -> Tensor:  # pyright: ignore
            return super().forward(nn.functional.dropout(inputs, 0.5))

    with pytest.raises(NonDeterministicError, match="must not depend on chance"):
        run_pass(Classification(Noisy(64, 3)), [(torch.ones(64), 0)], [GradientNorm()])


@pytest.mark.parametrize(
    "norm",
    [nn.BatchNorm1d(4), nn.BatchNorm1d(4, track_running_stats=False).eval()],
    ids=["training", "no-running-statistics"],
)
def test_batch_norm_over_the_batch_is_refused(norm: nn.Module) -> None:
    with pytest.raises(NonDeterministicError, match=r"batch norm must be in evaluation mode"):
        check_evaluation_mode(nn.Sequential(norm))


def test_a_loss_averaged_over_the_batch_is_refused() -> None:
    class Averaged(Classification):
        def losses(self, batch: Any) -> Tensor:
            losses = super().losses(batch)
            return losses / len(losses)

        def statistics(self, batch: Any) -> dict[str, Tensor]:
            return {"loss": self.losses(batch)}

    with pytest.raises(NonDeterministicError, match=r"the loss of an example must not depend"):
        run_pass(Averaged(nn.Linear(4, 3)), VECTORS, [GradientNorm()])


def test_a_loss_of_the_whole_batch_is_refused() -> None:
    class Total(Classification):
        def statistics(self, batch: Any) -> dict[str, Tensor]:
            return {"loss": super().losses(batch).mean()}

    with pytest.raises(NonDeterministicError, match=r"one loss an example.*Got shape \(\)"):
        run_pass(Total(nn.Linear(4, 3)), VECTORS, [GradientNorm()])


def test_an_input_that_is_overwritten_is_refused() -> None:
    class Overwriting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 3)

        def forward(self, inputs: Tensor) -> Tensor:
            hidden = torch.tanh(self.first(inputs))
            output = self.second(hidden)
            hidden.mul_(2)
            return output

    with pytest.raises(UnsupportedLayerError, match=r"'second' was overwritten in place.*x = x"):
        run_pass(Classification(Overwriting()), VECTORS, [GradientNorm()])


@pytest.mark.parametrize(
    "settings", [{"max_norm": 1.0}, {"scale_grad_by_freq": True}], ids=["max-norm", "frequency"]
)
def test_an_embedding_that_mixes_examples_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedLayerError, match=r"scale_grad_by_freq=False` and `max_norm="):
        find_components(nn.Sequential(nn.Embedding(5, 4, **settings)))


def test_a_layer_without_examples_in_no_module_that_has_them_is_refused() -> None:
    class Outside(Classification):
        def logits_and_labels(self, batch: Any) -> tuple[Tensor, Tensor]:
            table, head = self.model.get_submodule("0"), self.model.get_submodule("1")
            return head((batch[0][:, None] * table(torch.arange(4))).tanh().sum(1)), batch[1]

    data = [(torch.ones(4), 0), (torch.arange(4.0), 1)]
    model = nn.Sequential(nn.Embedding(4, 4), nn.Linear(4, 3))
    with pytest.raises(UnsupportedLayerError, match=r"'0' gives one for the whole batch, in 0 "):
        run_pass(Outside(model), data, [GradientNorm()])


def test_examples_that_are_mixed_are_refused() -> None:
    class Mixing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(4, 3)

        def forward(self, inputs: Tensor) -> Tensor:
            return self.head(inputs - inputs.mean(0))

    data = [(torch.ones(4), 0), (torch.arange(4.0), 1)]
    with pytest.raises(NonDeterministicError, match="keep the examples on the first axis"):
        run_pass(Classification(Mixing()), data, [GradientNorm()])


def test_a_weight_that_is_used_behind_its_layers_back_is_refused() -> None:
    class Sneaky(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.head = nn.Linear(4, 4), nn.Linear(4, 3)

        def forward(self, inputs: Tensor) -> Tensor:
            return self.head(nn.functional.linear(inputs, self.first.weight).tanh())

    with pytest.raises(UnsupportedLayerError, match=r"own forward.*'first'"):
        run_pass(Classification(Sneaky()), VECTORS, [GradientNorm()])
    # A norm whose rule runs the module itself.
    beside_a_norm = nn.Sequential(LlamaRMSNorm(4), Sneaky())
    with pytest.raises(UnsupportedLayerError, match=r"own forward.*'1.first'"):
        run_pass(Classification(beside_a_norm), VECTORS, [GradientNorm()])


def test_a_checkpointed_layer_that_no_gradient_reaches_is_refused() -> None:
    task, examples = cases.build("checkpoint-reentrant", 2)
    with (
        pytest.warns(UserWarning, match="Gradients will be None"),
        pytest.raises(UnsupportedLayerError, match=r"'block.0' did not.*use_reentrant=False"),
    ):
        capture_all(task, examples, ["block.0"])


def test_a_model_without_trainable_parameters_is_refused() -> None:
    model = nn.Linear(4, 3).requires_grad_(False)
    with pytest.raises(ValueError, match=r"at least one trainable parameter\. Got none"):
        find_components(model)
    with pytest.raises(ValueError, match=r"matches \['nothing'\]"):
        find_components(nn.Linear(4, 3), "nothing")


def test_a_bias_alone_is_a_vector() -> None:
    model = nn.Sequential(nn.Conv2d(2, 4, 3, groups=2), nn.Flatten(), nn.Linear(4, 3)).double()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.endswith("bias"))
    examples = [(torch.randn(2, 3, 3).double(), 1) for _ in range(3)]
    task = Classification(model)
    found = capture_all(task, examples)
    assert all(isinstance(g.terms[0], Vectors) for g in found.values())
    for name, values in gradients_one_by_one(task, examples).items():
        torch.testing.assert_close(materialized(found)[name], values, rtol=EXACT, atol=EXACT)
