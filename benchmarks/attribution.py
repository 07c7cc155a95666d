"""Every attribution method against retraining, on set-ups that others published.

    python benchmarks/attribution.py --data DIR --kept DIR --out benchmarks/attribution.md

Without `--data` the set-ups shrink to data that is generated or comes with scikit-learn.
What retraining found and what methods scored is kept, so that a run that was stopped goes on;
empty the folder when the code of a method has changed.
LDS is the mean over queries of the rank correlation between summed scores and the losses of
models retrained on random halves. The damping of a method is chosen on the first half of the
subsets and its LDS taken on the second; the first error is over queries, the second over
subsets, by the jackknife. Seconds are processor time for the fit and all scores at one
damping, on one thread; training the models that a method wants is counted apart.
"""

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from attribution_figures import draw
from attribution_methods import DEFAULT, METHODS, Trained, suspicions
from attribution_references import check_evaluator, classes_of_tasks
from attribution_setups import SETUPS, Setup
from measuring import options, parse, publish, table

from influence import (
    Estimate,
    class_detection,
    error_over_subsets,
    lds_ceiling,
    leave_one_out,
    leave_one_out_correlation,
    linear_datamodeling_score,
    mislabel_detection,
    quantile_drop,
    retrained_losses,
    shortcut_detection,
    without_top,
)
from influence.retrained_losses import fingerprint

LINEAR_ONLY = {"exact influence"}
SKIPPED = {  # what takes hours, or asks for labels that are not few
    "mnist_mlp": {"TRAK, 50 models", "conjugate gradients"},
    "mnist_lr_noise": {"conjugate gradients"},
    "mnist_mlp_noise": {"conjugate gradients"},
    "mnist_shortcut": {"conjugate gradients"},
    "trec_weak": {"conjugate gradients"},
    "lm_domains": {
        "TRAK, 10 models",
        "TRAK, 50 models",
        "conjugate gradients",
        "representer points",
    },
}
DROPPED = {  # whose top is removed and the model retrained
    "random",
    "gradient dot product",
    "EK-FAC",
    "index, int8",
    "TRAK, 10 models",
    "exact influence",
    "TracIn, 10 checkpoints",
    "DataInf",
}
DEAR = {"TRAK, 10 models", "TracIn, 10 checkpoints", "DataInf"}
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


@dataclass(frozen=True)
class Scored:
    """What one method said of one set-up.

    Args:
        method: Its name.
        scores: By damping, the default first, ``q n``.
        own: Self-influence by damping, ``n``; empty if not asked for.
        seconds: Processor time of the fit and the scores at the default.
        bytes_kept: What answers further queries.
        trainings: Further models that were trained.
    """

    method: str
    scores: dict[str, np.ndarray]
    own: dict[str, np.ndarray]
    seconds: float
    bytes_kept: int
    trainings: int


