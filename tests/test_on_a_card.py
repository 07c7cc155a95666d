"""What is computed on a card is what is computed on the processor."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from influence import EKFAC, Diagonal, GradientDot, retrieve_rows
from projections import (
    SJLT,
    SRHT,
    CausalLM,
    Gaussian,
    PassSettings,
    Projector,
    Rademacher,
    TensorSketch,
    index_gradients,
    query_rows,
)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a card"),
]
CLOSE = 1e-8  # float64, sums in another order


def task_on(device: str) -> CausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        vocab_size=30,
        attention_dropout=0.0,
    )
    model = LlamaForCausalLM(config).eval()
    return CausalLM(nn.Module.to(model, device, torch.float64))


def rows(count: int) -> list[dict[str, list[int]]]:
    generator = np.random.default_rng(0)
    lengths = generator.integers(2, 12, count)
    return [{"input_ids": generator.integers(3, 30, length).tolist()} for length in lengths]


@pytest.mark.parametrize("kind", [SJLT, SRHT, TensorSketch, Rademacher, Gaussian])
def test_a_projector_is_the_same_map(kind: Any, tmp_path: Path) -> None:
    projector: Projector = kind(num_dims=64, seed=3)
    found = [
        query_rows(task_on(device), rows(7), projector, settings=PassSettings(batch_size=3))
        for device in ("cpu", "cuda")
    ]
    np.testing.assert_allclose(found[0], found[1], rtol=1e-5, atol=1e-7)  # rows are float32


def test_a_store_that_was_built_on_a_card_is_asked_from_the_processor(tmp_path: Path) -> None:
    projector = SJLT(num_dims=64, seed=0)
    store = index_gradients(task_on("cuda"), rows(20), projector, path=tmp_path / "store")
    asked = query_rows(task_on("cpu"), rows(20)[:3], projector)
    top, _ = retrieve_rows(asked, store, GradientDot(), k=2)
    on_card = query_rows(task_on("cuda"), rows(20)[:3], projector)
    again, _ = retrieve_rows(on_card, store, GradientDot(), k=2)
    np.testing.assert_array_equal(top.ids, again.ids)


@pytest.mark.parametrize(
    "method", [EKFAC(seed=0), EKFAC(seed=0, fisher="empirical"), Diagonal(seed=0)]
)
def test_scores_and_self_influence_are_the_same(method: Any) -> None:
    train, queries = rows(12), rows(15)[12:]
    settings = PassSettings(layers=("*_proj",))
    found = []
    for device in ("cpu", "cuda"):
        task = task_on(device)
        fitted = method.fit(task, train, settings=settings)
        found.append(
            (
                fitted.scores(task, queries, train).values,
                fitted.self_influence(task, train).values,
            )
        )
    for left, right in zip(*found, strict=True):
        np.testing.assert_allclose(left, right, rtol=CLOSE, atol=CLOSE * np.abs(left).max())
