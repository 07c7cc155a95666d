"""Everything that only a card can show, in one command and one table, under nine minutes.

    python benchmarks/gpu.py --out benchmarks/gpu.md

Language models of 15M, 160M and 1B parameters from their configuration, random tokens. For
each, in float32, tf32 and bfloat16: a plain forward and backward, and beside it the index,
EK-FAC, self-influence, other projections and a move of DGA, as tokens a second, as a ratio to
the plain step, as a share of the card's rate of matrix products, measured in the same run,
and with the peak of memory beside the plan. What does not fit the time is left out and
named. Without a card it runs at a size at which its numbers mean nothing.
"""

import importlib.util
import subprocess
import sys
import tempfile
import time
import traceback
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measuring import options, parse, publish, table
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from influence import (
    EKFAC,
    ModelShape,
    Work,
    forward_and_backward,
    plan_shapes,
    shape_of_language_model,
    sketched_gradients,
)
from projections import (
    SJLT,
    SRHT,
    BestRows,
    CausalLM,
    PassSettings,
    Projector,
    TensorSketch,
    find_components,
    index_gradients,
    plan_pass,
    random_kronecker,
)
from selection import DGA

SIDE = 8192  # of the product that shows what a card can do
LAYERS = ("*_proj",)
FACTORED = ("*layers.0.*_proj", "*layers.1.*_proj")  # of EK-FAC where all layers take too long
TESTS_SECONDS = 150
AIMS = {"160M": 0.3, "1B": 0.8}  # share of a plain step's rate that building an index keeps


@dataclass(frozen=True)
class Size:
    """One model, and how much of it is measured.

    Args:
        name: What it is called.
        hidden: Width.
        intermediate: Width of its perceptrons.
        num_layers: Layers.
        num_heads: Heads.
        vocabulary: Tokens it knows.
        length: Tokens of an example.
        batch: Examples of a batch.
        num_examples: Examples of a run.
        num_queries: Queries that EK-FAC scores.
        factored: Layers that EK-FAC is fitted to.
    """

    name: str
    hidden: int
    intermediate: int
    num_layers: int
    num_heads: int
    vocabulary: int
    length: int
    batch: int
    num_examples: int
    num_queries: int
    factored: tuple[str, ...] = LAYERS


FULL = (
    Size("15M", 256, 768, 6, 4, 16_384, 512, 32, 256, 32),
    Size("160M", 768, 2048, 12, 12, 32_768, 512, 32, 256, 32),
    Size("1B", 2048, 5632, 20, 16, 32_768, 512, 16, 64, 8, FACTORED),
)
QUICK = (Size("quick", 32, 64, 2, 2, 64, 16, 4, 8, 2),)
PRECISIONS = ("float32", "tf32", "bfloat16")


