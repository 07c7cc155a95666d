"""Projected gradients of an MNIST-size perceptron, against traker on its CPU path.

Both take the gradients of the same loss in the same parameters for the same examples, to
the same number of dimensions, and write them to disk. traker multiplies by a dense random
matrix that it draws anew for each batch; its batches are larger here, which is to its
advantage. Beside the time stands the error of the inner products, so that one sees what
was paid for the speed.

traker needs an environment of its own, with torch and traker in it; its interpreter is
given by ``--peer-python``. Without it, the peer's column is left out.
"""

import subprocess
import tempfile
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measuring import Times, interleave, options, parse, publish, table
from torch import Tensor, nn

from projections import SJLT, Classification, PassSettings, index_gradients

BOUND = 5
OURS, PEER = "gradsift, SJLT", "traker, BasicProjector"
WIDTHS = (784, 128, 64, 10)
NUM_COMPARED = 200  # examples whose inner products are compared with exact ones


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--examples", type=int, default=2048)
    parser.add_argument("--num-dims", type=int, default=2048)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--peer-batch-size", type=int, default=512)
    parser.add_argument("--data", type=Path, help="mnist.npz with x_train and y_train")
    parser.add_argument("--peer-python", help="interpreter of an environment with traker")
    chosen = parse(parser)
    if chosen.quick:
        chosen.examples, chosen.num_dims, chosen.rounds = 64, 64, 1
    measured = measure(chosen)
    publish("Projected gradients, against traker", report(chosen, measured), chosen.out)


@dataclass(frozen=True)
class Measured:
    """What both sides took, what they found, and what is right."""

    times: Times
    sketches: dict[str, np.ndarray]
    exact: np.ndarray


def measure(chosen: Namespace) -> Measured:
    """Let both sides project the same gradients in turns."""
    images, labels = load(chosen.data, chosen.examples)
    model = build_model()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ours = OurRun(model, images, labels, chosen.num_dims, chosen.batch_size, folder)
        runs: dict[str, Callable[[], object]] = {OURS: ours}
        peer = None
        if chosen.peer_python:
            task = {
                "state": model.state_dict(),
                "widths": WIDTHS,
                "images": images,
                "labels": labels,
                "num_dims": chosen.num_dims,
                "peer_batch_size": chosen.peer_batch_size,
                "threads": torch.get_num_threads(),
            }
            peer = start_peer(chosen.peer_python, task, folder)
            runs[PEER] = lambda: ask(peer)
        try:
            times = interleave(runs, chosen.rounds)
        finally:
            if peer is not None:
                peer.communicate()
        sketches = {OURS: ours.rows[:NUM_COMPARED]}
        if peer is not None:
            sketches[PEER] = np.load(folder / "peer.npy")[:NUM_COMPARED]
    exact = exact_gradients(model, images[:NUM_COMPARED], labels[:NUM_COMPARED])
    return Measured(times, sketches, exact)


def report(chosen: Namespace, measured: Measured) -> list[str]:
    """Return the table, and what it is of."""
    times, with_peer = measured.times, PEER in measured.sketches
    rows = [
        [
            name,
            chosen.batch_size if name == OURS else chosen.peer_batch_size,
            f"{times.typical(name):.2f}",
            f"{chosen.examples / times.typical(name):.0f}",
            f"{times.ratio(PEER, name):.1f}" if with_peer else "",
            f"at least {BOUND}" if name == OURS else "",
            f"{rms_error(sketch, measured.exact):.4f}",
        ]
        for name, sketch in measured.sketches.items()
    ]
    head = ["", "batch", "seconds", "examples/s", "times faster", "bound", "error"]
    parts = [
        f"A perceptron of {' x '.join(map(str, WIDTHS))} ({measured.exact.shape[1]:,} parameters), "
        f"{chosen.examples} {'images' if chosen.data else 'random images'}, {chosen.num_dims} "
        f"dimensions, float32; {chosen.rounds} rounds. Error: root mean square, over all pairs of "
        f"{len(measured.exact)} examples, of the inner product less the exact one, divided by the "
        f"exact norms; one over the root of the dimensions is {chosen.num_dims**-0.5:.4f}.",
        table(head, rows),
    ]
    if not with_peer:
        parts.append("The peer was absent: give its interpreter with `--peer-python`.")
    return parts


