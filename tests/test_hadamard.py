"""The fast transform is the product with the matrix, and the SRHT is what its docstring says."""

import pytest
import torch
from contracts import COMPONENTS, gradient, project
from oracles import projection_matrix

from projections import SRHT, Component, Parameter, srht
from projections.hadamard import hadamard, next_power_of_two, walsh_hadamard

EXACT = 1e-12


@pytest.mark.parametrize("power", range(13))
def test_the_transform_is_the_product_with_the_matrix(power: int) -> None:
    rows = torch.randn(3, 1 << power, dtype=torch.float64)
    common = torch.arange(1 << power)[:, None] & torch.arange(1 << power)
    parity = sum((common >> bit) & 1 for bit in range(13))
    matrix = (1 - 2 * (torch.as_tensor(parity) % 2)).double()
    torch.testing.assert_close(walsh_hadamard(rows), rows @ matrix, rtol=EXACT, atol=1e-9)


@pytest.mark.parametrize("size", [1, 2, 64])
def test_the_matrix_is_orthogonal_up_to_its_size(size: int) -> None:
    matrix = hadamard(size, "cpu")
    assert torch.equal(matrix @ matrix, size * torch.eye(size))
    assert torch.equal(matrix, matrix.T)


@pytest.mark.parametrize(("number", "power"), [(1, 1), (2, 2), (3, 4), (64, 64), (65, 128)])
def test_the_next_power_of_two_is_not_below(number: int, power: int) -> None:
    assert next_power_of_two(number) == power


def test_one_block_keeps_all_inner_products() -> None:
    component = Component("short", (Parameter("short", (30,)),), "vector")
    matrix = projection_matrix(SRHT(num_dims=32, seed=4), component)
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(30, dtype=torch.float64))


def test_entries_have_one_size() -> None:
    for kind, component in COMPONENTS.items():
        matrix = projection_matrix(SRHT(num_dims=6, seed=1), component)
        torch.testing.assert_close(matrix.abs(), torch.full_like(matrix, 6**-0.5), msg=kind)


@pytest.mark.parametrize("kind", COMPONENTS)
def test_chunks_do_not_change_the_map(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    projector = SRHT(num_dims=6, seed=1)
    whole = project(projector, gradient(kind, 5))
    monkeypatch.setattr(srht, "CHUNK_ENTRIES", {"cpu": 1})
    torch.testing.assert_close(project(projector, gradient(kind, 5)), whole, rtol=EXACT, atol=EXACT)


@pytest.mark.parametrize("num_dims", [0, 65537])
def test_the_number_of_dimensions_has_its_bounds(num_dims: int) -> None:
    with pytest.raises(ValueError, match=rf"`num_dims` must be in \[1, 65536\]\. Got {num_dims}\."):
        SRHT(num_dims=num_dims, seed=0)