@dataclass(frozen=True)
class Bench:
    """A set-up, its truth and where results are kept."""

    setup: Setup
    trained: Trained
    kept: Path | None
    masks: np.ndarray | None
    losses: np.ndarray | None

    @classmethod
    def of(cls, setup: Setup, folder: Path, kept: Path | None, tiny: bool) -> "Bench":
        trained = Trained(setup, folder, tiny)
        masks, losses = setup.outcomes(kept) if setup.num_subsets else (None, None)
        return cls(setup, trained, kept, masks, losses)

    def folder(self, name: str) -> Path | None:
        return None if self.kept is None else self.kept / self.setup.name / name

    def path(self, method: str) -> Path | None:
        """Return where the scores of a method are kept."""
        setup = self.setup
        of = fingerprint(setup.trainer, self.trained.whole, setup.queries)
        return self.folder(f"scores-{slug(method)}-{of}.npz")

    def has(self, method: str) -> bool:
        """Tell whether a method has been run."""
        path = self.path(method)
        return path is not None and path.exists()

    def scored(self, method: str) -> Scored:
        """Return what a method says, from what is kept if it is there."""
        path = self.path(method)
        if path is not None and path.exists():
            return read_scored(method, path)
        _ = self.trained.task  # so that training it counts for no method
        began = time.process_time()
        fit = METHODS[method](self.trained)
        fitting = time.process_time() - began
        asked = self.setup.query_rows[: fit.most_queries]
        scores, own, seconds = {}, {}, 0.0
        for name, fitted in fit.fitted.items():
            began = time.process_time()
            found = fitted.scores(self.trained.task, asked, self.trained.train)
            scores[name] = found.values.astype(np.float32)
            seconds = seconds or time.process_time() - began
            if self.setup.wrong is not None and hasattr(fitted, "self_influence"):
                found = fitted.self_influence(self.trained.task, self.trained.train)
                own[name] = found.values
        seconds += fitting
        result = Scored(method, scores, own, seconds, fit.bytes_kept, fit.trainings)
        if path is not None:
            write_scored(result, path)
        return result

    @cached_property
    def known(self) -> np.ndarray:
        """Which queries have a truth: losses that vary over both halves of the subsets."""
        assert self.losses is not None
        parts = np.array_split(self.losses, 2, axis=1)
        return np.all([(np.ptp(part, axis=1) > 0).all(0) for part in parts], axis=0)

    def lds(self, scores: np.ndarray, part: slice = slice(None)) -> Estimate:
        """Return the LDS on some of the subsets, for as many queries as were asked.

        A query whose scores are all equal, as where its gradient is zero, counts as 0; one
        without a truth does not count.
        """
        masks, scores, losses = self._compared(scores, part)
        varied = np.ptp(scores, axis=1) > 0
        values = np.zeros(len(scores))
        if varied.any():
            found = linear_datamodeling_score(masks, scores[varied], losses[:, varied])
            values[varied] = found.values
        return Estimate.over(values)

    def lds_error(self, scores: np.ndarray, part: slice) -> float:
        return error_over_subsets(*self._compared(scores, part))

    def _compared(
        self, scores: np.ndarray, part: slice
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return subsets, scores and losses of the queries that were asked and have a truth."""
        assert self.masks is not None and self.losses is not None
        known = self.known[: len(scores)]
        losses = self.losses.mean(0)[part, : len(scores)]
        return self.masks[part], scores[known], losses[:, known]

    def chosen(self, scored: Scored) -> str:
        """Return the damping that is best on the first half of the subsets."""
        if self.masks is None:
            return DEFAULT
        first = slice(0, len(self.masks) // 2)
        return max(scored.scores, key=lambda name: self.lds(scored.scores[name], first).mean)

    def drop(self, scored: Scored) -> Estimate | None:
        """Retrain without the top of each of some queries."""
        count = min(self.setup.num_drops, len(next(iter(scored.scores.values()))))
        dear = scored.method in DEAR and self.setup.name in ("mnist_mlp", "lm_domains")
        if not count or scored.method not in DROPPED or dear:
            return None
        scores = scored.scores[self.chosen(scored)][:count]
        masks = np.concatenate([np.ones_like(without_top(scores[:1])), without_top(scores)])
        queries = tuple(part[:count] for part in self.setup.queries)
        losses = retrained_losses(
            self.setup.trainer,
            masks,
            queries,
            seeds=[0],
            kept=self.folder(f"drops-{slug(scored.method)}"),
        )[0]
        return quantile_drop(losses[1:].astype(np.float64), losses[0].astype(np.float64))

    def left_out(self) -> tuple[list[int], np.ndarray] | None:
        """Retrain without each of some examples."""
        if not self.setup.num_left_out:
            return None
        random = np.random.default_rng(11)
        count = self.setup.num_examples
        removed = random.permutation(count)[: self.setup.num_left_out].tolist()
        losses = retrained_losses(
            self.setup.trainer,
            leave_one_out(count, removed),
            self.setup.queries,
            seeds=[0],
            kept=self.folder("left-out"),
        )[0]
        return removed, losses


def slug(method: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in method.lower())


def write_scored(scored: Scored, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    note = {"seconds": scored.seconds, "bytes": scored.bytes_kept, "trainings": scored.trainings}
    arrays = {f"scores/{name}": values for name, values in scored.scores.items()}
    arrays |= {f"own/{name}": values for name, values in scored.own.items()}
    partial = path.with_suffix(".partial.npz")
    np.savez(partial, note=np.array(json.dumps(note)), **arrays)  # pyright: ignore
    partial.replace(path)


def read_scored(method: str, path: Path) -> Scored:
    with np.load(path) as file:
        note = json.loads(str(file["note"]))
        parts: dict[str, dict[str, np.ndarray]] = {"scores": {}, "own": {}}
        for key in file.files:
            kind, _, name = key.partition("/")
            if name:
                parts[kind][name] = file[key]
    return Scored(
        method, parts["scores"], parts["own"], note["seconds"], note["bytes"], note["trainings"]
    )


def methods_of(setup: Setup, wanted: list[str]) -> list[str]:
    """Return the methods that make sense here."""
    skipped = set(SKIPPED.get(setup.name, set()))
    if not setup.num_subsets:
        skipped.add("TRAK, 50 models")
    linear = len(list(setup.trainer.make().parameters())) == 2
    return [name for name in wanted if name not in skipped and (linear or name not in LINEAR_ONLY)]


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
    yield (
        f"{len(bench.masks)} halves, {len(bench.losses)} seeds a half; {ceiling}, over "
        f"{int(bench.known.sum())} queries whose losses vary. "
        f"{setup.num_drops} queries for the rise of the loss, in nats; {setup.num_left_out} "
        "examples left out one at a time."
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
    removed, losses = left_out
    varied = np.ptp(scores[:, removed], axis=1) > 0
    part = losses[:, : len(scores)][:, varied].astype(np.float64)
    return str(leave_one_out_correlation(scores[varied].astype(np.float64), removed, part))


def class_text(setup: Setup, scores: np.ndarray) -> str:
    if setup.labels is None or setup.query_labels is None:
        return ""
    asked = setup.query_labels[: len(scores)]
    known = np.isin(asked, setup.labels)
    return str(class_detection(scores[known], setup.labels, asked[known]))


def noise_part(bench: Bench, found: list[Scored]) -> Iterator[str]:
    """Yield how well wrong labels are found."""
    wrong = bench.setup.wrong
    assert wrong is not None
    lines: list[list[Any]] = [
        [name, mislabel_detection(values, wrong), ""] for name, values in suspicions(bench.trained)
    ]
    for scored in found:
        areas = {name: mislabel_detection(values, wrong) for name, values in scored.own.items()}
        if areas:
            text = ", ".join(f"{name} {area.mean:.3f}" for name, area in areas.items())
            lines.append([scored.method, next(iter(areas.values())), text])
    yield f"Wrong labels: {int(wrong.sum()):,} of {len(wrong):,}; ROC-AUC of self-influence."
    yield table(["method", "default", "sweep"], lines)


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


@dataclass(frozen=True)
class Wanted:
    """What was asked for on the command line.

    Args:
        data: Folder of the data.
        kept: Folder that keeps what was found.
        methods: Names of methods.
        seeds: Seeds a half, if not the set-up's own.
        tiny: Whether this is a test.
        only_kept: Whether to leave out methods that have not been run.
        out: The report.
    """

    data: Path | None
    kept: Path | None
    methods: list[str]
    seeds: int | None
    tiny: bool
    only_kept: bool
    out: Path | None

    def setup(self, name: str) -> Setup:
        """Return a set-up at the size that was asked for."""
        setup = SETUPS[name](self.data)
        setup = setup.small() if self.tiny else setup
        if self.seeds is None:
            return setup
        return replace(setup, seeds=tuple(range(101, 101 + self.seeds)))


def report(name: str, wanted: Wanted) -> Iterator[str]:
    """Yield the part of one set-up."""
    setup = wanted.setup(name)
    with TemporaryDirectory() as folder:
        bench = Bench.of(setup, Path(folder), wanted.kept, wanted.tiny)
        methods = methods_of(setup, wanted.methods)
        if wanted.only_kept:
            methods = [method for method in methods if bench.has(method)]
        found = [bench.scored(method) for method in methods]
        yield f"## {setup.title}"
        if bench.masks is not None:
            yield from retrained_part(bench, found, wanted.out)
        if setup.wrong is not None:
            yield from noise_part(bench, found)
        if setup.carriers is not None:
            yield from shortcut_part(bench, found)


def main() -> None:
    parser = options(__doc__)
    names = ["rte", *SETUPS, "datainf_tasks"]
    parser.add_argument("--setups", nargs="+", choices=names, default=names)
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--seeds", type=int, help="seeds a half, instead of the set-up's own")
    parser.add_argument("--size", choices=("test", "full"), default="full")
    parser.add_argument("--data", type=Path, help="folder with mnist, rte, trec_weak, ...")
    parser.add_argument("--kept", type=Path, help="folder that keeps what was found")
    parser.add_argument("--only-kept", action="store_true", help="leave out what was not run yet")
    chosen = parse(parser)
    wanted = Wanted(
        chosen.data,
        chosen.kept,
        chosen.methods,
        chosen.seeds,
        chosen.quick or chosen.size == "test",
        chosen.only_kept,
        chosen.out,
    )
    parts = []
    for name in ["mnist_lr", "mnist_lr_noise"] if chosen.quick else chosen.setups:
        if name == "rte":
            parts += check_evaluator(chosen.data)
        elif name == "datainf_tasks":
            parts += classes_of_tasks(
                chosen.data, chosen.kept, tiny=wanted.tiny, only_kept=wanted.only_kept
            )
        else:
            parts += report(name, wanted)
    publish("Attribution against retraining", parts, chosen.out)


if __name__ == "__main__":
    main()
