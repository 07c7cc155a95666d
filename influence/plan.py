"""A plan: bytes and operations of an EK-FAC fit and its scores, before anything runs.

Letters: ``t`` positions, ``i`` inputs of a layer (with a trailing one for its bias), ``o``
outputs, ``q`` queries.

Everything is counted from shapes. Not counted: memory inside the model's own forward, and
what the shapes do not hold; those that are read off a task have no attention scores.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from influence.kfac_math import BAND, block_sizes, choose_way
from influence.layer_shapes import LayerShape, ModelShape, measure_layers
from influence.queries import GROUP, formed_entries, piece_entries
from influence.work import (
    FLOAT,
    Product,
    Work,
    formed_gradients,
    forward_and_backward,
    matrix_products,
)
from projections import PassSettings, Task, as_rows, check_at_least

BATCH = 8  # examples that run together, where nobody says
UNITS = {"KB": 1 << 10, "MB": 1 << 20, "GB": 1 << 30, "TB": 1 << 40}


@dataclass(frozen=True)
class Stage:
    """One stage of the work.

    Args:
        name: What it does.
        work: What it computes, over all examples.
        num_bytes: Bytes held at the same time, in the largest partition.
    """

    name: str
    work: Work
    num_bytes: int

    @property
    def operations(self) -> float:
        """Multiply-adds over all examples."""
        return self.work.operations


@dataclass(frozen=True)
class Plan:
    """What a fit and its scores will take.

    Args:
        num_examples: Number of training examples.
        memory: Bytes that factors and query gradients may take.
        partitions: Components that are fitted in the same passes.
        queries_per_pass: Queries whose gradients fit the memory at the same time.
        stages: The stages, in order.
        layers: The linear maps.
    """

    num_examples: int
    memory: int
    partitions: tuple[tuple[str, ...], ...]
    queries_per_pass: int
    stages: tuple[Stage, ...]
    layers: tuple[LayerShape, ...] = field(repr=False)

    def __str__(self) -> str:
        """Return the plan as a table."""
        lines = [
            f"{self.num_examples:,} examples, {len(self.layers)} linear maps, "
            f"{sum(layer.size for layer in self.layers):,} parameters",
            f"memory {show_bytes(self.memory)}: {len(self.partitions)} partition(s), "
            f"{self.queries_per_pass} queries a pass",
            f"{'stage':24}{'multiply-adds':>16}{'memory':>12}",
        ]
        lines += [
            f"{stage.name:24}{stage.operations:16.3g}{show_bytes(stage.num_bytes):>12}"
            for stage in self.stages
        ]
        return "\n".join(lines)


def make_plan(
    task: Task,
    data: Any,
    *,
    memory: int | str,
    num_queries: int = 1,
    settings: PassSettings | None = None,
    max_factor: int | None = None,
) -> Plan:
    """Plan an EK-FAC fit and the scores of some queries.

    Args:
        task: The model and its loss.
        data: The training data.
        memory: Bytes for factors and query gradients, such as ``"8GB"``.
        num_queries: Number of queries that will be scored.
        settings: Layers and batching of the fit.
        max_factor: Widest diagonal block of a covariance.

    Raises:
        ValueError: One layer alone does not fit the memory.
    """
    rows, settings = as_rows(data), settings or PassSettings()
    shape = ModelShape(tuple(measure_layers(task, rows, settings)))
    return plan_shapes(
        shape, len(rows), memory=memory, num_queries=num_queries, max_factor=max_factor
    )


def plan_shapes(
    model: ModelShape,
    num_examples: int,
    *,
    memory: int | str,
    num_queries: int = 1,
    max_factor: int | None = None,
    batch: int = BATCH,
) -> Plan:
    """Plan an EK-FAC fit and the scores of some queries from shapes alone.

    Args:
        model: Shapes of the model, as from `shape_of_language_model`.
        num_examples: Number of training examples.
        memory: Bytes for factors and query gradients, such as ``"8GB"``.
        num_queries: Number of queries that will be scored.
        max_factor: Widest diagonal block of a covariance.
        batch: Examples that run together.

    Raises:
        ValueError: One layer alone does not fit the memory.
    """
    budget = read_bytes(memory)
    partitions = tuple(_partition(model.layers, budget, max_factor))
    query_bytes = FLOAT * sum(layer.size for layer in model.layers)
    queries = max(1, min(num_queries, budget // query_bytes))
    counts = Counts(num_examples, num_queries, queries, batch, max_factor)
    stages = tuple(_stages(model, partitions, counts))
    return Plan(num_examples, budget, partitions, queries, stages, model.layers)


def read_bytes(memory: int | str) -> int:
    """Return a number of bytes, as a number or as text such as ``"8GB"``.

    Example:
        >>> read_bytes("1.5KB"), read_bytes(12)
        (1536, 12)
    """
    if isinstance(memory, int):
        check_at_least("memory", memory, 1)
        return memory
    text = memory.strip().upper()
    for unit, size in UNITS.items():
        if text.endswith(unit):
            try:
                return int(float(text.removesuffix(unit)) * size)
            except ValueError:
                break
    raise ValueError(f"`memory` must be bytes, or text such as '8GB'. Got {memory!r}.")


def show_bytes(count: float) -> str:
    """Return a number of bytes for people to read."""
    for unit, size in reversed(UNITS.items()):
        if count >= 0.9995 * size:  # 1 MB, not 1e+03 KB
            return f"{count / size:.3g} {unit}"
    return f"{count:.0f} B"


def factor_bytes(layer: LayerShape, max_factor: int | None) -> int:
    """Return the bytes of covariances, eigenvectors and eigenvalues of one linear map."""
    inputs = 0 if layer.shares_input else _block_entries(layer.num_in, max_factor)
    return FLOAT * (2 * inputs + 2 * _block_entries(layer.num_out, max_factor) + layer.size)


def _block_entries(size: int, max_factor: int | None) -> int:
    """Return the entries of a block-diagonal matrix."""
    return sum(width**2 for width in block_sizes(size, max_factor))


def _partition(
    layers: Sequence[LayerShape], budget: int, max_factor: int | None
) -> Iterator[tuple[str, ...]]:
    """Yield groups of components whose factors fit the budget, in the order of the layers."""
    names: list[str] = []
    used = 0
    by_component: dict[str, int] = {}
    for layer in layers:
        before = by_component.get(layer.component, 0)
        by_component[layer.component] = before + factor_bytes(layer, max_factor)
    for name, size in by_component.items():
        if size > budget:
            raise ValueError(
                f"`memory` must hold the factors of every layer alone. Those of {name!r} take "
                f"{show_bytes(size)}; got {show_bytes(budget)}. Raise it, or set `max_factor`."
            )
        if names and used + size > budget:
            yield tuple(names)
            names, used = [], 0
        names.append(name)
        used += size
    yield tuple(names)


@dataclass(frozen=True)
class Counts:
    """Numbers that stages share.

    Args:
        examples: Training examples.
        num_queries: Queries in all.
        queries: Queries that share a pass.
        batch: Examples that run together.
        max_factor: Widest diagonal block of a covariance.
    """

    examples: int
    num_queries: int
    queries: int
    batch: int
    max_factor: int | None

    @property
    def passes(self) -> int:
        """Passes over the training examples that score all queries."""
        return -(-self.num_queries // self.queries)


def _stages(
    model: ModelShape, partitions: Sequence[Sequence[str]], counts: Counts
) -> Iterator[Stage]:
    """Yield what each stage takes."""
    layers = model.layers
    held = max(
        sum(factor_bytes(layer, counts.max_factor) for layer in layers if layer.component in part)
        for part in partitions
    )
    query = FLOAT * counts.queries * sum(layer.size for layer in layers)
    walk = forward_and_backward(model, batch=counts.batch, weights=False)
    walks = walk.times(counts.examples * len(partitions))
    covariances = _total(_covariance(layer, counts) for layer in layers)
    rotated = _total(_rotated(layer, counts) for layer in layers)
    widths = tuple(width for layer in layers for width in _decomposed(layer, counts.max_factor))
    asked = walk + rotated + _total(_rotated_back(layer, counts) for layer in layers)
    met = walk + formed_gradients(layers) + _total(_met(layer, counts) for layer in layers)
    yield Stage("covariances", walks + covariances.times(counts.examples), held)
    yield Stage("eigendecompositions", Work(decompositions=widths), held)
    yield Stage("corrected eigenvalues", walks + rotated.times(counts.examples), held)
    yield Stage("query gradients", asked.times(counts.num_queries), query)
    name = f"scores, {counts.num_queries} queries"
    yield Stage(name, met.times(counts.examples * counts.passes), query)


def _total(works: Iterable[Work]) -> Work:
    """Return all of them."""
    return sum(works, Work())


def _covariance(layer: LayerShape, counts: Counts) -> Work:
    """Return the upper triangles of the covariances of one example."""
    rows = max(1, round(layer.positions * counts.batch))
    sides = (layer.num_out, *([] if layer.shares_input else [layer.num_in]))
    return _total(
        Work((Product(min(size, BAND), rows, size, layer.positions * _bands(size, most)),))
        for size, most in ((size, counts.max_factor) for size in sides)
    )


def _decomposed(layer: LayerShape, max_factor: int | None) -> list[int]:
    """Return the widths of the matrices that are decomposed."""
    sides = (layer.num_out, *([] if layer.shares_input else [layer.num_in]))
    return [width for size in sides for width in block_sizes(size, max_factor)]


def _rotated(layer: LayerShape, counts: Counts) -> Work:
    """Return one example's gradient in the eigenbasis, and its square."""
    sizes = (layer.num_out, layer.num_in)
    left, right = (CountedRotation(size, counts.max_factor) for size in sizes)
    positions = max(1, round(layer.positions))
    operations = choose_way(positions, left, right).operations
    rows = positions * counts.batch
    widest = max(sizes)
    shapes = [(rows, widest, widest), (layer.num_out, positions, layer.num_in)]
    return matrix_products(shapes, operations) + Work(moved=3 * FLOAT * layer.size)


