"""Per-example gradients of every layer rule, of what is replayed, and of real architectures."""

import warnings
from collections.abc import Sequence
from typing import Any

import cases
import layer_cases
import numpy as np
import pytest
import torch
import transformers
from oracles import flatten, gradients_one_by_one, traced_layout
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from projections import (
    SJLT,
    CausalLM,
    Gradient,
    GradientNorm,
    HeadSplit,
    MaskedLM,
    PassSettings,
    Sketch,
    TableRows,
    Task,
    Vectors,
    run_pass,
)
from projections.capture import Capture
from projections.factors import Formed

EXACT = 1e-10  # float64 rounding over sums of a few hundred terms
AUTOCAST = 0.05  # share of a gradient that bfloat16 may change, on models of two layers


def capture_all(
    task: Task, examples: Sequence[Any], *, heads: Sequence[HeadSplit] = ()
) -> dict[str, Gradient]:
    """Every component's gradient by its name."""
    found: dict[str, Gradient] = {}
    capture = Capture(task.model, traced_layout(task, examples, heads=heads))
    batch = task.collate(examples)
    with capture.hooks():
        losses = capture.forward(lambda: task.losses(batch), len(examples))
        capture.backward(losses, lambda g: found.setdefault(g.component.name, g) and None)
    return found