@dataclass
class Bench:
    """One model on its device, and what has been measured of it.

    Args:
        size: Which model.
        precision: One of `PRECISIONS`.
        device: Where it is.
    """

    size: Size
    precision: str
    device: torch.device

    def __post_init__(self) -> None:
        """Build the model and its data."""
        torch.manual_seed(0)
        size = self.size
        self.config = LlamaConfig(
            hidden_size=size.hidden,
            intermediate_size=size.intermediate,
            num_hidden_layers=size.num_layers,
            num_attention_heads=size.num_heads,
            vocab_size=size.vocabulary,
            max_position_embeddings=size.length,
        )
        dtype = torch.bfloat16 if self.precision == "bfloat16" else torch.float32
        with torch.device(self.device):
            self.model = LlamaForCausalLM(self.config).eval()
        nn.Module.to(self.model, dtype)
        generator = torch.Generator().manual_seed(0)
        shape = (size.num_examples, size.length)
        self.tokens = torch.randint(size.vocabulary, shape, generator=generator)
        self.rows = [{"input_ids": row} for row in self.tokens.tolist()]
        self.task = CausalLM(self.model)
        self.settings = PassSettings(batch_size=size.batch, layers=LAYERS)
        self.rate = product_rate(self.device, dtype, side_of(size))
        self.lines: list[list[str]] = []
        self.plain_seconds = 0.0

    @property
    def shape(self) -> ModelShape:
        """Shapes of the model, for counts."""
        return shape_of_language_model(
            self.config, num_tokens=self.size.length, layers=list(LAYERS)
        )

    def measure(
        self,
        stage: str,
        run: Callable[[], object],
        work: Work,
        *,
        count: int | None = None,
        planned: int | None = None,
        warm: bool = True,
    ) -> float:
        """Run a stage, and keep its line of the table.

        Args:
            stage: Its name.
            run: What it does.
            work: What it computes, counted.
            count: Examples it walks over; default: all.
            planned: Bytes it was planned to hold beside the model.
            warm: Whether it runs once before it counts.
        """
        if warm:
            run()
        held = used_memory(self.device, reset=True)
        wait(self.device)
        began = time.perf_counter()
        run()
        wait(self.device)
        seconds = time.perf_counter() - began
        count = self.size.num_examples if count is None else count
        rate = count * self.size.length / seconds
        plain = self.plain_seconds * count / self.size.num_examples
        peak = used_memory(self.device) - held
        self.lines.append(
            [
                self.size.name,
                self.precision,
                stage,
                f"{seconds:.3f}",
                f"{rate:,.0f}" if count else "",
                f"{seconds / plain:.2f}" if plain and count else "",
                f"{work.operations / seconds / self.rate:.0%}" if work.operations else "",
                f"{peak / 1e9:.2f}" if self.device.type == "cuda" else "",
                f"{planned / 1e9:.2f}" if planned is not None else "",
            ]
        )
        print(" | ".join(self.lines[-1]), file=sys.stderr, flush=True)
        return seconds


def stages(bench: Bench, folder: Path) -> Iterator[tuple[str, Callable[[], object]]]:
    """Yield what is measured of one model, the most important first."""
    size, shape = bench.size, bench.shape
    count = size.num_examples
    step = forward_and_backward(shape, batch=size.batch, weights=True).times(count)
    sketched = sketched_gradients(shape, batch=size.batch).times(count)

    def plain() -> None:
        bench.plain_seconds = bench.measure("plain step", lambda: train(bench), step)

    def indexed(name: str, make: Callable[[], Projector]) -> Callable[[], object]:
        def run() -> None:
            projector = make()
            plan = plan_pass(bench.task, bench.rows, projector, settings=bench.settings)
            bench.measure(
                f"index, {name}",
                lambda: index_once(bench, projector, folder),
                sketched,
                planned=plan.total,
            )

        return run

    dims = 64 if size.name == "quick" else 4096
    layout = find_components(bench.model, LAYERS)
    yield "plain step", plain
    yield "index, SJLT", indexed("SJLT", lambda: SJLT(num_dims=dims, seed=0))
    yield "EK-FAC", lambda: curvature(bench)
    yield (
        "index, two-sided",
        indexed(
            "two-sided",
            lambda: random_kronecker(layout.components.values(), num_dims=16 * dims, seed=0),
        ),
    )
    yield "index, SRHT", indexed("SRHT", lambda: SRHT(num_dims=dims, seed=0))
    yield (
        "index, TensorSketch",
        indexed("TensorSketch", lambda: TensorSketch(num_dims=dims, seed=0)),
    )
    yield "a move of DGA", lambda: aligned(bench)


def train(bench: Bench) -> None:
    """Run a plain forward and backward over all rows."""
    for batch in bench.tokens.to(bench.device).split(bench.size.batch):
        bench.model(input_ids=batch, labels=batch, use_cache=False).loss.backward()
        bench.model.zero_grad()


def index_once(bench: Bench, projector: Projector, folder: Path) -> None:
    """Build a store."""
    path = folder / str(time.monotonic_ns())
    index_gradients(bench.task, bench.rows, projector, path=path, settings=bench.settings)


