"""Inner products of gradients, pair by pair, whichever way they are computed."""

import cases
import contracts
import pytest
import torch
from oracles import flatten
from test_layers import EXACT, capture_all
from torch import Tensor

from projections import (
    Component,
    Formed,
    Gradient,
    OuterProducts,
    Parameter,
    compact,
    find_heads,
    pair_products,
    worth_forming,
)

PAIRS = torch.tensor([[0, 0], [2, 1], [0, 1], [1, 1], [2, 0]])


def halves(gradient: Gradient) -> tuple[Gradient, Gradient]:
    """The first three examples and the other two."""
    from projections.per_example import examples_of

    return examples_of(gradient, slice(0, 3)), examples_of(gradient, slice(3, 5))


def directly(left: Gradient, right: Gradient) -> Tensor:
    """The same products by formed gradients, all of them."""
    products = flatten(left) @ flatten(right).T
    return products[PAIRS[:, 0], PAIRS[:, 1]]


@pytest.mark.parametrize("name", cases.MODELS)
def test_products_of_pairs_are_those_of_the_formed_gradients(name: str) -> None:
    task, examples = cases.build(name, 5)
    for gradient in capture_all(task, examples).values():
        left, right = halves(gradient)
        expected = directly(left, right)
        for kept in (left, compact(left, form=False), compact(left, form=True)):
            found = pair_products(kept, right, PAIRS)
            torch.testing.assert_close(found, expected, rtol=EXACT, atol=EXACT)


@pytest.mark.parametrize("name", ["gpt2-tied", "llama-tied"])
def test_heads_have_products_that_add_up_to_those_of_their_layer(name: str) -> None:
    task, examples = cases.build(name, 5)
    whole = capture_all(task, examples)
    parts = capture_all(task, examples, heads=find_heads(task.model))

    def total(gradients: dict[str, Gradient]) -> Tensor:
        return torch.stack([pair_products(*halves(g), PAIRS) for g in gradients.values()]).sum(0)

    torch.testing.assert_close(total(parts), total(whole), rtol=EXACT, atol=EXACT)


@pytest.mark.parametrize("positions", [1, 3, 40])
@pytest.mark.parametrize("bias", [False, True])
def test_factors_and_entries_give_one_product(positions: int, bias: bool) -> None:
    parameters = [Parameter("fc.weight", (60, 50)), Parameter("fc.bias", (60,))][: 1 + bias]
    component = Component("fc", tuple(parameters))
    draw = torch.Generator().manual_seed(0)

    def some(count: int, length: int) -> Gradient:
        a = torch.randn(count, length, 50, generator=draw, dtype=torch.float64)
        g = torch.randn(count, length, 60, generator=draw, dtype=torch.float64)
        return Gradient(component, (OuterProducts(component, a, g),))

    left, right = some(3, positions), some(2, positions + 1)
    assert worth_forming(component, positions + 1) == (positions == 40)
    torch.testing.assert_close(
        pair_products(left, right, PAIRS), directly(left, right), rtol=EXACT, atol=EXACT
    )


@pytest.mark.parametrize("kind", ["linear", "table", "vector"])
def test_pieces_of_any_size_give_the_same_products(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    gradient = contracts.gradient(kind, 5)
    whole = pair_products(*halves(gradient), PAIRS)
    monkeypatch.setattr("projections.inner_products.PIECE_ENTRIES", 1)
    torch.testing.assert_close(pair_products(*halves(gradient), PAIRS), whole)


def test_tables_are_kept_as_the_rows_that_were_looked_up() -> None:
    gradient = contracts.gradient("table", 5)
    assert not worth_forming(gradient.component, 1000)
    kept = compact(gradient, form=False)
    assert type(kept.terms[0]) is type(gradient.terms[0])
    assert isinstance(compact(gradient, form=True).terms[0], Formed)
