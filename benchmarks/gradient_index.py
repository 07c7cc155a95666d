"""The gradient index beside its alternatives: building, memory, peers and queries.

**Building.** A Llama of ten million parameters, from its configuration; random tokens. The
plain run is what training does: batches that are already tensors, the model's own loss,
weight gradients of the whole batch. The index run is `index_gradients` from Python lists to
a store on disk: its checks, SJLT rows, exact norms, losses, checksums.

**Peers** take the gradients of the same loss in the same parameters for the same examples,
to the same number of dimensions, in environments of their own. On a CPU they multiply by a
dense random matrix that they draw for every batch, so they get the parameters of a few
layers only, and all examples in one batch, which is to their advantage.

**Memory** is planned from shapes and measured in a process of its own.

**Queries** are in `gradient_queries.py`, whose tables follow.
"""

import json
import subprocess
import sys
import tempfile
from argparse import SUPPRESS, Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from gradient_queries import query_report
from measuring import Times, interleave, options, parse, peak_memory, publish, table
from small_llama import build_model, count_operations, train_batches, wait
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from projections import SJLT, CausalLM, PassSettings, index_gradients, plan_pass

PLAIN, PRODUCT, OURS = "plain forward and backward", "matrix product", "gradsift, SJLT"
SIDE = 2048  # of the product that shows what the machine can do
PRODUCTS = 20  # of them in a run
MOST_OF_PLAIN = 1.25
LEAST_OVER = {"traker": 10, "dattri": 5, "bergson": 2}
PLAN_WITHIN = 0.2


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--tokens", type=int, default=32_768, help="in all examples of a run")
    parser.add_argument("--lengths", type=int, nargs="+", default=[128, 512], help="of an example")
    parser.add_argument("--batch-tokens", type=int, default=2048)
    parser.add_argument("--num-dims", type=int, default=4096)
    parser.add_argument("--hidden", type=int, default=384, help="width of the model")
    parser.add_argument("--num-layers", type=int, default=4)
    parser.add_argument("--traker-python", help="interpreter of an environment with traker")
    parser.add_argument("--dattri-python", help="interpreter of an environment with dattri")
    parser.add_argument("--bergson-python", help="interpreter of an environment with bergson")
    parser.add_argument("--peer-examples", type=int, default=32)
    parser.add_argument("--peer-layers", nargs="+", default=["model.layers.0.mlp.up_proj"])
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--only", choices=["build", "peers", "memory", "queries"])
    parser.add_argument("--child", action="store_true", help=SUPPRESS)
    chosen = parse(parser)
    if chosen.quick:
        chosen.tokens, chosen.lengths, chosen.rounds, chosen.num_dims = 128, [16], 1, 64
        chosen.rows, chosen.peer_examples = [3_000], 8
    if chosen.child:
        print(json.dumps(measure_memory(chosen)))
        return
    parts = {
        "build": build_report,
        "peers": peer_report,
        "memory": memory_report,
        "queries": lambda options: query_report(options.rows, options.num_dims, options.rounds),
    }
    if chosen.only:
        parts = {chosen.only: parts[chosen.only]}
    published = [text for report in parts.values() for text in report(chosen)]
    publish("The gradient index", published, chosen.out)


# Building.


@dataclass
class Setup:
    """A model, its data, and where they are."""

    model: LlamaForCausalLM
    tokens: Tensor
    device: torch.device


def set_up(chosen: Namespace, num_examples: int, length: int) -> Setup:
    """Return a model with random weights, and random tokens."""
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = build_model(chosen.quick, hidden=chosen.hidden, num_layers=chosen.num_layers)
    nn.Module.to(model, device)
    generator = torch.Generator().manual_seed(0)
    shape = (num_examples, length)
    return Setup(model, torch.randint(model.config.vocab_size, shape, generator=generator), device)


class IndexRun:
    """Builds a new store at each call, and keeps its rows."""

    def __init__(
        self, setup: Setup, chosen: Namespace, folder: Path, layers: tuple[str, ...] | None = None
    ) -> None:
        """Keep the arguments, and the data as a user has it."""
        self.task = CausalLM(setup.model)
        self.data = [{"input_ids": row} for row in setup.tokens.tolist()]
        self.settings = PassSettings(
            batch_size=chosen.batch_tokens, max_tokens=chosen.batch_tokens, layers=layers
        )
        self.projector = SJLT(num_dims=chosen.num_dims, seed=0)
        self.folder = folder
        self.count = 0
        self.rows = np.empty(0)

    def __call__(self) -> None:
        """Build the store."""
        self.count += 1
        path = self.folder / str(self.count)
        store = index_gradients(
            self.task, self.data, self.projector, path=path, settings=self.settings
        )
        self.rows = store.column("sketch")


