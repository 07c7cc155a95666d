"""The contract of projectors: linear, unbiased with a stated variance, the same map always."""

import itertools
from dataclasses import replace
from statistics import NormalDist, fmean

import pytest
import torch
from contracts import (
    COMPONENTS,
    KURTOSIS,
    LONG,
    MATRIX,
    PROJECTORS,
    RENAMED,
    gradient,
    project,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import basis, flatten, projection_matrix

from projections import (
    SJLT,
    Component,
    Formed,
    Gaussian,
    Gradient,
    OuterProducts,
    Parameter,
    Rademacher,
    TableRows,
    TensorSketch,
    Vectors,
    dense,
    factors,
    gaussian,
    sjlt,
    tensorsketch,
)
from projections.factors import Term
from projections.per_example import examples_of
from projections.philox import derive_key, philox

EXACT = 1e-12  # float64 rounding over sums of a few dozen terms
SINGLE = 1e-5  # float32 rounding of the same
NUM_SEEDS = 600
STANDARD_ERRORS = 4.0  # chance of a false alarm below 1e-4, and seeds are fixed

rows = pytest.mark.parametrize("row", PROJECTORS.values(), ids=list(PROJECTORS))
kinds = pytest.mark.parametrize("kind", COMPONENTS)


@kinds
def test_the_oracle_of_unit_vectors_is_the_identity(kind: str) -> None:
    torch.testing.assert_close(
        flatten(basis(COMPONENTS[kind])), torch.eye(COMPONENTS[kind].size, dtype=torch.float64)
    )


@rows
@kinds
def test_a_projection_is_its_matrix_times_the_materialised_gradient(row, kind: str) -> None:
    projector, grads = row.make(16, 3), gradient(kind, 5)
    expected = flatten(gradient(kind, 5)) @ projection_matrix(projector, COMPONENTS[kind])
    torch.testing.assert_close(project(projector, grads), expected, rtol=EXACT, atol=EXACT)


@rows
@kinds
def test_factored_and_flat_gradients_have_one_projection(row, kind: str) -> None:
    if row.matrix_variance is not None:
        pytest.skip("maps a matrix by its rows and columns")
    projector, grads = row.make(16, 3), gradient(kind, 5)
    total = torch.zeros(5, 16, dtype=torch.float64)
    for name, values in gradient(kind, 5).materialize().items():
        # A vector of the same name and size has the same map as a table or a layer.
        parameter = Parameter(name, (values[0].numel(),))
        component = Component(name, (parameter,), "vector")
        projector.project(Gradient(component, (Vectors(component, values.flatten(1)),)), total)
    torch.testing.assert_close(project(projector, grads), total, rtol=EXACT, atol=EXACT)


@rows
@kinds
def test_a_gradient_that_was_formed_has_the_same_projection(row, kind: str) -> None:
    projector, grads = row.make(16, 3), gradient(kind, 5)
    values = tuple(gradient(kind, 5).materialize().values())
    formed = Gradient(grads.component, (Formed(grads.component, values),))
    expected = project(projector, grads)
    torch.testing.assert_close(project(projector, formed), expected, rtol=EXACT, atol=EXACT)
    torch.testing.assert_close(formed.sq_norms, grads.sq_norms, rtol=EXACT, atol=EXACT)


@rows
def test_a_projection_is_linear(row) -> None:
    projector = row.make(16, 3)
    first, second = gradient("vector", 4, seed=1), gradient("vector", 4, seed=2)
    component = COMPONENTS["vector"]
    mixed = Gradient(component, (Vectors(component, 2 * flatten(first) - 3 * flatten(second)),))
    expected = 2 * project(projector, first) - 3 * project(projector, second)
    torch.testing.assert_close(project(projector, mixed), expected, rtol=EXACT, atol=EXACT)


@rows
def test_components_are_summed_in_any_order(row) -> None:
    projector, parts = row.make(16, 3), [gradient(kind, 3) for kind in COMPONENTS]
    expected = sum(project(projector, part) for part in parts)
    for order in itertools.islice(itertools.permutations(parts), 0, 120, 17):
        torch.testing.assert_close(project(projector, *order), expected, rtol=EXACT, atol=EXACT)


@rows
@kinds
@settings(max_examples=15, deadline=None)
@given(split=st.integers(0, 6), order=st.permutations(range(6)))
def test_the_map_does_not_depend_on_the_batch(row, kind: str, split: int, order: list[int]) -> None:
    projector, grads = row.make(16, 3), gradient(kind, 6)
    whole = project(projector, grads)
    parts = [
        project(projector, examples_of(grads, part)) for part in (slice(split), slice(split, 6))
    ]
    torch.testing.assert_close(torch.cat(parts), whole, rtol=EXACT, atol=EXACT)
    shuffled = project(projector, examples_of(grads, torch.tensor(order)))
    torch.testing.assert_close(shuffled, whole[order], rtol=EXACT, atol=EXACT)


@rows
@kinds
def test_the_map_is_the_same_in_both_precisions_and_keeps_them(row, kind: str) -> None:
    projector = row.make(16, 3)
    double = project(projector, gradient(kind, 5))
    single = project(projector, gradient(kind, 5, dtype=torch.float32))
    assert (double.dtype, single.dtype) == (torch.float64, torch.float32)
    torch.testing.assert_close(single.double(), double, rtol=SINGLE, atol=SINGLE)
    half = project(projector, gradient(kind, 5, dtype=torch.float16), dtype=torch.float32)
    torch.testing.assert_close(half.double(), double, rtol=0.05, atol=0.05)


@rows
@kinds
def test_the_map_does_not_depend_on_the_number_of_threads(row, kind: str) -> None:
    projector, grads = row.make(256, 3), gradient(kind, 5)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        single = project(projector, grads)
        torch.set_num_threads(2)
        double = project(projector, grads)
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(single, double, rtol=EXACT, atol=EXACT)


@rows
def test_the_map_depends_on_the_seed_and_on_the_name(row) -> None:
    component = COMPONENTS["vector"]
    matrix = projection_matrix(row.make(16, 3), component)
    assert torch.equal(projection_matrix(row.make(16, 3), component), matrix)
    assert not torch.equal(projection_matrix(row.make(16, 4), component), matrix)
    assert not torch.equal(projection_matrix(row.make(16, 3), RENAMED), matrix)


@rows
@pytest.mark.parametrize("num", [0, 1, 5])
def test_an_empty_batch_and_one_example_are_batches(row, num: int) -> None:
    for kind in COMPONENTS:
        whole = project(row.make(8, 0), gradient(kind, 6))
        found = project(row.make(8, 0), examples_of(gradient(kind, 6), slice(num)))
        assert found.shape == (num, 8)
        torch.testing.assert_close(found, whole[:num], rtol=EXACT, atol=EXACT)


@rows
@pytest.mark.parametrize("k", [6, 8])
def test_inner_products_are_unbiased_with_the_stated_variance(row, k: int) -> None:
    generator = torch.Generator().manual_seed(5)
    g = torch.randn(23, generator=generator, dtype=torch.float64)
    h = g + torch.randn(23, generator=generator, dtype=torch.float64)
    pair = Gradient(LONG, (Vectors(LONG, torch.stack([g, h])),))
    check_moments(row, pair, float(g @ h), row.variance(g, h, k), k)


structured = [name for name, row in PROJECTORS.items() if row.matrix_variance is not None]


@pytest.mark.parametrize("name", structured)
@pytest.mark.parametrize("k", [6, 8, 9])
@pytest.mark.parametrize("positions", [1, 3])
def test_inner_products_of_matrices_are_unbiased_with_the_stated_variance(
    name: str, k: int, positions: int
) -> None:
    row, generator = PROJECTORS[name], torch.Generator().manual_seed(5)
    inputs = torch.randn(2, positions, 5, generator=generator, dtype=torch.float64)
    grads = torch.randn(2, positions, 4, generator=generator, dtype=torch.float64)
    inputs[1] += inputs[0]
    grads[1] += grads[0]
    g, h = grads.mT @ inputs
    pair = Gradient(MATRIX, (OuterProducts(MATRIX, inputs, grads),))
    assert row.matrix_variance is not None
    check_moments(row, pair, float((g * h).sum()), row.matrix_variance(g, h, k), k)


def check_moments(row, pair: Gradient, product: float, variance: float, k: int) -> None:
    """Mean and variance over seeds of the inner product of a pair are what they should be."""
    sketches = [project(row.make(k, seed), pair) for seed in range(NUM_SEEDS)]
    products = torch.tensor([float(sketch[0] @ sketch[1]) for sketch in sketches])
    error = float(products.std()) / NUM_SEEDS**0.5
    assert abs(float(products.mean()) - product) < STANDARD_ERRORS * error
    squares = (products - product) ** 2
    error = float(squares.std()) / NUM_SEEDS**0.5
    assert abs(float(squares.mean()) - variance) < STANDARD_ERRORS * error


@rows
def test_norms_over_components_are_unbiased(row) -> None:
    parts = [gradient(kind, 1) for kind in COMPONENTS]
    truth = sum(float(flatten(part).square().sum()) for part in parts)
    norms = [float(project(row.make(64, seed), *parts).square().sum()) for seed in range(60)]
    spread = float(torch.tensor(norms).std()) / len(norms) ** 0.5
    assert abs(fmean(norms) - truth) < STANDARD_ERRORS * spread


def test_a_layer_in_pieces_has_the_same_projection(monkeypatch: pytest.MonkeyPatch) -> None:
    grads = gradient("linear", 5)
    whole = project(SJLT(num_dims=16, seed=0), grads)
    for entries, examples in [(1, 1), (7, 2), (40, 1), (1, 8)]:
        monkeypatch.setattr(factors, "PIECE_ENTRIES", entries)
        monkeypatch.setattr(factors, "PIECE_EXAMPLES", examples)
        fresh = gradient("linear", 5)
        torch.testing.assert_close(project(SJLT(num_dims=16, seed=0), fresh), whole)
        expected = flatten(gradient("linear", 5)).square().sum(1)
        torch.testing.assert_close(fresh.sq_norms, expected, rtol=EXACT, atol=EXACT)


@pytest.mark.parametrize("num_dims", [1, 2, 15, 16])
@pytest.mark.parametrize("kind", ["linear", "tied"])
def test_a_tensor_sketch_is_the_same_through_the_fourier_domain(
    kind: str, num_dims: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    projector = TensorSketch(num_dims=num_dims, seed=3)
    formed = project(projector, gradient(kind, 5))
    monkeypatch.setattr(tensorsketch, "FOURIER", -1)
    for entries in (1 << 22, 1):  # at once, and position by position
        monkeypatch.setattr(tensorsketch, "CHUNK_ENTRIES", entries)
        found = project(projector, gradient(kind, 5))
        torch.testing.assert_close(found, formed, rtol=EXACT, atol=EXACT)


def test_a_tensor_sketch_forms_a_gradient_only_where_that_is_cheaper() -> None:
    projector = TensorSketch(num_dims=256, seed=0)

    def term(size: int, positions: int) -> OuterProducts:
        component = Component("fc", (Parameter("fc.weight", (size, size)),))
        factors = torch.zeros(2, positions, size), torch.zeros(2, positions, size)
        return OuterProducts(component, *factors)

    assert projector.forms(term(64, 128))
    assert not projector.forms(term(512, 128))
    assert not projector.forms(term(64, 1))


def test_a_map_drawn_in_blocks_is_the_same_map(monkeypatch: pytest.MonkeyPatch) -> None:
    for projector in (Rademacher(num_dims=130, seed=0), Gaussian(num_dims=10, seed=0)):
        wholes = [project(projector, gradient(kind, 5)) for kind in COMPONENTS]
        with monkeypatch.context() as patch:
            patch.setattr(dense, "BLOCK_ENTRIES", {"cpu": 2 * projector.num_dims})
            patch.setattr(dense, "DRAWN", {"cpu": 3})
            for kind, whole in zip(COMPONENTS, wholes, strict=True):
                torch.testing.assert_close(project(projector, gradient(kind, 5)), whole)
    component = COMPONENTS["table"]
    matrix = projection_matrix(SJLT(num_dims=8, seed=1), component)
    sjlt._maps.clear()
    monkeypatch.setattr(sjlt, "DRAWN", 4)
    assert torch.equal(projection_matrix(SJLT(num_dims=8, seed=1), component), matrix)


@pytest.mark.parametrize("kind", [Rademacher, Gaussian])
def test_a_dense_map_with_fewer_dimensions_is_its_first_rows(kind) -> None:
    few = projection_matrix(kind(num_dims=5, seed=2), COMPONENTS["linear"]) * 5**0.5
    many = projection_matrix(kind(num_dims=200, seed=2), COMPONENTS["linear"]) * 200**0.5
    torch.testing.assert_close(few, many[:, :5])


def test_rademacher_reads_the_bits_its_docstring_names() -> None:
    matrix = projection_matrix(Rademacher(num_dims=150, seed=2), COMPONENTS["vector"])
    key = derive_key(2, "norm.weight")
    for r, c in [(0, 0), (31, 1), (32, 2), (127, 3), (128, 4), (149, 6)]:
        words = philox(key, torch.tensor([c]), r // 128)[0]
        bit = (int(words[(r % 128) // 32]) >> (r % 32)) & 1
        assert float(matrix[c, r]) == pytest.approx((2 * bit - 1) / 150**0.5)


def test_a_normal_entry_is_the_quantile_of_the_bits_its_docstring_names() -> None:
    matrix = projection_matrix(Gaussian(num_dims=20, seed=2), COMPONENTS["vector"]) * 20**0.5
    key = derive_key(2, "norm.weight")
    for r, c in [(0, 0), (1, 1), (2, 2), (7, 3), (8, 4), (19, 6)]:
        words = philox(key, torch.tensor([c]), r // 8)[0]
        level = (int(words[r % 8 // 2]) >> 16 * (r % 2)) & 0xFFFF
        expected = NormalDist().inv_cdf((level + 0.5) / 65536)
        assert float(matrix[c, r]) == pytest.approx(expected, rel=1e-4)


def test_normal_entries_have_the_moments_of_their_docstring() -> None:
    entries = gaussian._quantiles("cpu").double()
    assert float(entries.mean()) == pytest.approx(0, abs=1e-8)
    assert float(entries.square().mean()) == pytest.approx(1, abs=1e-7)
    assert float(entries.pow(4).mean()) == pytest.approx(KURTOSIS, abs=1e-4)
    assert float(entries.max()) == pytest.approx(4.3, abs=0.05)


@pytest.mark.parametrize("num_signs", [1, 4])
def test_a_column_of_sjlt_has_its_signs(num_signs: int) -> None:
    matrix = projection_matrix(SJLT(num_dims=64, num_signs=num_signs, seed=0), COMPONENTS["linear"])
    units = matrix * num_signs**0.5
    torch.testing.assert_close(units, units.round())
    assert (units.abs().sum(1) <= num_signs + EXACT).all()
    assert (units.abs().sum(1) % 2 == num_signs % 2).all()  # two signs may cancel


# Philox.


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        (0, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        (0xFFFFFFFF, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ],
    ids=["zeros", "ones"],
)
def test_philox_gives_the_published_words(word: int, expected: str) -> None:
    words = philox((word, word), torch.tensor([word]), word, word, word)
    assert [f"{int(value):08x}" for value in words[0]] == expected.split()


def slow_philox(key: tuple[int, int], counter: list[int]) -> list[int]:
    """Philox4x32-10 in whole numbers of Python."""
    (k0, k1), (c0, c1, c2, c3) = key, counter
    for _ in range(10):
        p0, p1 = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1 = (p1 >> 32) ^ c1 ^ k0, p1 & 0xFFFFFFFF
        c2, c3 = (p0 >> 32) ^ c3 ^ k1, p0 & 0xFFFFFFFF
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return [c0, c1, c2, c3]


words = st.integers(0, 2**32 - 1)


@settings(max_examples=50, deadline=None)
@given(key=st.tuples(words, words), counter=st.lists(words, min_size=1, max_size=4))
def test_philox_equals_arithmetic_in_whole_numbers(
    key: tuple[int, int], counter: list[int]
) -> None:
    first, *rest = counter
    found = philox(key, torch.tensor([first]), *rest)[0].tolist()
    assert found == slow_philox(key, [*counter, 0, 0, 0][:4])


# Arguments.


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SJLT(num_dims=0, seed=0), r"`num_dims` must be in \[1, 1073741824\]\. Got 0\."),
        (lambda: SJLT(num_dims=8, num_signs=0, seed=0), r"`num_signs` must be at least 1\. Got 0"),
        (lambda: Rademacher(num_dims=-1, seed=0), r"`num_dims` must be at least 1\. Got -1\."),
        (lambda: Gaussian(num_dims=0, seed=0), r"`num_dims` must be at least 1\. Got 0\."),
    ],
    ids=["sjlt-dims", "sjlt-signs", "rademacher-dims", "gaussian-dims"],
)
def test_the_message_names_the_argument_the_bound_and_the_value(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def padded(kind: str, positions: int) -> Gradient:
    """Two examples, the second all padding, of some positions."""
    whole = gradient(kind, 2)
    keep = torch.tensor([1.0, 0.0], dtype=torch.float64)
    terms: list[Term] = []
    for term in whole.terms:
        if isinstance(term, Vectors):
            terms.append(replace(term, values=term.values * keep[:, None]))
            continue
        assert not isinstance(term, Formed)
        grads = term.output_grads[..., :positions, :]
        grads = grads * keep.view(2, *[1] * (grads.dim() - 1))
        if isinstance(term, OuterProducts):
            inputs = term.inputs[..., :positions, :]
            terms.append(replace(term, inputs=inputs, output_grads=grads))
        elif isinstance(term, TableRows):
            terms.append(replace(term, ids=term.ids[:, :positions], output_grads=grads))
    return Gradient(whole.component, tuple(terms))


@rows
@kinds
@pytest.mark.parametrize("positions", [0, 1])
def test_sequences_of_one_position_or_none_and_rows_of_padding(
    row, kind: str, positions: int
) -> None:
    projector = row.make(8, 0)
    found = project(projector, padded(kind, positions))
    matrix = projection_matrix(projector, COMPONENTS[kind])
    expected = flatten(padded(kind, positions)) @ matrix
    torch.testing.assert_close(found, expected, rtol=EXACT, atol=EXACT)
    assert not found[1].any()
    if positions == 0 and kind != "vector":
        assert not found.any()
        assert not padded(kind, 0).sq_norms.any()
