"""Attention heads as components: their gradients are the parts of the whole layer's."""

from typing import Any

import cases
import layer_cases
import pytest
import torch
import transformers
from oracles import flatten
from test_layers import EXACT, capture_all
from torch import nn

from projections import (
    SJLT,
    CausalLM,
    GradientNorm,
    GradientStore,
    HeadSplit,
    PassSettings,
    Selected,
    Sketch,
    find_components,
    find_heads,
    head_slots,
    index_gradients,
    run_pass,
)


def neox() -> Any:
    config = transformers.GPTNeoXConfig(
        num_hidden_layers=1,
        num_attention_heads=2,
        hidden_size=8,
        intermediate_size=12,
        vocab_size=cases.VOCABULARY,
        max_position_embeddings=16,
    )
    return cases.finished(transformers.GPTNeoXForCausalLM(config))


MODELS: dict[str, Any] = {
    "gpt2": lambda: cases.build("gpt2-tied", 3),
    "llama-grouped-queries": lambda: cases.build("llama-tied", 3),
    "bert": lambda: cases.build("bert", 3),
    "t5": lambda: layer_cases.build("t5-tied", 3),
    "vit": lambda: layer_cases.build("vit", 3),
    "torch": lambda: layer_cases.build("attention", 3),
    "torch-separate": lambda: layer_cases.build("attention-separate-added", 3),
    "neox-interleaved": lambda: cases.texts(CausalLM(neox()), 3),
}


@pytest.mark.parametrize("name", MODELS)
def test_the_heads_put_together_are_the_whole_layer(name: str) -> None:
    task, examples = MODELS[name]()
    heads = find_heads(task.model)
    whole, parts = capture_all(task, examples), capture_all(task, examples, heads=heads)
    for split in heads:
        layer = whole[split.layers]
        weight, *bias = layer.materialize().values()
        pieces = [parts[f"{split.layers}[{slot}]"] for slot in split.slots]
        weights = [next(iter(piece.materialize().values())) for piece in pieces]
        axis = 1 if split.side == "output" else 2
        torch.testing.assert_close(torch.cat(weights, axis), weight, rtol=EXACT, atol=EXACT)
        if split.side == "output" and bias:
            biases = [list(piece.materialize().values())[1] for piece in pieces]
            torch.testing.assert_close(torch.cat(biases, 1), bias[0], rtol=EXACT, atol=EXACT)
        norms = torch.stack([piece.sq_norms for piece in pieces]).sum(0)
        if bias and split.side == "input":
            norms = norms + parts[layer.component.parameters[1].name].sq_norms
        torch.testing.assert_close(norms, layer.sq_norms, rtol=EXACT, atol=EXACT)


@pytest.mark.parametrize("name", ["gpt2", "neox-interleaved"])
def test_a_head_has_the_rows_that_the_model_gives_it(name: str) -> None:
    # Gradients of the query rows of a head vanish where nothing depends on its scores.
    task, examples = MODELS[name]()
    parts = capture_all(task, examples, heads=find_heads(task.model))
    layer = "transformer.h.0.attn.c_attn" if name == "gpt2" else "gpt_neox.layers.0.attention"
    layer += "" if name == "gpt2" else ".query_key_value"
    heads = {kind: parts[f"{layer}[{kind},1]"] for kind in "qkv"}
    # The bias of a key adds the same to all scores of a query, which softmax does not see.
    key_bias = list(heads["k"].materialize().values())[1]
    if name == "gpt2":  # rotations of neox make it count
        assert float(key_bias.abs().max()) < EXACT
    assert all(float(flatten(heads[kind]).abs().max()) > 0 for kind in "qv")


