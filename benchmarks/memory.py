"""Does the memory of a pass grow with the number of examples?

Indexes generated examples in processes of their own, a growing number of them, and reads
the most memory that each process ever held. Examples are made when they are asked for.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter

import torch
from measuring import options, parse, peak_memory, publish, table
from torch import nn
from torch.utils.data import Dataset

from projections import SJLT, Classification, PassSettings, index_gradients

BOUND = 64  # bytes a row: ids, and a line of the manifest for each shard
WIDTHS = (64, 64, 10)  # of the perceptron
NUM_DIMS = 256  # a kilobyte a row on disk


class Generated(Dataset):
    """Random examples, each a function of its number.

    Args:
        size: How many there are.
    """

    def __init__(self, size: int) -> None:
        """Keep the size."""
        self.size = size

    def __len__(self) -> int:
        """Return the number of examples."""
        return self.size

    def __getitem__(self, position: int) -> tuple[torch.Tensor, int]:
        """Make one example."""
        generator = torch.Generator().manual_seed(position)
        return torch.randn(WIDTHS[0], generator=generator), position % WIDTHS[-1]


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[25_000, 50_000, 100_000, 200_000])
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    chosen = parse(parser)
    if chosen.child is not None:
        print(json.dumps(index(chosen.child)))
        return
    sizes = [2_000, 4_000] if chosen.quick else chosen.sizes
    results = [run_alone(size) for size in sizes]
    least = results[0]["peak"]
    rows = [
        [
            f"{size:,}",
            f"{result['seconds']:.0f}",
            f"{result['stored'] / 2**20:.0f}",
            f"{result['before'] / 2**20:.0f}",
            f"{result['peak'] / 2**20:.1f}",
            f"{(result['peak'] - least) / max(1, size - sizes[0]):.0f}" if size > sizes[0] else "",
        ]
        for size, result in zip(sizes, results, strict=True)
    ]
    head = ["examples", "seconds", "MB on disk", "MB before", "peak MB", "bytes a further example"]
    publish(
        "Memory of a pass",
        [
            f"A perceptron of {' x '.join(map(str, WIDTHS))}, SJLT rows of {NUM_DIMS} dimensions "
            f"({4 * NUM_DIMS} bytes), exact norms and losses. Held before the pass are Python, "
            f"torch and the model. Bound: {BOUND} bytes a further example, against "
            f"{4 * NUM_DIMS + 16} that go to disk.",
            table(head, rows),
        ],
        chosen.out,
    )


def run_alone(size: int) -> dict[str, float]:
    """Index in a process of its own and return what it says."""
    command = [sys.executable, __file__, "--child", str(size)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def index(size: int) -> dict[str, float]:
    """Index ``size`` examples and return the time, the peak and what is on disk."""
    torch.manual_seed(0)
    layers = [nn.Linear(*WIDTHS[:2]), nn.ReLU(), nn.Linear(*WIDTHS[1:])]
    task = Classification(nn.Sequential(*layers).eval())
    before = peak_memory()
    began = perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        index_gradients(
            task,
            Generated(size),
            SJLT(num_dims=NUM_DIMS, seed=0),
            path=Path(folder) / "store",
            settings=PassSettings(batch_size=256),
        )
        seconds = perf_counter() - began
        stored = sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file())
    return {"seconds": seconds, "before": before, "peak": peak_memory(), "stored": stored}


if __name__ == "__main__":
    main()
