"""Every attribution method against retraining, on set-ups that others published.

    python benchmarks/attribution.py --data DIR --kept DIR --out benchmarks/attribution.md

Without `--data` the set-ups shrink to data that is generated or comes with scikit-learn.
What retraining found and what methods scored is kept, so that a run that was stopped goes on.
It is kept by its data, its recipe and all code behind it (`code_behind.py`), so that what a
change of code makes stale is computed anew.
LDS is the mean over queries of the rank correlation between summed scores and the losses of
models retrained on random halves. The damping of a method is chosen on the first half of the
subsets and its LDS taken on the second; the first error is over queries, the second over
subsets, by the jackknife. Seconds are processor time for the fit and all scores at one
damping, on one thread; training the models that a method wants is counted apart.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from attribution_bench import Bench
from attribution_methods import METHODS
from attribution_references import check_evaluator
from attribution_setups import SETUPS, Setup
from attribution_tables import noise_part, retrained_part, shortcut_part
from attribution_tasks import classes_of_tasks
from attribution_trained import Trained
from measuring import options, parse, publish

FINDINGS = Path(__file__).with_name("attribution_findings.md")
IMAGES = {"mnist_lr", "mnist_mlp", "mnist_lr_noise", "mnist_mlp_noise", "mnist_shortcut"}
ONLY = {  # where methods are run that take hours, or that need texts, labels or a linear model
    "BM25": {"trec_weak", "lm_domains"},
    "TF-IDF": {"trec_weak", "lm_domains"},
    "cosine of inputs": {*IMAGES, "trec_weak"},
    "LESS": {"mnist_lr", "mnist_mlp", "trec_weak", "lm_domains"},
    "TRAK, 10 models": {*IMAGES, "trec_weak"},
    "TRAK, 50 models": {"mnist_lr", "mnist_mlp"},
    "representer points": {*IMAGES, "trec_weak"},
    "SOURCE": {*IMAGES, "trec_weak"},
    "Arnoldi": {"mnist_lr", "mnist_mlp"},
    "LiSSA": {"mnist_lr", "mnist_mlp"},
    "Neumann series": {"mnist_lr"},
    "ASTRA": {"mnist_lr", "mnist_mlp"},
    "conjugate gradients": {"mnist_lr", "mnist_mlp"},
    "exact influence": {"mnist_lr", "mnist_lr_noise"},
}


def methods_of(setup: Setup, wanted: list[str]) -> list[str]:
    """Return the methods that make sense here."""
    return [name for name in wanted if setup.name in ONLY.get(name, SETUPS)]


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
        if self.seeds is not None:
            setup = replace(setup, seeds=tuple(range(101, 101 + self.seeds)))
        if self.only_kept and self.kept is not None:
            setup = setup.with_kept_seeds(self.kept)
        return setup


def report(name: str, wanted: Wanted) -> Iterator[str]:
    """Yield the part of one set-up."""
    setup = wanted.setup(name)
    with TemporaryDirectory() as folder:
        trained = Trained(setup, Path(folder), wanted.tiny)
        bench = Bench.of(trained, wanted.kept, only_kept=wanted.only_kept)
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
    said = [] if wanted.tiny else [FINDINGS.read_text().rstrip()]
    publish("Attribution against retraining", [*said, *parts], chosen.out)


if __name__ == "__main__":
    main()
