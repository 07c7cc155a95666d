"""Inner products with kept rows against float64, and what integers promise beyond that."""

import pytest
import torch

from projections import row_products
from projections.row_products import LARGEST, MOST_DIMS, RowProducts, multiplies_integers

SHAPES = [(1, 1, 1), (1, 300, 7), (3, 40, 130), (5, 1, 64), (0, 4, 3), (2, 0, 3), (2, 4, 0)]
TYPES = [torch.int8, torch.float16, torch.bfloat16, torch.float32]


def kept_rows(count: int, dims: int, dtype: torch.dtype) -> torch.Tensor:
    if dtype == torch.int8:
        return torch.randint(-128, 128, (count, dims)).to(dtype)
    return torch.randn(count, dims).to(dtype)


@pytest.fixture(params=[True, False], ids=["integers", "widened"])
def integers(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    if request.param and not multiplies_integers():
        pytest.skip("this processor has no products of int8 numbers")
    monkeypatch.setattr(row_products, "multiplies_integers", lambda: request.param)
    return request.param


@pytest.mark.usefixtures("integers")
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", TYPES)
def test_products_are_those_of_the_widened_rows(
    shape: tuple[int, int, int], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(row_products, "WIDENED_ENTRIES", 33)
    monkeypatch.setattr(row_products, "SUMS", 64)
    torch.manual_seed(0)
    num_queries, num_rows, dims = shape
    queries = torch.randn(num_queries, dims) * torch.logspace(-3, 3, dims)
    rows = kept_rows(num_rows, dims, dtype)
    found = torch.full((num_queries, num_rows), torch.nan)
    RowProducts(queries).write(rows, found)
    wide, exact = rows.double(), queries.double() @ rows.double().T
    largest = queries.abs().double().amax(1, keepdim=True) if dims else torch.zeros(num_queries, 1)
    bound = largest * (wide.abs().sum(1) / LARGEST + wide.norm(dim=1) * 1e-6)
    assert (found.double() - exact).abs().le(bound).all()


def test_a_query_of_whole_digits_is_multiplied_exactly(integers: bool) -> None:
    if not integers:
        pytest.skip("only integers are exact")
    torch.manual_seed(0)
    dims = 50_000  # sums beyond what float32 tells apart
    queries = torch.randint(-127, 128, (4, dims)).float()
    queries[:, 0] = 127
    rows = torch.randint(-128, 128, (9, dims)).to(torch.int8)
    exact = queries.double() @ rows.double().T
    found = torch.empty(4, 9)
    RowProducts(queries).write(rows, found)
    assert torch.equal(found, exact.float())
    torch.testing.assert_close(found.double(), exact, rtol=1e-7, atol=0)


def test_a_score_does_not_depend_on_the_rows_and_queries_beside_it(integers: bool) -> None:
    if not integers:
        pytest.skip("only integers are exact")
    torch.manual_seed(0)
    queries, rows = torch.randn(6, 500), kept_rows(70, 500, torch.int8)
    together, alone = torch.empty(6, 70), torch.empty(1, 1)
    RowProducts(queries).write(rows, together)
    RowProducts(queries[3:4]).write(rows[41:42], alone)
    assert alone.item() == together[3, 41].item()


def test_rows_whose_sums_may_not_fit_are_widened() -> None:
    dims = MOST_DIMS + 1
    queries, rows = torch.ones(1, dims), torch.full((2, dims), -128, dtype=torch.int8)
    found = torch.empty(1, 2)
    RowProducts(queries).write(rows, found)
    assert found.tolist() == [[-128.0 * dims] * 2]


@pytest.mark.parametrize("sums", ["inexact", "missing"])
def test_a_library_that_does_not_multiply_exactly_is_not_trusted(
    sums: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def saturated(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        if sums == "missing":
            raise RuntimeError("not on this machine")
        return (left.long() @ right.long()).clamp(-32768, 32767).int()

    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_vnni": True}, raising=False)
    monkeypatch.setattr(torch.ops.aten, "_int_mm", saturated)
    assert not multiplies_integers.__wrapped__()