def assert_exact(task: Task, examples: Sequence[Any], tolerance: float) -> None:
    """Captured gradients, factored and formed, are those of autograd, one example at a time."""
    expected = gradients_one_by_one(task, examples)
    found = capture_all(task, examples)
    norms = {name: gradient.sq_norms for name, gradient in found.items()}
    dense = {name: value for g in found.values() for name, value in g.materialize().items()}
    assert set(dense) <= set(expected)
    for parameter, values in expected.items():
        got = dense.get(parameter, torch.zeros_like(values)).reshape_as(values)
        torch.testing.assert_close(got, values, rtol=tolerance, atol=tolerance, msg=parameter)
    for name, gradient in found.items():
        direct = flatten(gradient).square().sum(1)
        torch.testing.assert_close(norms[name], direct, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("num", [1, 5])
@pytest.mark.parametrize("name", [*layer_cases.LAYERS, *layer_cases.MODELS])
def test_gradients_equal_autograd_one_example_at_a_time(name: str, num: int) -> None:
    task, examples = layer_cases.build(name, num)
    assert_exact(task, examples, EXACT)


@pytest.mark.parametrize("name", [*layer_cases.LAYERS, *layer_cases.MODELS])
def test_a_pass_takes_the_model_and_has_the_norm_of_all_gradients(name: str) -> None:
    task, examples = layer_cases.build(name, 4)
    grads = gradients_one_by_one(task, examples)
    expected = torch.stack([v.reshape(4, -1).square().sum(1) for v in grads.values()]).sum(0).sqrt()
    settings = PassSettings(batch_size=3)
    total = run_pass(task, examples, [GradientNorm()], settings=settings).columns["grad_norm"]
    torch.testing.assert_close(torch.from_numpy(total), expected, rtol=EXACT, atol=EXACT)


@pytest.mark.parametrize("name", [*layer_cases.LAYERS, *layer_cases.MODELS])
def test_factored_gradients_project_as_formed_ones_do(name: str) -> None:
    task, examples = layer_cases.build(name, 3)
    projector = SJLT(num_dims=16, num_signs=2, seed=0)
    for gradient in capture_all(task, examples).values():
        component = gradient.component
        formed = Gradient(component, (Formed(component, tuple(gradient.materialize().values())),))
        factored, direct = torch.zeros(2, 3, 16, dtype=torch.float64)
        projector.project(gradient, factored)
        projector.project(formed, direct)
        torch.testing.assert_close(factored, direct, rtol=EXACT, atol=EXACT)


@pytest.mark.parametrize("name", layer_cases.LAYERS)
def test_a_batch_of_no_examples_has_no_gradients(name: str) -> None:
    task, examples = layer_cases.build(name, 2)
    layout = traced_layout(task, examples)
    inputs, labels = task.collate(examples)
    try:
        task.losses((inputs[:0], labels[:0]))
    except Exception as error:
        pytest.skip(f"torch itself has none here: {error}")
    capture, found = Capture(task.model, layout), []
    with capture.hooks():
        losses = capture.forward(lambda: task.losses((inputs[:0], labels[:0])), 0)
        capture.backward(losses, found.append)
    for gradient in found:
        assert gradient.sq_norms.shape == (0,)
        assert flatten(gradient).shape[0] == 0


def padded_to_nothing(task: Any, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """The batch with its last row all padding."""
    batch["attention_mask"][-1] = 0
    batch["labels"][-1] = -100
    return batch


@pytest.mark.parametrize("name", ["gpt2", "llama", "bert-masked", "t5-tied"])
def test_a_row_of_padding_has_a_gradient_of_zero(name: str) -> None:
    builders = {"gpt2": cases.gpt2, "llama": lambda: cases.llama(tied=True)}
    if name in builders:
        task, examples = cases.texts(CausalLM(builders[name]()), 4)
    else:
        task, examples = layer_cases.build(name, 4)
    layout, batch = traced_layout(task, examples), padded_to_nothing(task, task.collate(examples))
    capture, found = Capture(task.model, layout), []
    with capture.hooks():
        losses = capture.forward(lambda: task.losses(batch), 4)
        capture.backward(losses, found.append)
    norms = torch.stack([gradient.sq_norms for gradient in found]).sum(0)
    assert norms[-1] == 0
    assert (norms[:-1] > 0).all()


def test_one_token_beside_512_has_the_gradient_it_has_alone() -> None:
    config = transformers.BertConfig(
        num_hidden_layers=1,
        num_attention_heads=2,
        hidden_size=8,
        intermediate_size=12,
        vocab_size=cases.VOCABULARY,
        max_position_embeddings=512,
    )
    config.num_labels = 3
    model = cases.finished(transformers.BertForSequenceClassification(config))
    task = cases.PaddedOnTheRight(model, None)
    examples = [
        {"input_ids": layer_cases.tokens(length), "label": label}
        for label, length in enumerate((1, 512))
    ]
    assert_exact(task, examples, EXACT)


def test_sequences_of_one_position_have_gradients() -> None:
    task = MaskedLM(layer_cases.bert(), seed=0, mask_token=4, vocabulary=cases.VOCABULARY)
    assert_exact(task, task.encode([{"input_ids": [5]}, {"input_ids": [7]}]), EXACT)


# Settings of a pass.


@pytest.mark.parametrize("name", ["gpt2", "llama", "vit", "lstm", "attention", "positions"])
def test_gradients_under_autocast_are_near_those_in_full_precision(name: str) -> None:
    models = {"gpt2": cases.gpt2, "llama": lambda: cases.llama(tied=False)}
    if name in models:
        task, examples = cases.texts(CausalLM(models[name]().float()), 4)
    else:
        task, examples = layer_cases.build(name, 4)
        task.model.float()
        examples = [(x.float(), label) for x, label in examples]
    sketch = Sketch(SJLT(num_dims=4096, seed=0))
    full = run_pass(task, examples, [sketch]).columns["sketch"]
    settings = PassSettings(autocast="bfloat16")
    short = run_pass(task, examples, [sketch, GradientNorm()], settings=settings).columns
    assert short["sketch"].dtype == short["grad_norm"].dtype == np.float32
    # bfloat16 has 8 bits: 0.4 % an operation, a few per cent through a network.
    error = np.linalg.norm(full - short["sketch"], axis=1) / np.linalg.norm(full, axis=1)
    assert (error < AUTOCAST).all()
    assert (error > 0).all()


def test_an_unknown_autocast_is_refused() -> None:
    with pytest.raises(ValueError, match=r"`autocast` must be one of 'bfloat16'. Got 'float16'"):
        PassSettings(autocast="float16")  # pyright: ignore


class Checkpointed(nn.Module):
    """A block of attention, stray parameters and shared positions that is run again."""

    def __init__(self, *, reentrant: bool) -> None:
        super().__init__()
        self.block = nn.Sequential(
            layer_cases.Attending(batch_first=True), layer_cases.Positions(), layer_cases.Shifted()
        )
        self.reentrant = reentrant

    def forward(self, inputs: Tensor) -> Tensor:
        return checkpoint(self.block, inputs, use_reentrant=self.reentrant)  # pyright: ignore


@pytest.mark.parametrize("reentrant", [True, False])
def test_what_is_replayed_may_be_checkpointed(reentrant: bool) -> None:
    torch.manual_seed(0)
    model = Checkpointed(reentrant=reentrant)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the case finds the size of the head without gradients
        task, examples = layer_cases.layered(model, 3)
    assert_exact(task, examples, EXACT)


def test_a_layer_may_be_used_several_times_beside_its_replay() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.recurrent = nn.GRU(4, 4, batch_first=True)
            self.positions = layer_cases.Positions()

        def forward(self, inputs: Tensor) -> Tensor:
            hidden = self.recurrent(self.positions(inputs))[0]
            return self.recurrent(self.positions(hidden))[0]

    torch.manual_seed(0)
    assert_exact(*layer_cases.layered(Twice(), 3), EXACT)


def test_a_table_in_a_replay_keeps_only_the_rows_that_were_looked_up() -> None:
    class Many(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(100, 4)

        def forward(self, inputs: Tensor) -> Tensor:
            return inputs * self.table(torch.arange(5))

    torch.manual_seed(0)
    task, examples = layer_cases.layered(Many(), 3)
    (term,) = capture_all(task, examples)["layer.table"].terms
    assert isinstance(term, TableRows)
    assert term.output_grads.shape == (3, 5, 4)


def test_a_table_smaller_than_its_look_ups_becomes_a_vector() -> None:
    task, examples = layer_cases.build("t5-tied", 3)
    name = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias"
    (term,) = capture_all(task, examples)[name].terms
    assert isinstance(term, Vectors)
    assert term.values.shape == (3, 12)
