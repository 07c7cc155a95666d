"""The command that keeps a share of a dataset by its scores."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from gradsift.commands.options import config_beside, write_config
from projections import Scores, read_dataset, write_dataset
from selection import prune


@dataclass(frozen=True, kw_only=True)
class Prune:
    """Keep a share of a dataset by its scores."""

    scores: Annotated[Path, tyro.conf.Positional]
    """A table made by `gradsift score`."""

    data: str
    """The data that was scored."""

    out: Path
    """The rows that are kept (.jsonl, .parquet or .csv, also .gz and .zst)."""

    keep: float
    """The share of rows to keep, from 0 to 1."""

    column: str | None = None
    """Which score to use, where the table has several."""

    drop: Literal["lowest", "highest"] = "lowest"
    """Which end to drop; label errors have the highest loss, norm and self-influence."""

    def run(self) -> Iterator[str]:
        """Write the kept rows, and beside them the reason for each row that was dropped."""
        scores = Scores.load(self.scores)
        chosen = prune(
            scores if self.column is None else scores[self.column], keep=self.keep, drop=self.drop
        )
        kept = chosen.apply(read_dataset(self.data))
        write_dataset(kept, self.out)
        reasons = self.out.with_name(self.out.name + ".selection.parquet")
        chosen.save(reasons)
        write_config(self, config_beside(self.out))
        yield f"kept {len(chosen):,} of {len(scores):,} rows: {self.out}"
        for row_id, reason in list(chosen.rejected.items())[:3]:
            yield f"  dropped {row_id}: {reason}"
        yield f"reasons for all: {reasons}"