def test_heads_have_names_by_which_they_are_chosen() -> None:
    task, examples = MODELS["gpt2"]()
    heads = find_heads(task.model)
    chosen = ("transformer.h.0.attn.c_attn[q,1]", "*h.1.attn.c_proj")
    layout = find_components(task.model, chosen, heads=heads)
    assert list(layout.components) == [
        "transformer.h.0.attn.c_attn[q,1]",
        "transformer.h.1.attn.c_proj[o,0]",
        "transformer.h.1.attn.c_proj[o,1]",
        "transformer.h.1.attn.c_proj.bias",
    ]
    settings = PassSettings(heads=heads, layers=chosen[:1])
    alone = run_pass(task, examples, [GradientNorm()], settings=settings).columns["grad_norm"]
    parts = capture_all(task, examples, heads=heads)
    expected = parts[chosen[0]].sq_norms.sqrt()
    torch.testing.assert_close(torch.from_numpy(alone), expected, rtol=EXACT, atol=EXACT)


def test_heads_can_be_left_out_of_a_projection_by_name() -> None:
    task, examples = MODELS["gpt2"]()
    heads = find_heads(task.model)
    name = "transformer.h.0.attn.c_attn[v,0]"
    projector = SJLT(num_dims=32, seed=0)
    column = Sketch(Selected(projector=projector, patterns=(name,)))
    found = run_pass(task, examples, [column], settings=PassSettings(heads=heads)).columns["sketch"]
    settings = PassSettings(heads=heads, layers=(name,))
    expected = run_pass(task, examples, [Sketch(projector)], settings=settings).columns["sketch"]
    torch.testing.assert_close(torch.from_numpy(found), torch.from_numpy(expected))
    assert abs(found).max() > 0


def test_a_store_remembers_that_its_components_are_heads(tmp_path: Any) -> None:
    task, examples = MODELS["gpt2"]()
    settings = PassSettings(heads=find_heads(task.model))
    projector = SJLT(num_dims=8, seed=0)
    store = index_gradients(task, examples, projector, path=tmp_path / "s", settings=settings)
    assert isinstance(store, GradientStore)
    with pytest.raises(Exception, match="heads"):
        index_gradients(task, examples, projector, path=tmp_path / "s")


def test_a_layer_that_has_no_such_heads_is_refused() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6))
    split = HeadSplit(layers="0", slots=head_slots(q=4))
    with pytest.raises(ValueError, match=r"'0' is linear, 6 wide in 1 group.*there are 4 heads"):
        find_components(model, heads=[split])
    norm = HeadSplit(layers="1.weight", slots=head_slots(q=2))
    with pytest.raises(ValueError, match=r"'1.weight' is vector"):
        find_components(model, heads=[norm])
    with pytest.raises(ValueError, match=r"`slots` must be different names"):
        HeadSplit(layers="0", slots=("q,0", "q,0"))
    with pytest.raises(ValueError, match=r"`side` must be one of"):
        HeadSplit(layers="0", slots=("q,0",), side="middle")  # pyright: ignore


def test_a_model_whose_attention_is_unknown_is_refused() -> None:
    with pytest.raises(ValueError, match=r"known names.*Sequential has none.*HeadSplit"):
        find_heads(nn.Sequential(nn.Linear(4, 4)))


def test_curvature_takes_heads_as_linear_maps(tmp_path: Any) -> None:
    from influence import EKFAC, FittedCurvature

    task, examples = cases.build("gpt2-tied", 4)
    settings = PassSettings(heads=find_heads(task.model))
    fitted = EKFAC(seed=0, fisher="empirical").fit(task, examples, settings=settings)
    assert "transformer.h.0.attn.c_attn[k,1]" in fitted.layers
    assert "transformer.h.0.attn.c_attn" not in fitted.layers
    fitted.save(tmp_path / "curvature.safetensors")
    loaded = FittedCurvature.load(tmp_path / "curvature.safetensors")
    assert loaded.settings.heads == settings.heads
    own = fitted.self_influence(task, examples)
    again = loaded.self_influence(task, examples)
    torch.testing.assert_close(torch.as_tensor(own.values), torch.as_tensor(again.values))