def curvature(bench: Bench) -> None:
    """Fit EK-FAC, score some queries, and every example by itself."""
    size, settings = (
        bench.size,
        PassSettings(batch_size=bench.size.batch, layers=bench.size.factored),
    )
    shape = shape_of_language_model(
        bench.config, num_tokens=size.length, layers=list(size.factored)
    )
    plan = plan_shapes(
        shape, size.num_examples, memory="100GB", num_queries=size.num_queries, batch=size.batch
    )
    *fitting, asked, met = plan.stages
    fits: list[Any] = []

    def fit() -> None:
        fits.append(EKFAC(seed=0).fit(bench.task, bench.rows, settings=settings))

    total = Work()
    for stage in fitting:
        total = total + stage.work
    widest = "" if size.factored == LAYERS else f", layers {', '.join(size.factored)}"
    bench.measure(f"EK-FAC fit{widest}", fit, total, planned=fitting[0].num_bytes, warm=False)
    fitted, queries = fits[-1], bench.rows[: size.num_queries]
    bench.measure(
        f"EK-FAC scores, {size.num_queries} queries",
        lambda: fitted.scores(bench.task, queries, bench.rows),
        asked.work + met.work,
        planned=met.num_bytes,
        warm=False,
    )
    bench.measure(
        "EK-FAC self-influence",
        lambda: fitted.self_influence(bench.task, bench.rows),
        fitting[-1].work,
        warm=False,
    )


def aligned(bench: Bench) -> None:
    """Time one move of DGA over four domains."""
    quarter = max(1, len(bench.rows) // 4)
    domains = {str(part): bench.rows[part * quarter : (part + 1) * quarter] for part in range(4)}
    rows = max(1, min(bench.size.batch, quarter) // 4)
    mixture = DGA(bench.task, domains, bench.rows[:quarter], every=1, batch_size=rows, seed=0)
    step = forward_and_backward(bench.shape, batch=rows, weights=True).times(5 * rows)
    numbers = iter(range(10))
    bench.measure(
        f"DGA, a move over 4 domains by {rows} rows",
        lambda: mixture.update(next(numbers)),
        step,
        count=5 * rows,
    )


def search(device: torch.device, quick: bool) -> list[list[str]]:
    """Time exact search of rows that lie on the device."""
    count, dims = (2000, 32) if quick else (1_000_000, 1024)
    dtype = torch.float32 if device.type == "cpu" else torch.float16
    lines = []
    rows = torch.randn(count, dims, device=device, dtype=dtype)
    places = torch.arange(count, device=device)
    for queries in (1, 32, 256):
        asked = torch.randn(queries, dims, device=device, dtype=dtype)

        def run(asked: torch.Tensor = asked) -> None:
            best = BestRows(len(asked), 10, device)
            best.offer((asked @ rows.mT).float(), places)

        def bare(asked: torch.Tensor = asked) -> None:
            (asked @ rows.mT).topk(10, dim=1)

        times = {name: timed(job, device) for name, job in (("ours", run), ("bare", bare))}
        share = count * dims * rows.element_size() / times["ours"]
        lines.append(
            [
                f"{queries} queries, {count:,} x {dims} {dtype}",
                f"{1e3 * times['ours']:.2f}",
                f"{times['ours'] / times['bare']:.2f}",
                f"{share / 1e9:.0f}",
            ]
        )
    return lines


def timed(run: Callable[[], object], device: torch.device) -> float:
    """Return the seconds of a run that has run before."""
    run()
    wait(device)
    began = time.perf_counter()
    run()
    wait(device)
    return time.perf_counter() - began


def product_rate(device: torch.device, dtype: torch.dtype, side: int) -> float:
    """Return the multiply-adds a second of a square product."""
    square = torch.randn(side, side, device=device, dtype=dtype)
    return side**3 / min(timed(lambda: square @ square, device) for _ in range(5))


def side_of(size: Size) -> int:
    """Return the side of the product that rates are compared with."""
    return 64 if size.name == "quick" else SIDE


def wait(device: torch.device) -> None:
    """Wait until a device has done its work."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def used_memory(device: torch.device, *, reset: bool = False) -> int:
    """Return the peak of memory in bytes since the last reset, or what is held at a reset."""
    if device.type != "cuda":
        return 0
    if not reset:
        return torch.cuda.max_memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.memory_allocated()


@contextmanager
def precision_of(name: str) -> Iterator[None]:
    """Let float32 products run in tf32, or not."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = name == "tf32"
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def tests(device: torch.device) -> str:
    """Run the tests that need a card, and return their last line."""
    if device.type != "cuda":
        return "no card here, so that the tests marked `gpu` did not run"
    command = [sys.executable, "-m", "pytest", "-q", "tests/test_on_a_card.py"]
    if importlib.util.find_spec("pytest") is None:
        return "pytest is not installed, so that the tests marked `gpu` did not run"
    root = Path(__file__).parent.parent
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, cwd=root, check=False, timeout=TESTS_SECONDS
        )
    except subprocess.TimeoutExpired:
        return f"they took longer than {TESTS_SECONDS} s"
    return (done.stdout.strip().splitlines() or [done.stderr[-200:]])[-1]


@dataclass
class Outcome:
    """What a run has found, and what it has not.

    Args:
        lines: Of the table.
        left_out: What the time did not suffice for.
        failed: What ended with an error, and how.
    """

    lines: list[list[str]] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)

    @contextmanager
    def going_on(self, what: str) -> Iterator[None]:
        """Note an error and go on with the rest: a card is lent for minutes."""
        try:
            yield
        except Exception as error:
            traceback.print_exc()
            self.failed.append(f"{what}: {error!r}"[:300])