def _rotated_back(layer: LayerShape, counts: Counts) -> Work:
    """Return one preconditioned gradient, rotated back."""
    sizes = (layer.num_out, layer.num_in)
    left, right = (CountedRotation(size, counts.max_factor) for size in sizes)
    operations = layer.num_in * left.num_operations + layer.num_out * right.num_operations
    shape = (max(sizes), max(sizes), min(sizes))
    return matrix_products([shape], operations) + Work(moved=6 * FLOAT * layer.size)


def _met(layer: LayerShape, counts: Counts) -> Work:
    """Return the inner products of one formed gradient with all queries of a pass, in pieces."""
    rows = min(counts.batch, GROUP)
    read = FLOAT * counts.queries * layer.size / rows  # queries, once a group
    piece = piece_entries(layer.num_out, layer.num_in)
    block = min(layer.size, formed_entries("cpu", layer.num_in) // GROUP)
    operations = counts.queries * layer.size
    pieces = Product(rows, piece, counts.queries, operations, together=max(1, block // piece))
    return Work((pieces,), moved=read)


def _bands(size: int, max_factor: int | None) -> float:
    """Return the multiply-adds of one row's upper Gram triangle."""
    return sum(width * (width + min(width, BAND)) / 2 for width in block_sizes(size, max_factor))


@dataclass(frozen=True)
class CountedRotation:
    """A rotation without numbers, to count with.

    Args:
        size: Its width.
        max_factor: Widest diagonal block.
    """

    size: int
    max_factor: int | None

    @property
    def num_operations(self) -> int:
        """Multiply-adds for one row."""
        return _block_entries(self.size, self.max_factor)
