"""A plan: bytes and operations of an EK-FAC fit and its scores, before anything runs.

Letters: ``t`` positions, ``i`` inputs of a layer (with a trailing one for its bias), ``o``
outputs, ``q`` queries.

Everything is counted from shapes: one forward of one example finds the positions of each
layer, and the lengths of a sample of rows scale them. Not counted: attention scores, norms
and the loss, and memory inside the model's own forward.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from influence.kfac_math import BAND, block_sizes, choose_way
from influence.linear_layers import linear_uses
from projections import (
    Capture,
    PassSettings,
    Rows,
    Task,
    as_rows,
    check_at_least,
    find_components,
    to_device,
)

FLOAT = 4  # bytes of a number
NUM_SAMPLED_ROWS = 64
UNITS = {"KB": 1 << 10, "MB": 1 << 20, "GB": 1 << 30, "TB": 1 << 40}


@dataclass(frozen=True)
class LayerShape:
    """One linear map, as a plan sees it.

    Args:
        component: Name of the component it belongs to.
        name: Its own name.
        positions: Mean number ``t`` of positions of an example.
        num_in: Number ``i`` of inputs.
        num_out: Number ``o`` of outputs.
        shares_input: Whether another map before it reads the same tensor.
    """

    component: str
    name: str
    positions: float
    num_in: int
    num_out: int
    shares_input: bool

    @property
    def size(self) -> int:
        """Number of entries of its gradient."""
        return self.num_in * self.num_out


@dataclass(frozen=True)
class Stage:
    """One stage of the work.

    Args:
        name: What it does.
        operations: Multiply-adds over all examples.
        num_bytes: Bytes held at the same time, in the largest partition.
    """

    name: str
    operations: float
    num_bytes: int


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
    rows, budget = as_rows(data), read_bytes(memory)
    layers = measure_layers(task, rows, settings or PassSettings())
    partitions = tuple(_partition(layers, budget, max_factor))
    query_bytes = FLOAT * sum(layer.size for layer in layers)
    queries = max(1, min(num_queries, budget // query_bytes))
    count, passes = len(rows), -(-num_queries // queries)
    return Plan(
        count,
        budget,
        partitions,
        queries,
        tuple(_stages(layers, count, partitions, passes, queries, num_queries, max_factor)),
        tuple(layers),
    )


def measure_layers(task: Task, rows: Rows, settings: PassSettings) -> list[LayerShape]:
    """Return the linear maps of a model, with their mean positions on this data."""
    layout = find_components(task.model, settings.layers, kinds=("linear",), heads=settings.heads)
    spread = np.linspace(0, len(rows) - 1, min(len(rows), NUM_SAMPLED_ROWS)).astype(int)
    examples = task.encode(rows.fetch(spread.tolist()))
    sizes = [task.size(example) for example in examples]
    capture = Capture(task.model, layout)
    batch = to_device(task.collate(examples[:1]), task.device)
    uses: list[Any] = []
    with capture.hooks():
        losses = capture.forward(lambda: task.losses(batch), 1)
        capture.backward(losses, lambda g: uses.extend((g, use) for use in linear_uses(g)))
    layers, keys = [], set()
    for gradient, use in uses:
        _, positions, num_in = use.inputs.shape
        grows = sizes[0] > 1 and positions % sizes[0] == 0
        scale = float(np.mean(sizes)) / sizes[0] if grows else 1.0
        shares = use.input_key is not None and use.input_key in keys
        keys.add(use.input_key)
        num_out = use.output_grads.shape[2]
        layers.append(
            LayerShape(
                gradient.component.name, use.name, positions * scale, num_in, num_out, shares
            )
        )
    return layers


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
        if count >= size:
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


def _stages(
    layers: Sequence[LayerShape],
    count: int,
    partitions: Sequence[Sequence[str]],
    passes: int,
    queries: int,
    num_queries: int,
    max_factor: int | None,
) -> Iterator[Stage]:
    """Yield what each stage takes."""
    model = sum(2 * layer.positions * layer.size for layer in layers) * count
    covariances = eigen = rotations = asked = scores = 0.0
    for layer in layers:
        inputs = 0 if layer.shares_input else _bands(layer.num_in, max_factor)
        covariances += layer.positions * (_bands(layer.num_out, max_factor) + inputs)
        eigen += sum(
            9 * width**3
            for size in (layer.num_out, *([] if layer.shares_input else [layer.num_in]))
            for width in block_sizes(size, max_factor)
        )
        left, right = (CountedRotation(size, max_factor) for size in (layer.num_out, layer.num_in))
        way = choose_way(max(1, round(layer.positions)), left, right).operations
        rotations += way
        back = layer.num_in * left.num_operations + layer.num_out * right.num_operations
        asked += 2 * layer.positions * layer.size + way + back
        scores += (layer.positions + queries) * layer.size
    held = max(
        sum(factor_bytes(layer, max_factor) for layer in layers if layer.component in part)
        for part in partitions
    )
    query = FLOAT * queries * sum(layer.size for layer in layers)
    forward = model * len(partitions)
    yield Stage("covariances", forward + covariances * count, held)
    yield Stage("eigendecompositions", eigen, held)
    yield Stage("corrected eigenvalues", forward + rotations * count, held)
    yield Stage("query gradients", asked * num_queries, query)
    yield Stage(f"scores, {num_queries} queries", (model + scores * count) * passes, query)


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