def build_report(chosen: Namespace) -> list[str]:
    """Time the index against a plain forward and backward."""
    side = 64 if chosen.quick else SIDE
    rows, device, size = [], "", 0
    for length in chosen.lengths:
        setup = set_up(chosen, chosen.tokens // length, length)
        device, size = setup.device, sum(p.numel() for p in setup.model.parameters())
        square = torch.randn(side, side, device=setup.device)
        with tempfile.TemporaryDirectory() as folder:
            runs: dict[str, Callable[[], object]] = {
                PLAIN: partial(
                    train_batches, setup.model, setup.tokens, chosen.batch_tokens // length
                ),
                OURS: IndexRun(setup, chosen, Path(folder)),
                PRODUCT: partial(multiply, square),
            }
            times = interleave(runs, chosen.rounds)
        work = count_operations(setup.model, length) * len(setup.tokens)
        best = PRODUCTS * 2 * side**3 / times.typical(PRODUCT)
        for name in (PLAIN, OURS):
            rate = work / times.typical(name)
            goal = f"at most {MOST_OF_PLAIN}" if name == OURS else ""
            cells = [f"{times.typical(name):.2f}", f"{times.ratio(name, PLAIN):.2f}", goal]
            counted = [f"{work / 1e9:.0f}", f"{rate / 1e9:.0f}", f"{rate / best:.0%}"]
            rows.append([f"{len(setup.tokens)} x {length}", name, *cells, *counted])
        rows.append(["", f"{PRODUCT} of {side} x {side}", "", "", "", "", f"{best / 1e9:.0f}", ""])
    head = ["examples x tokens", "run", "seconds", "ratio", "goal", "GFLOP", "GFLOP/s"]
    return [
        "## Building",
        f"A language model of {size / 1e6:.1f} million parameters on {device}, batches of "
        f"{chosen.batch_tokens} tokens, {chosen.num_dims} dimensions, float32; {chosen.rounds} "
        "rounds. Counted are the matrix products that both runs need: three products of 2 "
        "operations for each weight of a linear layer and each token, and twice three for "
        "attention without its mask. The index also adds up each gradient's entries; its checks, "
        "which cost about six examples, are made in the round that does not count.",
        table([*head, "share of the machine's products"], rows),
    ]


def multiply(square: Tensor) -> None:
    """Run the products that show what the machine can do."""
    for _ in range(PRODUCTS):
        torch.mm(square, square)
    wait(square.device)


# Peers.


def peer_report(chosen: Namespace) -> list[str]:
    """Time the index against other packages, on the parameters of a few layers."""
    interpreters = {
        "traker": chosen.traker_python,
        "dattri": chosen.dattri_python,
        "bergson": chosen.bergson_python,
    }
    setup = set_up(chosen, chosen.peer_examples, chosen.lengths[0])
    setup.model.cpu()
    layers = tuple(chosen.peer_layers)
    names = [
        name
        for name, _ in setup.model.named_parameters()
        if name.rpartition(".")[0] in layers or name in layers
    ]
    peers: dict[str, Peer] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ours = IndexRun(setup, chosen, folder / "ours", layers=layers)
        task = {
            "config": setup.model.config.to_diff_dict(),
            "state": setup.model.state_dict(),
            "tokens": setup.tokens,
            "parameters": names,
            "num_dims": chosen.num_dims,
            "batch_size": chosen.peer_examples,
            "threads": torch.get_num_threads(),
        }
        torch.save(task, folder / "task.pt")
        try:
            for peer, python in interpreters.items():
                if python:
                    peers[peer] = Peer(python, peer, folder)
            runs: dict[str, Callable[[], object]] = {OURS: ours, **peers}
            times = interleave(runs, min(2, chosen.rounds))
            sketches = {OURS: ours.rows}
            sketches |= {peer: np.load(folder / f"{peer}.npy") for peer in peers}
        finally:
            for peer in peers.values():
                peer.end()
    exact = exact_gradients(setup.model, setup.tokens, names)
    rows = [
        peer_row(name, times, rms_error(rows, exact), chosen.peer_examples)
        for name, rows in sketches.items()
    ]
    head = ["", "seconds", "examples/s", "times slower", "goal", "error"]
    absent = [name for name, python in interpreters.items() if not python]
    return [
        "## Beside other packages",
        f"The parameters of {', '.join(layers)} ({exact.shape[1]:,}), {chosen.peer_examples} "
        f"examples, which are one batch to a peer, {chosen.num_dims} dimensions, float32, on the "
        "CPU. Error: root mean square, over all pairs, of the inner product less the exact one, "
        f"divided by the exact norms; theory says about {chosen.num_dims**-0.5:.4f} for unrelated "
        "gradients." + (f" Absent: {', '.join(absent)}." if absent else ""),
        table(head, rows),
    ]


def peer_row(name: str, times: Times, error: float, num_examples: int) -> list[str]:
    """Return the line of one package."""
    seconds = times.typical(name)
    goal = "" if name == OURS else f"at least {LEAST_OVER[name]}"
    ratio = f"{times.ratio(name, OURS):.1f}"
    return [name, f"{seconds:.2f}", f"{num_examples / seconds:.1f}", ratio, goal, f"{error:.4f}"]


class Peer:
    """Another package in a process of its own."""

    def __init__(self, python: str, name: str, folder: Path) -> None:
        """Start it and wait until it is ready."""
        script = Path(__file__).with_name("gradient_peer.py")
        pipe = subprocess.PIPE
        command = [python, str(script), name, str(folder)]
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)
        if self._read() != "ready":
            raise RuntimeError(f"the peer must start. {python} did not; its message is above.")

    def __call__(self) -> float:
        """Let it project all examples, and return the seconds it took."""
        assert self.process.stdin is not None
        self.process.stdin.write("run\n")
        self.process.stdin.flush()
        return float(self._read())

    def end(self) -> None:
        """Let it end."""
        self.process.communicate()

    def _read(self) -> str:
        """Return the next line it says."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()


def exact_gradients(model: LlamaForCausalLM, tokens: Tensor, names: Sequence[str]) -> np.ndarray:
    """Return the whole gradients, by autograd for one example at a time."""
    parameters = dict(model.named_parameters())
    rows = []
    for row in tokens:
        logits = model(input_ids=row[None], use_cache=False).logits[0]
        loss = nn.functional.cross_entropy(logits[:-1], row[1:], reduction="sum")
        grads = torch.autograd.grad(loss, [parameters[name] for name in names])
        rows.append(torch.cat([grad.flatten() for grad in grads]))
    return torch.stack(rows).numpy()


def rms_error(sketch: np.ndarray, exact: np.ndarray) -> float:
    """Return the error of inner products between different examples."""
    norms = np.linalg.norm(exact, axis=1)
    wide = sketch.astype(np.float64)
    errors = (wide @ wide.T - exact @ exact.T) / np.outer(norms, norms)
    return float(np.sqrt(np.mean(errors[~np.eye(len(exact), dtype=bool)] ** 2)))


# Memory.


def memory_report(chosen: Namespace) -> list[str]:
    """Compare planned with measured memory, in processes of their own."""
    rows = []
    for batch_tokens in (512,) if chosen.quick else (512, 2048, 4096):
        command = [sys.executable, __file__, "--child", "--batch-tokens", str(batch_tokens)]
        passed = ["--quick"] if chosen.quick else []
        passed += ["--threads", str(torch.get_num_threads()), "--num-dims", str(chosen.num_dims)]
        done = subprocess.run([*command, *passed], check=True, stdout=subprocess.PIPE, text=True)
        found = json.loads(done.stdout.splitlines()[-1])
        grown = found["peak"] - found["before"]
        planned = found["before"] + found["planned"]
        cells = [found["before"], found["planned"], grown, planned, found["peak"]]
        megabytes = [f"{cell / 2**20:.0f}" for cell in cells]
        rows.append([batch_tokens, *megabytes, f"{planned / found['peak'] - 1:+.0%}"])
    head = ["tokens in a batch", "MB before", "planned growth", "measured growth"]
    head += ["planned peak", "measured peak", "difference"]
    return [
        "## Memory",
        f"`plan_pass` before a pass against the most that its process ever held; goal: within "
        f"{PLAN_WITHIN:.0%}. Before are Python, torch, the model and the plan itself.",
        table(head, rows),
    ]


def measure_memory(chosen: Namespace) -> dict[str, int]:
    """Plan and run a pass, and return its peak."""
    length = chosen.lengths[0]
    setup = set_up(chosen, 2 * chosen.batch_tokens // length, length)
    with tempfile.TemporaryDirectory() as folder:
        run = IndexRun(setup, chosen, Path(folder))
        plan = plan_pass(run.task, run.data, run.projector, settings=run.settings)
        before = peak_memory()
        run()
    return {"before": before, "planned": plan.total, "peak": peak_memory()}


if __name__ == "__main__":
    main()
