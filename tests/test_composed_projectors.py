"""Projections of several parts: two-sided ones of each layer, chosen components, wrappers."""

import cases
import numpy as np
import pytest
import torch
from contracts import COMPONENTS, gradient, project
from oracles import flatten
from torch import nn

from projections import (
    SJLT,
    SRHT,
    Component,
    Concatenated,
    GivenSide,
    Kronecker,
    KroneckerBlock,
    Masked,
    Parameter,
    PassSettings,
    Projector,
    RandomSide,
    Selected,
    Sketch,
    TensorSketch,
    coordinates,
    describe,
    find_components,
    normal_entries,
    random_kronecker,
    run_pass,
)
from projections.checks import check_patterns

EXACT = 1e-12
ALL = list(COMPONENTS.values())


# Two-sided.


def test_given_sides_rotate_the_gradient_of_a_layer_from_both_sides() -> None:
    grads = gradient("linear", 5)
    left, right = torch.randn(3, 2).double(), torch.randn(6, 4).double()
    block = KroneckerBlock(0, GivenSide(left), GivenSide(right))
    found = project(Kronecker(8, "given", {"fc": block}), grads)
    weight, bias = gradient("linear", 5).materialize().values()
    whole = torch.cat([weight, bias[..., None]], 2)  # the bias is one more input, always 1
    torch.testing.assert_close(found, (left.T @ whole @ right).flatten(1), rtol=EXACT, atol=EXACT)


