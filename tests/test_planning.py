"""What jobs will take: counted from shapes, held to what PyTorch counts while they run."""

import json
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import GPT2Config, LlamaConfig, LlamaForCausalLM

from gradsift.cli import main
from gradsift.machines import MeasuredMachine, find_machine, seconds_of
from influence import (
    Product,
    Work,
    forward_and_backward,
    make_plan,
    plan_shapes,
    shape_of_language_model,
)
from projections import CausalLM, DataError, PassSettings

CONFIG = LlamaConfig(
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    vocab_size=50,
    max_position_embeddings=32,
)


def test_a_training_step_computes_what_pytorch_counts() -> None:
    torch.manual_seed(0)
    model = LlamaForCausalLM(CONFIG)
    model.set_attn_implementation("eager")
    tokens = torch.randint(0, 50, (3, 16))
    with FlopCounterMode(display=False) as counter:
        model(input_ids=tokens, labels=tokens, use_cache=False).loss.backward()
    shape = shape_of_language_model(CONFIG, num_tokens=16)
    step = forward_and_backward(shape, batch=3, weights=True).times(3)
    attention = sum(p.operations for p in step.products if p.inner == 64 and p.rows == 16)
    # Eager attention computes both halves of the triangle, and nothing twice.
    count = step.operations - attention + attention * 2 * 6 / 7
    # The first layer's inputs need no gradient only if the table does not either.
    assert 2 * count == pytest.approx(counter.get_total_flops(), rel=0.01)
    assert shape.num_parameters == sum(value.numel() for value in model.parameters())


def test_shapes_of_a_configuration_are_those_of_the_model() -> None:
    model = LlamaForCausalLM(CONFIG).eval()
    rows = [{"input_ids": list(range(16))}] * 4
    settings = PassSettings(layers=("*_proj",))
    counted = make_plan(CausalLM(model), rows, memory="1GB", num_queries=2, settings=settings)
    shape = shape_of_language_model(CONFIG, num_tokens=16, layers=["*_proj"])
    planned = plan_shapes(shape, 4, memory="1GB", num_queries=2)
    sizes = [
        {layer.name: (layer.positions, layer.num_in, layer.num_out) for layer in plan.layers}
        for plan in (planned, counted)
    ]
    assert sizes[0] == sizes[1]
    # One goes through the layers forward and one backward, so that others come second.
    shared = [sum(layer.shares_input for layer in plan.layers) for plan in (planned, counted)]
    assert shared == [6, 6]
    assert [stage.num_bytes for stage in planned.stages] == [
        stage.num_bytes for stage in counted.stages
    ]
    with pytest.raises(ValueError, match="`layers` must match one of the 15 linear maps"):
        shape_of_language_model(CONFIG, num_tokens=4, layers=["*nothing*"])


def test_biases_are_inputs_of_their_own() -> None:
    config = GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=20)
    shape = shape_of_language_model(config, num_tokens=4, layers=["*c_attn"])
    assert [(layer.num_in, layer.num_out) for layer in shape.layers] == [(9, 24)]


def test_more_devices_share_the_passes_and_the_largest_matrices(tmp_path: Path) -> None:
    CONFIG.save_pretrained(tmp_path)
    hours = {}
    for devices in (1, 4):
        out = tmp_path / f"{devices}.json"
        words = ["plan", "--model", tmp_path, "--num-examples", 1000, "--num-tokens", 16]
        words += ["--machine", "h100", "--dtype", "bfloat16", "--devices", devices, "--out", out]
        assert main([str(word) for word in words]) == 0
        hours[devices] = {s["stage"]: s["hours"] for s in json.loads(out.read_text())}
    for stage, alone in hours[1].items():
        if stage != "eigendecompositions":
            assert hours[4][stage] == pytest.approx(alone / 4)
    assert hours[4]["eigendecompositions"] <= hours[1]["eigendecompositions"] / 3


@pytest.mark.parametrize("together", [1, 3])
def test_rates_are_measured_once_and_turn_counts_into_seconds(together: int) -> None:
    machine = MeasuredMachine(torch.device("cpu"))
    product = Product(64, 32, 16, 64 * 32 * 16, together=together)
    first = machine.product_rate(product)
    assert machine.product_rate(product) == first > 0
    work = Work((product,), moved=1e6, scattered=1e4, decompositions=(8,))
    expected = product.operations / first + 1e6 / machine.bandwidth + 1e4 / machine.scatter_rate
    expected += machine.decomposition_seconds(8)
    assert seconds_of(work, machine) == pytest.approx(expected)
    twice = work.times(2) + work
    assert twice.operations == 3 * product.operations + 2 * 9 * 8**3
    seconds = machine.decomposition_seconds(10_000)
    assert machine.decomposition_seconds(20_000) == pytest.approx(8 * seconds)


def test_what_cannot_be_planned_is_said(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(ValueError, match="`machine` must be one of"):
        find_machine("abacus", torch.float32)
    with pytest.raises(DataError, match="`dtype` must be one of"):
        find_machine("h100", torch.float64)
    words = ["plan", "--model", str(tmp_path), "--num-tokens", "4", "--num-examples"]
    assert main([*words, "4"]) == 1
    assert "`model` must be a folder with the `config.json`" in capsys.readouterr().err
    CONFIG.save_pretrained(tmp_path)
    assert main([*words, "0"]) == 1
    assert "`num_examples` must be at least 1" in capsys.readouterr().err
    assert main([*words, "4", "--memory", "1KB"]) == 1
    assert "must hold the factors of every layer alone" in capsys.readouterr().err


def test_a_plan_names_the_stages_that_a_fit_has() -> None:
    shape = shape_of_language_model(CONFIG, num_tokens=8)
    names = [stage.name for stage in plan_shapes(shape, 2, memory="1GB").stages]
    assert names[:3] == ["covariances", "eigendecompositions", "corrected eigenvalues"]
