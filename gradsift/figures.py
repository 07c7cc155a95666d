"""Figures for a page: drawn by matplotlib, returned as SVG text that follows the page's colours.

Colours are names of CSS variables of the page, so one drawing serves light and dark. Text
stays text. Letters: ``n`` values.
"""

from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence
from html import escape
from io import BytesIO, StringIO
from re import search, sub
from typing import Any

import numpy as np
from jaxtyping import Float
from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import imsave
from matplotlib.ticker import MaxNLocator, PercentFormatter

SIZE = (4.8, 3.0)  # inches; narrow, so that text stays readable on a phone
NUM_SERIES = 4  # colours for series; further ones are drawn muted
INK, GRID, MUTED = "#010101", "#020202", "#030303"
SERIES = tuple(f"#0100{number:02x}" for number in range(1, NUM_SERIES + 1))
VARIABLES = {
    INK: "--ink-soft",
    GRID: "--rule",
    MUTED: "--series-muted",
    **{color: f"--series-{number}" for number, color in enumerate(SERIES, start=1)},
}
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.size": 9.5,
    "text.color": INK,
    "axes.edgecolor": GRID,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "axes.unicode_minus": False,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.size": 3,
    "ytick.major.size": 0,
    "lines.linewidth": 2,
    "legend.frameon": False,
}
DASHES = ("-", (0, (5, 2)), (0, (2, 1.5)), (0, (6, 2, 1.5, 2)))  # for those who see no colours


def line_chart(
    x: Sequence[float],
    series: Mapping[str, Sequence[float]],
    *,
    label: str,
    x_label: str,
    y_label: str,
    percent: tuple[str, ...] = (),
    muted: tuple[str, ...] = (),
    markers: bool = False,
) -> Markup:
    """Draw lines with a legend.

    Args:
        x: Where the values are.
        series: Values by name; at most four that are not muted.
        label: What the figure shows, for those who do not see it.
        x_label: Label of the horizontal axis.
        y_label: Label of the vertical axis.
        percent: Which of the axes, of ``"x"`` and ``"y"``, show percentages of 1.
        muted: Names of series drawn thin and grey, without an entry in the legend.
        markers: Whether to mark the values, and to label their places only.
    """

    def draw(axes: Axes) -> None:
        shown = [name for name in series if name not in muted]
        for name in muted:
            axes.plot(x, series[name], color=MUTED, linewidth=1.1)
        for number, name in enumerate(shown):
            axes.plot(
                x,
                series[name],
                color=SERIES[number % NUM_SERIES],
                linestyle=DASHES[number % NUM_SERIES],
                marker="o" if markers else None,
                markersize=4,
                label=name,
            )
        for axis, formatted in ((axes.xaxis, "x"), (axes.yaxis, "y")):
            axis.set_major_locator(MaxNLocator(5))
            if formatted in percent:
                axis.set_major_formatter(PercentFormatter(1, decimals=0))
        if markers:
            axes.set_xticks(x)
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        axes.legend(loc="best", handlelength=2.6)

    return _svg(draw, label)


def bar_chart(
    values: Mapping[str, float], *, label: str, x_label: str, highlight: tuple[str, ...]
) -> Markup:
    """Draw horizontal bars of shares, the first on top, each with its value.

    Args:
        values: Shares between 0 and 1, by name.
        label: What the figure shows, for those who do not see it.
        x_label: Label of the horizontal axis.
        highlight: Names that are drawn in colour.
    """

    def draw(axes: Axes) -> None:
        places = np.arange(len(values))[::-1]
        colors = [SERIES[0] if name in highlight else MUTED for name in values]
        axes.barh(places, list(values.values()), color=colors, height=0.62)
        for place, value in zip(places, values.values(), strict=True):
            axes.text(value + 0.01, float(place), f"{value:.1%}", va="center")
        axes.set_yticks(places, list(values))
        axes.set_xlim(0, max(values.values()) * 1.18)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.grid(False)
        axes.set_xlabel(x_label)

    return _svg(draw, label)


def histogram(values: Float[np.ndarray, " n"], *, label: str, x_label: str) -> Markup:
    """Draw how many of the values lie where.

    Args:
        values: Finite numbers.
        label: What the figure shows, for those who do not see it.
        x_label: Label of the horizontal axis.
    """

    def draw(axes: Axes) -> None:
        axes.hist(values, bins=min(40, max(5, len(values) // 5)), color=SERIES[0])
        axes.axvline(float(np.median(values)), color=INK, linewidth=1, linestyle=(0, (4, 3)))
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
        axes.set_xlabel(x_label)
        axes.set_ylabel("examples")

    return _svg(draw, label)


def image_uri(pixels: Any) -> str:
    """Return an image as the address of an inline PNG.

    Args:
        pixels: Grey values in rows and columns, or colours last; any range of values.
    """
    file = BytesIO()
    values = np.asarray(pixels, dtype=float)
    if values.ndim == 3:
        values = (values - values.min()) / (np.ptp(values) or 1.0)
    imsave(file, values, cmap="gray", format="png")
    return "data:image/png;base64," + b64encode(file.getvalue()).decode()


def _svg(draw: Callable[[Axes], None], label: str) -> Markup:
    """Draw one figure and return it as an element that scales with the page."""
    # NOTE: the ids inside must differ between the figures of a page; the label seeds them.
    with rc_context({**STYLE, "svg.hashsalt": label}):
        figure = Figure(figsize=SIZE, layout="constrained")
        draw(figure.add_subplot())
        file = StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    drawn = file.getvalue()
    box = search(r'viewBox="([^"]*)"', drawn)
    assert box is not None
    inside = drawn[drawn.index("</defs>") + len("</defs>") :]  # after a style for the whole page
    inside = sub(r' id="[a-z0-9.]+_[0-9]+"', "", inside).replace("xlink:href", "href")
    inside = sub(r'font-family: [^;"]*', "font-family: inherit", inside)
    for color, variable in VARIABLES.items():
        inside = inside.replace(color, f"var({variable})")
    opening = f'<svg class="figure" viewBox="{box[1]}" role="img" aria-label="{escape(label)}">'
    return Markup(opening + inside)
