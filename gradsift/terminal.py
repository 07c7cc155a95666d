"""What the demo shows on a terminal: the tables of its summary."""

from collections.abc import Iterator, Mapping, Sequence
from statistics import mean, stdev
from typing import Any

from gradsift.demo import NAMES
from gradsift.digits import METHODS

WIDTH = 96


def summary_lines(summary: Mapping[str, Any]) -> Iterator[str]:
    """Yield the numbers of a demo as lines.

    Args:
        summary: What ``summary.json`` holds.
    """
    seeds = len(summary["digits"]["seeds"])
    yield ""
    yield f"Score and prune: finding the wrong labels of digits ({seeds} seeds, mean ± deviation)"
    yield from _digits(summary["digits"])
    yield ""
    yield "Retrieve: passages of the standard library behind held-out ones"
    yield from _passages(summary["passages"])
    yield ""
    yield f"Reweight: a mixture that follows a target ({seeds} seeds)"
    yield from _mixing(summary["mixing"])
    yield ""


def _digits(digits: Mapping[str, Any]) -> Iterator[str]:
    """Yield the table of job 1."""
    yield _row("", "ROC-AUC", "precision", "accuracy pruned")
    for name in METHODS:
        cells = [_spread(digits[part][name]) for part in ("auc", "precision", "accuracy")]
        yield _row(NAMES[name], *cells)
    for name, label in (
        ("all data", "all data"),
        ("random", "without a random tenth"),
        ("oracle", "without the wrong labels"),
    ):
        yield _row(label, "", "", _spread(digits["accuracy"][name]))


def _passages(passages: Mapping[str, Any]) -> Iterator[str]:
    """Yield the table of job 2, and one query with its passages."""
    top = f"top {passages['k']}"
    yield _row("", f"own domain, {top}", "own domain, first", f"own module, {top}")
    for name, share in passages["domain_share"].items():
        cells = (share, passages["domain_first"][name], passages["module_share"][name])
        yield _row(NAMES[name], *(f"{cell:.1%}" for cell in cells))
    for example in passages["examples"]:
        yield f"  query, {example['id']}: {_line(example['text'])}"
        for end in ("helpful", "harmful"):
            for hit in example[end][:2]:
                yield f"    {end}, {hit['id']}: {_line(hit['text'])}"


def _mixing(mixing: Mapping[str, Any]) -> Iterator[str]:
    """Yield the tables of job 3."""
    target, domains = mixing["target"], mixing["domains"]
    yield _row("", f"loss of {target}", "loss of the others", "")
    start = mixing["start"]
    yield _row("before", f"{start['target']:.3f}", f"{start['others']:.3f}", "")
    for name, losses in mixing["losses"].items():
        yield _row(f"{name} mixture", _spread(losses["target"]), _spread(losses["others"]), "")
    for move, weights in enumerate(mixing["weights"], start=1):
        first = sorted(zip(weights, domains, strict=True), reverse=True)[:3]
        shown = ", ".join(f"{domain} {weight:.0%}" for weight, domain in first)
        yield f"  after {mixing['every'] * move:3} steps: {shown}"


def _row(*cells: str) -> str:
    """Return cells in columns."""
    label, *numbers = cells
    return (f"  {label:30}" + "".join(f"{cell:>20}" for cell in numbers)).rstrip()


def _spread(values: Sequence[float]) -> str:
    """Return mean and deviation."""
    deviation = f" ± {stdev(values):.3f}" if len(values) > 1 else ""
    return f"{mean(values):.3f}{deviation}"


def _line(text: str) -> str:
    """Return the start of a text on one line."""
    flat = " ".join(text.split())
    return flat if len(flat) <= WIDTH else flat[: WIDTH - 3] + "..."
