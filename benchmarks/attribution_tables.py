"""The tables of `attribution.py`, one kind of truth each."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from attribution_bench import Bench
from attribution_figures import draw
from attribution_methods import suspicions
from attribution_scores import Scored
from attribution_setups import Setup
from measuring import table

from influence import (
    class_detection,
    lds_ceiling,
    leave_one_out_correlation,
    mislabel_detection,
    shortcut_detection,
)

HEAD = [
    "method",
    "LDS, default",
    "LDS, damping chosen",
    "over subsets",
    "at",
    "rise without the top 1 %",
    "leave-one-out",
    "class",
    "s",
    "MB",
    "trainings",
    "published",
]


def retrained_part(bench: Bench, found: list[Scored], out: Path | None) -> Iterator[str]:
    """Yield the tables of a set-up whose halves were retrained."""
    assert bench.masks is not None and bench.losses is not None
    setup, left_out = bench.setup, bench.left_out()
    lines, points = [], []
    second = slice(len(bench.masks) // 2, None)
    for scored in found:
        at = bench.chosen(scored)
        scores, default = scored.scores[at], next(iter(scored.scores.values()))
        lds, drop = bench.lds(scores, second), bench.drop(scored)
        alone = "" if left_out is None else leave_one_out_text(scores, left_out)
        lines.append(
            [
                scored.method,
                bench.lds(default, second),
                lds,
                f"± {bench.lds_error(scores, second):.3f}",
                at,
                "" if drop is None else drop,
                alone,
                class_text(setup, scores),
                f"{scored.seconds:.1f}" + few_queries(setup, default),
                f"{scored.bytes_kept / 1e6:.3g}",
                scored.trainings or "",
                setup.published.get(scored.method, ""),
            ]
        )
        label = scored.method + few_queries(setup, default)
        points.append((label, scored.seconds, scored.bytes_kept, lds))
    ceiling = (
        f"ceiling {lds_ceiling(bench.losses[:, :, bench.known])}"
        if len(bench.losses) > 1
        else "one seed"
    )
    asked = []
    if any(line[HEAD.index("rise without the top 1 %")] for line in lines):
        asked.append(f" {setup.num_drops} queries for the rise of the loss, in nats.")
    if left_out is not None:
        asked.append(
            f" {setup.num_left_out} examples left out one at a time, for the queries whose "
            "losses that changes."
        )
    yield (
        f"{len(bench.masks)} halves, {len(bench.losses)} seeds a half; {ceiling}, over "
        f"{int(bench.known.sum())} queries whose losses vary.{''.join(asked)}"
    )
    yield table(HEAD, lines)
    if out is not None:
        name = f"{out.stem}_{setup.name}.png"
        draw(points, setup.title, out.parent / name)
        yield f"![{setup.title}]({name})"
    yield "LDS over the sweep, all subsets:"
    yield table(["method", "sweep"], [[one.method, sweep(bench, one)] for one in found])


def sweep(bench: Bench, scored: Scored) -> str:
    """Return the LDS at every damping, in the order of the sweep."""
    return ", ".join(
        f"{name} {bench.lds(values).mean:.3f}" for name, values in scored.scores.items()
    )


def few_queries(setup: Setup, scores: np.ndarray) -> str:
    """Return for how many queries a method was asked, if not for all."""
    return "" if len(scores) == len(setup.queries[0]) else f" ({len(scores)} queries)"


def leave_one_out_text(scores: np.ndarray, left_out: tuple[list[int], np.ndarray]) -> str:
    """Return the correlation over queries whose scores vary, and whose losses do."""
    removed, losses = left_out
    part = losses[:, : len(scores)].astype(np.float64)
    varied = (np.ptp(scores[:, removed], axis=1) > 0) & (np.ptp(part, axis=0) > 0)
    if not varied.any():
        return ""
    found = leave_one_out_correlation(scores[varied].astype(np.float64), removed, part[:, varied])
    return str(found)


def class_text(setup: Setup, scores: np.ndarray) -> str:
    if setup.labels is None or setup.query_labels is None:
        return ""
    asked = setup.query_labels[: len(scores)]
    known = np.isin(asked, setup.labels)
    return str(class_detection(scores[known], setup.labels, asked[known]))


def noise_part(bench: Bench, found: list[Scored]) -> Iterator[str]:
    """Yield how well wrong labels are found."""
    wrong, published = bench.setup.wrong, bench.setup.published_areas
    assert wrong is not None
    lines: list[list[Any]] = [
        [name, mislabel_detection(values, wrong), "", published.get(name, "")]
        for name, values in suspicions(bench.trained)
    ]
    for scored in found:
        areas = {name: mislabel_detection(values, wrong) for name, values in scored.own.items()}
        if areas:
            text = ", ".join(f"{name} {area.mean:.3f}" for name, area in areas.items())
            said = published.get(scored.method, "")
            lines.append([scored.method, next(iter(areas.values())), text, said])
    yield f"Wrong labels: {int(wrong.sum()):,} of {len(wrong):,}; ROC-AUC of self-influence."
    yield table(["method", "default", "sweep", "published"], lines)


def shortcut_part(bench: Bench, found: list[Scored]) -> Iterator[str]:
    """Yield how far up the carriers of the shortcut are."""
    carriers = bench.setup.carriers
    assert carriers is not None
    lines = []
    for scored in found:
        cells = []
        for values in scored.scores.values():
            half = len(values) // 2
            cells.append(shortcut_detection(values[:half], values[half:], carriers))
        text = ", ".join(
            f"{name} {cell.mean:.3f}" for name, cell in zip(scored.scores, cells, strict=True)
        )
        with_it = next(iter(scored.scores.values()))
        area = class_detection(
            with_it[: len(with_it) // 2], carriers, np.ones(len(with_it) // 2, dtype=bool)
        )
        lines.append([scored.method, area, cells[0], text])
    yield (
        "Area under the ROC curve of the examples that carry the patch, for queries that do, "
        "and how much larger it is than for the same queries without."
    )
    yield table(["method", "area", "gain by the patch", "gain over the sweep"], lines)