def test_orthogonal_sides_keep_all_inner_products() -> None:
    grads = gradient("tied", 5)
    (left, _), (right, _) = torch.linalg.qr(torch.randn(9, 9)), torch.linalg.qr(torch.randn(4, 4))
    block = KroneckerBlock(0, GivenSide(left.double()), GivenSide(right.double()))
    found = project(Kronecker(36, "given", {"wte": block}), grads)
    expected = flatten(gradient("tied", 5))
    torch.testing.assert_close(found @ found.T, expected @ expected.T, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("num_dims", [5, 16, 17, 60, 118])
def test_components_share_the_dimensions_and_stay_within_them(num_dims: int) -> None:
    projector = random_kronecker(ALL, num_dims=num_dims, seed=0)
    ends = [block.start + block.num_dims for block in projector.blocks.values()]
    assert [block.start for block in projector.blocks.values()] == [0, *ends[:-1]]
    assert projector.num_dims == ends[-1] <= num_dims
    most = max(block.left.num_dims for block in projector.blocks.values())
    for name, block in projector.blocks.items():
        assert block.left.num_dims == min(most, COMPONENTS[kind_of(name)].parameters[0].shape[0])


def kind_of(name: str) -> str:
    return next(kind for kind, component in COMPONENTS.items() if component.name == name)


def test_as_many_dimensions_as_parameters_keep_the_gradient_as_it_is() -> None:
    projector = random_kronecker(ALL, num_dims=sum(c.size for c in ALL), seed=0)
    assert projector.num_dims == sum(component.size for component in ALL)
    parts = [gradient(kind, 4) for kind in COMPONENTS]
    rows = project(projector, *parts)
    expected = torch.cat([flatten(gradient(kind, 4)) for kind in COMPONENTS], 1)
    torch.testing.assert_close(rows @ rows.T, expected @ expected.T, rtol=EXACT, atol=EXACT)


def test_sides_do_not_depend_on_other_components() -> None:
    few = random_kronecker(ALL[:2], num_dims=8, seed=0)
    both = random_kronecker(ALL[1::-1], num_dims=8, seed=0)
    a = project(few, gradient("linear", 3))[:, few.blocks["fc"].start :][:, :4]
    b = project(both, gradient("linear", 3))[:, both.blocks["fc"].start :][:, :4]
    torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_a_component_that_was_not_planned_for_is_refused() -> None:
    projector = random_kronecker(ALL[:1], num_dims=4, seed=0)
    with pytest.raises(ValueError, match=r"'emb' is none of its 1\. Build it with the same"):
        project(projector, gradient("table", 2))


def test_two_sided_projections_say_what_they_hold() -> None:
    first = random_kronecker(ALL, num_dims=20, seed=0)
    assert describe(first) == describe(random_kronecker(ALL, num_dims=20, seed=0))
    others = [
        random_kronecker(ALL, num_dims=20, seed=1),
        random_kronecker(ALL, num_dims=20, seed=0, draw=normal_entries),
        random_kronecker(ALL[:-1], num_dims=20, seed=0),
    ]
    assert all(describe(other) != describe(first) for other in others)


# Masks.


def test_a_mask_as_wide_as_the_layers_changes_nothing() -> None:
    sketch = SJLT(num_dims=16, seed=3)
    for kind in COMPONENTS:
        found = project(Masked(projector=sketch, kept=100, seed=0), gradient(kind, 5))
        expected = project(sketch, gradient(kind, 5))
        torch.testing.assert_close(found, expected, rtol=EXACT, atol=EXACT)


def test_a_mask_keeps_some_rows_and_columns_scaled() -> None:
    component = COMPONENTS["linear"]
    masked = Masked(projector=coordinates([SMALL]), kept=2, seed=0)
    found = project(masked, gradient("linear", 4))
    weight, bias = gradient("linear", 4).materialize().values()
    scaled = (weight * (3 / 2 * 5 / 2) ** 0.5).flatten(1), bias * (3 / 2) ** 0.5
    for column in found[:, :4].T:
        assert any(torch.allclose(column, one) for one in scaled[0].T)
    for column in found[:, 4:].T:
        assert any(torch.allclose(column, one) for one in scaled[1].T)
    assert component.size == 18


SMALL = Component("fc", (Parameter("fc.weight", (2, 2)), Parameter("fc.bias", (2,))))


# Names.


def test_only_components_that_match_are_projected() -> None:
    sketch = SJLT(num_dims=16, seed=3)
    chosen = Selected(projector=sketch, patterns=("f?", "*.bias", "norm.*"))
    parts = [gradient(kind, 5) for kind in COMPONENTS]
    expected = project(sketch, gradient("linear", 5), gradient("vector", 5))
    torch.testing.assert_close(project(chosen, *parts), expected, rtol=EXACT, atol=EXACT)
    assert [chosen.keeps(component) for component in ALL] == [True, False, False, True, False]


def test_coordinates_are_kept_as_they_are() -> None:
    kept = coordinates([COMPONENTS["table"], COMPONENTS["linear"], COMPONENTS["tied"]])
    parts = [gradient(kind, 5) for kind in COMPONENTS]
    expected = torch.cat([flatten(gradient(kind, 5)) for kind in ("table", "linear", "tied")], 1)
    torch.testing.assert_close(project(kept, *parts), expected, rtol=EXACT, atol=EXACT)


def test_projections_stand_side_by_side() -> None:
    parts = [gradient(kind, 5) for kind in COMPONENTS]
    projectors = (SJLT(num_dims=8, seed=0), SRHT(num_dims=16, seed=1), coordinates(ALL[:1]))
    found = project(Concatenated(projectors), *parts)
    expected = torch.cat([project(projector, *parts) for projector in projectors], 1)
    torch.testing.assert_close(found, expected, rtol=EXACT, atol=EXACT)


def test_wrappers_describe_what_they_hold() -> None:
    sketch = SJLT(num_dims=8, seed=0)
    wrapped = [
        Selected(projector=sketch, patterns=("a",)),
        Selected(projector=sketch, patterns=("b",)),
        Selected(projector=SRHT(num_dims=8, seed=0), patterns=("a",)),
        Masked(projector=sketch, kept=3, seed=0),
        Concatenated((sketch, sketch)),
    ]
    texts = [repr(describe(projector)) for projector in wrapped]
    assert len(set(texts)) == len(texts)


def test_a_model_has_its_coordinates_in_the_order_of_its_layers() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3))
    kept = coordinates(find_components(model).components.values())
    assert kept.starts == {"0.weight": 0, "0.bias": 6, "1.weight": 9, "1.bias": 12}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Selected(projector=SJLT(num_dims=8, seed=0), patterns=()), "at least one"),
        (lambda: check_patterns("patterns", "*.mlp"), r"Got '\*\.mlp'"),
        (lambda: Concatenated(()), "`projectors` must hold at least one"),
        (lambda: Masked(projector=SJLT(num_dims=8, seed=0), kept=0, seed=0), "`kept` must be at"),
        (lambda: random_kronecker(ALL, num_dims=4, seed=0), r"must be in \[5, 118\] \(from one"),
        (
            lambda: RandomSide(name="fc", size=3, num_dims=4, seed=0),
            r"`num_dims` must be in \[1, 3\] \(the features of fc\)",
        ),
    ],
    ids=["no-pattern", "one-string", "none", "mask", "too-few", "side"],
)
def test_the_message_names_the_argument_and_the_bound(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


# One pass.


def run_and_count(projectors: dict[str, Projector]) -> tuple[dict[str, np.ndarray], list[str]]:
    """The rows of a pass over a fresh model, and each time its first layer was run or reached."""
    task, examples = cases.build("gpt2-tied", 5)
    calls: list[str] = []
    block = task.model.get_submodule("transformer.h.0.mlp.c_fc")
    block.register_forward_hook(lambda *_: calls.append("forward"))
    block.register_full_backward_hook(lambda *_: calls.append("backward"))
    columns = [Sketch(projector, name) for name, projector in projectors.items()]
    table = run_pass(task, examples, columns, settings=PassSettings(batch_size=2))
    return dict(table.columns), calls


def test_several_projections_of_a_pass_cost_one_forward_and_one_backward() -> None:
    task, _ = cases.build("gpt2-tied", 5)
    components = list(find_components(task.model).components.values())
    projectors = {
        "sjlt": SJLT(num_dims=32, seed=0),
        "srht": SRHT(num_dims=32, seed=0),
        "tensor": TensorSketch(num_dims=32, seed=0),
        "two-sided": random_kronecker(components, num_dims=200, seed=0),
        "whole": coordinates(components),
    }
    together, calls = run_and_count(projectors)
    # The checks before a pass run forward more often than backward.
    assert calls.count("forward") >= calls.count("backward") > 0
    for name, projector in projectors.items():
        alone, own = run_and_count({name: projector})
        assert own == calls
        np.testing.assert_allclose(together[name], alone[name], rtol=EXACT, atol=EXACT)