class OurRun:
    """Builds a new store at each call, and keeps its rows."""

    def __init__(
        self,
        model: nn.Module,
        images: Tensor,
        labels: Tensor,
        num_dims: int,
        batch_size: int,
        folder: Path,
    ) -> None:
        """Keep the arguments, and the data as a list of rows."""
        self.task = Classification(model)
        self.data = list(zip(images, labels.tolist(), strict=True))
        self.projector = SJLT(num_dims=num_dims, seed=0)
        self.settings = PassSettings(batch_size=batch_size)
        self.folder = folder
        self.count = 0
        self.rows = np.empty(0)

    def __call__(self) -> None:
        """Build the store."""
        self.count += 1
        path = self.folder / f"ours-{self.count}"
        store = index_gradients(
            self.task, self.data, self.projector, path=path, settings=self.settings
        )
        self.rows = store.column("sketch")


def load(path: Path | None, count: int) -> tuple[Tensor, Tensor]:
    """Return images as vectors in [0, 1], and labels; random ones without a file."""
    if path is None:
        random = np.random.default_rng(0)
        images = random.random((count, WIDTHS[0]), dtype=np.float32)
        return torch.from_numpy(images), torch.from_numpy(random.integers(0, WIDTHS[-1], count))
    with np.load(path) as arrays:
        images = arrays["x_train"][:count].reshape(-1, WIDTHS[0]) / np.float32(255)
        return torch.from_numpy(images), torch.from_numpy(arrays["y_train"][:count]).long()


def build_model() -> nn.Module:
    """Return a perceptron with random weights."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for num_in, num_out in pairwise(WIDTHS):
        layers += [nn.Linear(num_in, num_out), nn.ReLU()]
    return nn.Sequential(*layers[:-1]).eval()


def exact_gradients(model: nn.Module, images: Tensor, labels: Tensor) -> np.ndarray:
    """Return the whole gradients, by autograd for one example at a time."""
    rows = []
    for image, label in zip(images, labels, strict=True):
        loss = nn.functional.cross_entropy(model(image[None]), label[None])
        grads = torch.autograd.grad(loss, list(model.parameters()))
        rows.append(torch.cat([grad.flatten() for grad in grads]))
    return torch.stack(rows).double().numpy()


def rms_error(sketch: np.ndarray, exact: np.ndarray) -> float:
    """Return the error of inner products between different examples."""
    norms = np.linalg.norm(exact, axis=1)
    wide = sketch.astype(np.float64)
    errors = (wide @ wide.T - exact @ exact.T) / np.outer(norms, norms)
    return float(np.sqrt(np.mean(errors[~np.eye(len(exact), dtype=bool)] ** 2)))


def start_peer(python: str, task: dict[str, Any], folder: Path) -> subprocess.Popen[str]:
    """Start the peer and wait until it is ready."""
    torch.save(task, folder / "task.pt")
    script = Path(__file__).with_name("traker_peer.py")
    command = [python, str(script), str(folder)]
    pipe = subprocess.PIPE
    peer = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)
    assert peer.stdout is not None
    if peer.stdout.readline().strip() != "ready":
        raise RuntimeError(f"the peer must start. {python} did not; its message is above.")
    return peer


def ask(peer: subprocess.Popen[str]) -> float:
    """Let the peer featurise all examples once, and return the seconds it took."""
    assert peer.stdin is not None and peer.stdout is not None
    peer.stdin.write("run\n")
    peer.stdin.flush()
    return float(peer.stdout.readline())


if __name__ == "__main__":
    main()
