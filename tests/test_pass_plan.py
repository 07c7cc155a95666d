"""A plan of a pass counts what the pass will hold, from shapes."""

import pytest
import torch
from torch import nn

from projections import (
    SJLT,
    Classification,
    PassSettings,
    Rademacher,
    Regression,
    find_components,
    plan_pass,
)
from projections.pass_plan import saved_bytes


def perceptron() -> Regression:
    torch.manual_seed(0)
    return Regression(nn.Sequential(nn.Linear(20, 30), nn.Tanh(), nn.Linear(30, 2)).eval())


def data(count: int, width: int = 20) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(torch.randn(width), torch.randn(2)) for _ in range(count)]


def test_what_backward_needs_is_counted_once() -> None:
    task = perceptron()
    example = task.encode(data(1))[0]
    saved = sorted(saved_bytes(task, example, find_components(task.model)))
    assert 4 * 20 in saved  # what goes into the first layer
    assert saved.count(4 * 30) == 1  # tanh's output is the second layer's input


def test_activations_grow_with_the_examples_of_a_batch_and_nothing_else_does() -> None:
    task, projector = perceptron(), SJLT(num_dims=64, seed=0)
    plans = [
        plan_pass(task, data(100), projector, settings=PassSettings(batch_size=size))
        for size in (1, 2, 50)
    ]
    assert [plan.activations // plans[0].activations for plan in plans] == [1, 2, 50]
    assert len({(plan.maps, plan.rows) for plan in plans}) == 1
    assert plans[0].total < plans[1].total < plans[2].total


def test_rows_grow_with_the_shard_and_the_dimensions() -> None:
    task = perceptron()
    small = plan_pass(task, data(10), SJLT(num_dims=63, seed=0))
    assert small.rows == 2 * 10 * 64 * 4
    cut = plan_pass(task, data(10), SJLT(num_dims=63, seed=0), settings=PassSettings(shard_size=5))
    assert cut.rows == small.rows // 2


def test_maps_are_those_of_the_parameters_that_are_kept() -> None:
    task = perceptron()
    size = 20 * 30 + 30 + 30 * 2 + 2
    assert plan_pass(task, data(3), SJLT(num_dims=8, num_signs=2, seed=0)).maps == 2 * 4 * size
    assert plan_pass(task, data(3), Rademacher(num_dims=8, seed=0)).maps == 0
    only = PassSettings(layers=("0",))
    assert plan_pass(task, data(3), SJLT(num_dims=8, seed=0), settings=only).maps == 4 * 630


def test_the_model_is_as_it_was() -> None:
    task = Classification(nn.Linear(4, 3))
    plan_pass(task, [(torch.ones(4), 0)], SJLT(num_dims=8, seed=0))
    assert all(p.requires_grad for p in task.model.parameters())
    assert not task.model._forward_hooks


def test_an_empty_dataset_is_refused() -> None:
    with pytest.raises(ValueError, match=r"`data` must hold at least one example"):
        plan_pass(perceptron(), [], SJLT(num_dims=8, seed=0))