def measured(chosen: Namespace, device: torch.device, folder: Path, until: float) -> Outcome:
    """Return what was measured until a time; an error of one stage leaves the others."""
    found = Outcome()
    for size in QUICK if chosen.quick or device.type == "cpu" else FULL:
        for precision in PRECISIONS if device.type == "cuda" else PRECISIONS[:1]:
            with precision_of(precision):
                bench = Bench(size, precision, device)
                for name, run in stages(bench, folder):
                    if time.monotonic() > until:
                        found.left_out.append(f"{size.name} {precision} {name}")
                        continue
                    with found.going_on(f"{size.name} {precision} {name}"):
                        run()
                found.lines += bench.lines
                nn.Module.to(bench.model, "cpu")
                if device.type == "cuda":
                    torch.cuda.empty_cache()
    return found


def main() -> None:
    """Print the tables."""
    parser: ArgumentParser = options(__doc__)
    parser.add_argument("--minutes", type=float, default=8.0, help="after which nothing begins")
    chosen = parse(parser)
    until = time.monotonic() + 60 * chosen.minutes
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name = torch.cuda.get_device_name() if device.type == "cuda" else "no card"
    ended = tests(device)
    with tempfile.TemporaryDirectory() as folder:
        done = measured(chosen, device, Path(folder), until)
    found = []
    with done.going_on("exact search"):
        found = search(device, chosen.quick or device.type == "cpu")
    head = ["model", "precision", "stage", "seconds", "tokens/s", "time / plain step"]
    head += ["share of the product rate", "peak GB", "planned GB"]
    notes = [
        f"On {name}. Counted are the matrix products of each stage; the rate is that of a square "
        f"product of side {SIDE:,} (64 without a card) in the same precision, in the same run. "
        "The peak is what a stage held beside the model.",
        "Aims for building an index: "
        + " and ".join(
            f"{aim:.0%} of the rate of a plain step at {size}" for size, aim in AIMS.items()
        )
        + ".",
        "Left out for want of time: " + (", ".join(done.left_out) or "nothing") + ".",
        "Ended with an error: " + ("; ".join(done.failed) or "nothing") + ".",
        f"Tests on the card: {ended}.",
    ]
    if importlib.util.find_spec("kronfluence") is None:
        notes.append("`kronfluence` is not installed here, so that nothing stands beside EK-FAC.")
    parts = [
        table(head, done.lines),
        "## Exact search",
        table(["search", "milliseconds", "time / product and top-k", "GB/s of rows"], found),
        "\n\n".join(notes),
    ]
    publish("On a card", parts, chosen.out)
    if done.failed:
        sys.exit(1)


if __name__ == "__main__":
    np.random.seed(0)
    main()
