"""Pages: templates beside this file, with their style inside, so that one file is all.

What is put into a page is escaped; only figures, which are drawn here, are not.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from projections import replacing

FOLDER = Path(__file__).parent


def write_page(path: Path, template: str, **values: Any) -> None:
    """Render a template to a file, whole or not at all.

    Args:
        path: The file.
        template: Name of the template.
        values: What it shows.
    """
    style = Markup((FOLDER / "page.css").read_text())
    written = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    page = _environment().get_template(template).render(style=style, written=written, **values)
    with replacing(path) as file:
        file.write(page.encode())


def with_spread(values: Sequence[float], digits: int = 3, *, percent: bool = False) -> Markup:
    """Return the mean of some numbers and, beneath notice, their standard deviation.

    Args:
        values: One number a seed.
        digits: Digits after the point.
        percent: Whether to show percentages of 1.

    Example:
        >>> with_spread([0.5, 0.75], 1, percent=True)
        Markup('62.5% <span class="spread">±17.7</span>')
    """
    scale, unit = (100, "%") if percent else (1, "")
    shown = f"{mean(values) * scale:.{digits}f}{unit}"
    if len(values) > 1:
        shown += f' <span class="spread">±{stdev(values) * scale:.{digits}f}</span>'
    return Markup(shown)


def as_percent(value: float, digits: int = 1) -> str:
    """Return a share as a percentage."""
    return f"{value:.{digits}%}"


def as_number(value: float) -> str:
    """Return a number with four digits.

    Example:
        >>> as_number(0.00123456), as_number(12345678.0)
        ('0.001235', '1.235e+07')
    """
    return f"{value:.4g}"


def align_numbers(values: Sequence[float]) -> list[str]:
    """Return numbers with the same digits after the point, for a column.

    Where that would hide the small ones, each has four digits of its own.

    Example:
        >>> align_numbers([1115.25, 38.561, 0.5]), align_numbers([1000.0, 0.0001])
        (['1115.25', '38.56', '0.50'], ['1000', '0.0001'])
    """
    sizes = [abs(value) for value in values if value]
    digits = max(0, 6 - len(str(int(max(sizes, default=0)))))
    if sizes and min(sizes) < 10 ** (1 - digits):
        return [as_number(value) for value in values]
    return [f"{value:.{digits}f}" for value in values]


def _environment() -> Environment:
    """Return the environment of the templates."""
    environment = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(spread=with_spread, percent=as_percent, number=as_number, mean=mean)
    return environment
