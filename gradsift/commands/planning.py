"""The command that says what a job will take, before it runs."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import transformers

from gradsift.commands.options import write_config
from gradsift.machines import DataSheet, Machine, find_machine, seconds_of
from gradsift.models import DtypeName
from influence import (
    ModelShape,
    Stage,
    Work,
    forward_and_backward,
    plan_shapes,
    shape_of_language_model,
    show_bytes,
    sketched_gradients,
)
from influence import Plan as FitPlan
from projections import DataError, check_at_least, write_json

BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "int8": 1}


@dataclass(frozen=True)
class Timed:
    """One stage with its time.

    Args:
        stage: Its name.
        operations: Multiply-adds.
        memory: Bytes held on each device, the model among them.
        hours: Hours on all devices.
    """

    stage: str
    operations: float
    memory: float
    hours: float


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Say what an index, a fit of EK-FAC and its scores would take. Nothing is trained or read."""

    model: str
    """A folder with a `config.json` of a causal language model, or that file. No weights are
    needed."""

    num_examples: int
    """Examples of the training data."""

    num_tokens: int
    """Tokens of an example."""

    num_queries: int = 32
    """Queries that are scored against all examples."""

    num_dims: int = 4096
    """Numbers kept of each gradient in the index."""

    row_dtype: Literal["float32", "float16", "bfloat16", "int8"] = "float16"
    """Type of the rows on disk."""

    layers: tuple[str, ...] = ("*",)
    """Patterns of the linear layers to look at, such as "*_proj"."""

    batch_size: int = 8
    """Examples that run together."""

    memory: str = "64GB"
    """What factors and query gradients may take of each device; more takes more passes."""

    max_factor: int | None = None
    """Widest diagonal block of a covariance."""

    machine: Literal["this", "a100", "h100", "h200"] = "this"
    """"this" is measured, at the shapes of this model; the others are data sheets, of which
    half is taken to be reached."""

    devices: int = 1
    """Devices that share the work."""

    dtype: DtypeName = "float32"
    """Precision of the model."""

    out: Path | None = None
    """File to write the stages to, as JSON."""

    def run(self) -> Iterator[str]:
        """Count, and print."""
        for name in ("num_examples", "num_tokens", "num_queries", "batch_size", "devices"):
            check_at_least(name, getattr(self, name), 1)
        config = load_config(self.model)
        shape = shape_of_language_model(config, num_tokens=self.num_tokens, layers=self.layers)
        machine = find_machine(self.machine, getattr(torch, self.dtype))
        plan = self.planned(shape)
        stages = self.timed(shape, plan, machine)
        yield (
            f"{shape.num_parameters:,} parameters, {len(shape.layers)} linear layers with "
            f"{sum(layer.size for layer in shape.layers):,}; {self.num_examples:,} examples of "
            f"{self.num_tokens:,} tokens; {self.devices} x {machine.name}, {self.dtype}"
        )
        parts, queries = len(plan.partitions), plan.queries_per_pass
        yield f"factors in {parts} partition(s), {queries} queries a pass"
        yield from as_table(stages)
        rows = self.num_examples * self.num_dims * BYTES[self.row_dtype]
        yield f"index on disk: {show_bytes(rows)}"
        yield assumptions(machine)
        if self.out is not None:
            write_json(self.out, [asdict(stage) for stage in stages])
            write_config(self, self.out.with_name(self.out.name + ".config.json"))

    def planned(self, shape: ModelShape) -> FitPlan:
        """Return the stages of a fit and its scores."""
        return plan_shapes(
            shape,
            self.num_examples,
            memory=self.memory,
            num_queries=self.num_queries,
            max_factor=self.max_factor,
            batch=self.batch_size,
        )

    def timed(self, shape: ModelShape, plan: FitPlan, machine: Machine) -> list[Timed]:
        """Return all stages with their hours."""
        weights = shape.num_parameters * BYTES[self.dtype]
        step = forward_and_backward(shape, batch=self.batch_size, weights=True)
        sketched = sketched_gradients(shape, batch=self.batch_size)
        held = self.batch_size * max(layer.size for layer in shape.layers) * 4
        kept = self.num_dims * BYTES[self.row_dtype]
        search = Work(moved=float(self.num_examples * kept))
        stages = [
            Stage("(a training step each)", step.times(self.num_examples), 0),
            Stage("index of sketches", sketched.times(self.num_examples), held),
            *plan.stages,
            Stage("search, one batch", search, 0),
        ]
        return [
            Timed(
                stage.name,
                stage.operations,
                weights + stage.num_bytes,
                self._seconds(stage, machine) / 3600,
            )
            for stage in stages
        ]

    def _seconds(self, stage: Stage, machine: Machine) -> float:
        """Return the seconds of a stage on all devices: the largest share of decompositions."""
        widths = sorted(stage.work.decompositions, reverse=True)
        shares = [0.0] * self.devices
        for width in widths:
            least = shares.index(min(shares))
            shares[least] += machine.decomposition_seconds(width)
        rest = Work(stage.work.products, stage.work.moved, stage.work.scattered)
        return seconds_of(rest, machine) / self.devices + max(shares)


def load_config(model: str) -> Any:
    """Return the configuration of a model.

    Raises:
        DataError: There is no configuration of a causal language model.
    """
    try:
        config: Any = transformers.AutoConfig.from_pretrained(Path(model))
        if type(config) in transformers.AutoModelForCausalLM._model_mapping:
            return config
        raise ValueError(f"{type(config).__name__} is not that of a causal language model")
    except (OSError, ValueError, json.JSONDecodeError) as error:
        raise DataError(
            "`model` must be a folder with the `config.json` of a causal language model of "
            f"Hugging Face, or that file. {model!r} cannot be read: {error}"
        ) from error


def as_table(stages: Sequence[Timed]) -> Iterator[str]:
    """Yield the lines of a table."""
    yield f"{'stage':26}{'multiply-adds':>15}{'memory':>12}{'time':>12}"
    for stage in stages:
        held = show_bytes(stage.memory)
        yield f"{stage.stage:26}{stage.operations:15.3g}{held:>12}{show_time(stage.hours):>12}"


def show_time(hours: float) -> str:
    """Return a time for people to read.

    Example:
        >>> show_time(2.0), show_time(0.01), show_time(0.00001)
        ('2 h', '36 s', '36 ms')
    """
    for unit, size in (("h", 1.0), ("min", 1 / 60), ("s", 1 / 3600)):
        if hours >= 1.5 * size or (unit == "h" and hours >= 1):
            return f"{hours / size:.3g} {unit}"
    return f"{hours * 3.6e6:.3g} ms"


def assumptions(machine: Machine) -> str:
    """Say where the rates come from."""
    if isinstance(machine, DataSheet):
        return (
            f"arithmetic, not measured: {machine.reached:.0%} of what the data sheet of "
            f"{machine.name} promises, and {machine.cubes:.0e} decomposed cubes a second"
        )
    return "rates measured just now, at the shapes of this model"
