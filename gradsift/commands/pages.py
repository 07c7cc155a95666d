"""Commands that write a page: the demo and the report."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from gradsift.commands.indexing import read_index_config
from gradsift.commands.options import CONFIG, write_config
from gradsift.demo import SUMMARY, run_demo
from gradsift.report import write_report
from gradsift.terminal import summary_lines
from projections import read_json


@dataclass(frozen=True, kw_only=True)
class Demo:
    """Run the three jobs on data that is already on the machine, and write an HTML report."""

    out: Path = Path("runs/demo")
    """Folder of the report."""

    seed: int = 0
    """Seed of everything that is random."""

    num_seeds: int = 3
    """Seeds over which means and spreads are taken."""

    def run(self) -> Iterator[str]:
        """Run the demo, which prints as it goes."""
        report = run_demo(self.out, seed=self.seed, num_seeds=self.num_seeds, say=print)
        write_config(self, self.out / CONFIG)
        yield from summary_lines(read_json(self.out / SUMMARY, "a demo"))
        yield f"report: {report.resolve()}"


@dataclass(frozen=True, kw_only=True)
class Report:
    """Write an HTML page about scores or an index."""

    source: Annotated[Path, tyro.conf.Positional]
    """A table of scores, or a folder made by `gradsift index`, of which the page also says what
    the gradients tell of the data."""

    data: Path | None = None
    """The data, to show the best and worst examples."""

    group_by: str | None = None
    """Column of the data whose values are compared by their gradients; the labels if left out."""

    earlier: tuple[Path, ...] = ()
    """Indexes of the same data at earlier states of training, in order, with the same projection:
    do the directions of gradients stay?"""

    out: Path | None = None
    """The page; beside the source if left out."""

    def run(self) -> Iterator[str]:
        """Write the page."""
        source, data, layers, page = self.source, self.data, None, self.out
        if _is_index(source):
            config = read_index_config(source)
            data, page = data or Path(config.data), page or source / "report.html"
            layers = config.layer_slices()
        report = write_report(
            _store_of(source),
            data=data,
            out=page,
            group_by=self.group_by,
            layers=layers,
            earlier={str(path): _store_of(path) for path in self.earlier},
        )
        yield f"report: {report.resolve()}"


def _is_index(folder: Path) -> bool:
    """Tell whether `gradsift index` made a folder."""
    return (folder / CONFIG).exists() and (folder / "store").exists()


def _store_of(source: Path) -> Path:
    """Return the store of an index, and anything else as it is."""
    return source / "store" if _is_index(source) else source
