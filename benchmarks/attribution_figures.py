"""Quality against what it costs: one picture a set-up."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from influence import Estimate

Point = tuple[str, float, int, Estimate]
"""A method, its seconds, its bytes and its LDS."""


def draw(points: Sequence[Point], title: str, path: Path) -> None:
    """Draw LDS against seconds and against bytes, both on logarithmic axes.

    Args:
        points: One a method.
        title: What the picture shows.
        path: The PNG to write.
    """
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    shown = sorted(points, key=lambda point: -point[3].mean)
    for number, (name, seconds, size, lds) in enumerate(shown):
        look = {"color": f"C{number % 10}", "marker": "os^Dv"[number // 10], "ls": ""}
        bars = {"yerr": lds.standard_error, "capsize": 2}
        left.errorbar(max(seconds, 0.01), lds.mean, label=name, **bars, **look)
        right.errorbar(max(size / 1e6, 1e-3), lds.mean, **bars, **look)
    finish(left, "seconds of processor: fit and all scores", ylabel="LDS")
    finish(right, "MB kept to answer queries (left edge: none)")
    figure.legend(loc="outside right upper", fontsize=8, frameon=False)
    figure.suptitle(title, fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=80, metadata={"Software": None})


def finish(axes: Axes, xlabel: str, ylabel: str = "") -> None:
    """Name the axes and make them logarithmic."""
    axes.set_xscale("log")
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.grid(alpha=0.3)
