"""What the benchmarks share: the machine in one line, interleaved timing, tables.

Runs that are compared take turns (A, B, A, B, ...), and a ratio is the median over the
rounds of the ratio within a round, so that a machine that is slow for a while slows both.
"""

import argparse
import os
import platform
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from resource import RUSAGE_SELF, getrusage
from statistics import mean, median, stdev

import torch


@dataclass(frozen=True)
class Times:
    """Seconds of each run in each round.

    Args:
        seconds: By the name of the run, one number a round.
    """

    seconds: Mapping[str, list[float]]

    def typical(self, name: str) -> float:
        """Return the median over the rounds."""
        return median(self.seconds[name])

    def ratio(self, name: str, reference: str) -> float:
        """Return the median over the rounds of one run's time over another's."""
        pairs = zip(self.seconds[name], self.seconds[reference], strict=True)
        return median(left / right for left, right in pairs)


def interleave(runs: Mapping[str, Callable[[], object]], rounds: int, *, repeats: int = 1) -> Times:
    """Time the runs in turn, after one round that does not count.

    Args:
        runs: What to run, by name. A run that returns a float has measured itself.
        rounds: Number of rounds that count.
        repeats: How often a run is repeated within a round, for runs of milliseconds.
    """
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds + 1):
        for name, run in runs.items():
            began = time.perf_counter()
            results = [run() for _ in range(repeats)]
            taken = (time.perf_counter() - began) / repeats
            if number:
                own = results[-1]
                seconds[name].append(own if isinstance(own, float) else taken)
    return Times(seconds)


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return a markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def spread(values: Sequence[float], digits: int = 3) -> str:
    """Return the mean and its standard error."""
    if len(values) < 2:
        return f"{mean(values):.{digits}f}"
    error = stdev(values) / len(values) ** 0.5
    return f"{mean(values):.{digits}f} ± {error:.{digits}f}"


def machine() -> str:
    """Return the processor, the number of cores in use and the version of torch."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        model = names[0].partition(":")[2].strip() if names else model
    return (
        f"{model}, {os.cpu_count()} cores, {torch.get_num_threads()} threads; "
        f"torch {torch.__version__}, Python {platform.python_version()}"
    )


def peak_memory() -> int:
    """Return the most bytes that this process ever held."""
    status = Path("/proc/self/status")
    if status.exists():
        # NOTE: on Linux, ru_maxrss is inherited from the parent; this is not.
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    return getrusage(RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def options(description: str | None) -> argparse.ArgumentParser:
    """Return a parser with the options that every benchmark has; `parse` reads them."""
    parser = argparse.ArgumentParser(description=(description or "").partition("\n\n")[0])
    parser.add_argument("--quick", action="store_true", help="a small size, for tests")
    parser.add_argument("--rounds", type=int, default=5, help="rounds that count")
    parser.add_argument("--threads", type=int, help="threads of torch; default: its own choice")
    parser.add_argument("--out", type=Path, help="file to write the report to")
    return parser


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Return what was chosen, with the number of threads set."""
    chosen = parser.parse_args()
    if chosen.threads is not None:
        torch.set_num_threads(chosen.threads)
    return chosen


def publish(title: str, parts: Sequence[str], out: Path | None) -> None:
    """Print a report, and write it to ``out`` if that is given."""
    load = f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "unknown"
    head = [
        f"# {title}",
        f"{datetime.now(UTC):%Y-%m-%d}; {machine()}; load average at the end {load}.",
        f"`{_command()}`",
    ]
    text = "\n\n".join([*head, *parts]) + "\n"
    print(text)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text)


def _command() -> str:
    """Return the command that was typed, without where things lie on this machine."""
    words = ["python", f"benchmarks/{Path(sys.argv[0]).name}"]
    hidden = False
    for word in sys.argv[1:]:
        if word.startswith("--out"):
            hidden = "=" not in word
        elif hidden:
            hidden = False
        else:
            words.append(Path(word).name if Path(word).is_absolute() else word)
    return shlex.join(words)
