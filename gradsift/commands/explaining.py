"""The command that says all that is known of one example."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from gradsift.commands.indexing import read_index_config
from gradsift.commands.options import CONFIG
from gradsift.explain import explain
from projections import write_json


@dataclass(frozen=True, kw_only=True)
class Explain:
    """Say all that scores, an index and the data know of one example."""

    example: Annotated[str, tyro.conf.Positional]
    """Its id."""

    sources: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Tables of scores, and folders made by `gradsift index`."""

    data: Path | None = None
    """The data; that of the index if there is one."""

    out: Path | None = None
    """File to write it to, as JSON."""

    def run(self) -> Iterator[str]:
        """Collect and print it."""
        if not self.sources:
            raise ValueError("`sources` must name a table of scores or an index. Got none.")
        data, sources = self.data, []
        for source in self.sources:
            index = (source / CONFIG).exists() and (source / "store").exists()
            sources.append(source / "store" if index else source)
            if index and data is None:
                data = Path(read_index_config(source).data)
        found = explain(self.example, sources, data)
        yield from found.lines()
        if self.out is not None:
            write_json(self.out, found.as_json())
            yield f"wrote {self.out}"
