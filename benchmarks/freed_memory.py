"""What it saves to keep the memory of one batch for the next, and whether that costs memory.

Indexes sequences of many lengths and fits EK-FAC to them, in processes of their own that take
turns: as the library does it, and with a (meaningless) setting of the GNU C library's `malloc` in
the environment, where the library leaves memory alone.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import torch
from measuring import options, parse, peak_memory, publish, table
from small_llama import build_model

from influence import EKFAC
from projections import SJLT, CausalLM, PassSettings, index_gradients

LEAVE_ALONE = {"GLIBC_TUNABLES": "glibc.malloc.check=0"}
HIDDEN = 192  # a multiple of 6 heads
LONGEST = 128


def main() -> None:
    """Print the table."""
    parser = options(__doc__)
    parser.add_argument("--batch-size", type=int, default=32, help="sequences that run together")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    chosen = parse(parser)
    if chosen.child:
        print(json.dumps(work(chosen.quick, chosen.batch_size)))
        return
    ways = {"kept": {}, "left to the C library": LEAVE_ALONE}
    found: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
    rounds = 1 if chosen.quick else chosen.rounds
    for number in range(rounds):
        for way, setting in list(ways.items())[:: 1 if number % 2 else -1]:
            found[way].append(run_alone(setting, chosen))
    rows = []
    for stage in ("index", "fit"):
        kept, left = ([run[stage] for run in found[way]] for way in ways)
        ratio = median(a / b for a, b in zip(kept, left, strict=True))
        rows.append([stage, f"{median(kept):.1f} s", f"{median(left):.1f} s", f"{ratio:.2f}"])
    peaks = [median(run["peak"] for run in found[way]) / 2**20 for way in ways]
    rows.append(
        ["peak memory", *(f"{peak:.0f} MB" for peak in peaks), f"{peaks[0] / peaks[1]:.2f}"]
    )
    parts = [
        f"A Llama of hidden {HIDDEN} and 4 layers; sequences of 16 to {LONGEST} tokens, in batches "
        f"of {chosen.batch_size}. Medians of {rounds} rounds, ratios within a round.",
        table(["", *ways, "ratio"], rows),
    ]
    publish("Memory that batches free", parts, chosen.out)


def run_alone(setting: dict[str, str], chosen: argparse.Namespace) -> dict[str, float]:
    """Work in a process of its own and return what it says."""
    command = [sys.executable, __file__, "--child", "--threads", str(torch.get_num_threads())]
    command += ["--batch-size", str(chosen.batch_size)]
    done = subprocess.run(
        [*command, "--quick"] if chosen.quick else command,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        env=without_settings() | setting,
    )
    return json.loads(done.stdout.splitlines()[-1])


def without_settings() -> dict[str, str]:
    """Return the environment without settings of `malloc`."""
    return {
        name: value
        for name, value in os.environ.items()
        if name != "GLIBC_TUNABLES" and not (name.startswith("MALLOC_") and name.endswith("_"))
    }


def work(quick: bool, batch_size: int) -> dict[str, float]:
    """Return the seconds of an index and of a fit, and the most memory that was held."""
    model = build_model(quick, hidden=HIDDEN)
    task, generator = CausalLM(model), torch.Generator().manual_seed(0)
    count, vocabulary = 16 if quick else 768, model.config.vocab_size
    lengths = torch.randint(16, LONGEST + 1, (count,), generator=generator).tolist()
    rows = [
        {"input_ids": torch.randint(vocabulary, (length,), generator=generator).tolist()}
        for length in lengths
    ]
    settings = PassSettings(batch_size=batch_size, layers=("*_proj",))
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        projector = SJLT(num_dims=1024, seed=0)
        index_gradients(task, rows, projector, path=Path(folder) / "store", settings=settings)
    indexed = time.perf_counter()
    EKFAC(seed=0).fit(task, rows, settings=settings)
    fitted = time.perf_counter()
    return {"index": indexed - began, "fit": fitted - indexed, "peak": peak_memory()}


if __name__ == "__main__":
    main()
