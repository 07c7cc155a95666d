"""The command that chooses rows that represent all others."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from gradsift.commands.choosing import BUDGET, BudgetOptions, write_selection
from gradsift.commands.embedding import (
    EMBEDDING,
    Corpus,
    EmbeddingSource,
    embed_all,
    remove_work,
)
from projections import read_dataset
from selection import FacilityLocation, KCenter, NeighbourGraph


@dataclass(frozen=True, kw_only=True)
class Cover:
    """Choose rows that represent all others."""

    data: str
    """The data: jsonl, parquet or csv (also .gz, .zst), a datasets folder or name."""

    out: Path
    """The chosen rows (.jsonl, .parquet or .csv, also .gz and .zst). A stopped run goes on."""

    rejected: Path | None = None
    """Also write the other rows, each with the reason why it was left out."""

    method: Literal["facility-location", "k-center"] = "facility-location"
    """facility-location: every row has a similar one; k-center: no row is far from one."""

    similarity: Literal["cosine", "euclidean"] = "cosine"
    """How rows are compared."""

    num_neighbours: int = 32
    """Neighbours of each row that facility-location looks at."""

    num_probes: int = 8
    """Lists in which neighbours are looked for, above 16,384 rows; more find more."""

    seed: int = 0
    """Seed of the search for neighbours and of tfidf."""

    budget: tyro.conf.OmitArgPrefixes[BudgetOptions] = BUDGET
    embedding: tyro.conf.OmitArgPrefixes[EmbeddingSource] = EMBEDDING

    def run(self) -> Iterator[str]:
        """Embed, choose and write."""
        if self.budget.num is None and self.budget.num_tokens is None:
            raise ValueError("`--num` or `--num-tokens` must say how much to choose. Got neither.")
        data = read_dataset(self.data)
        limits = self.budget.limits(data, self.embedding.text_column)
        (rows,) = embed_all(self.embedding, [Corpus("data", data)], out=self.out, seed=self.seed)
        if self.method == "k-center":
            chosen = KCenter(similarity=self.similarity).select(rows, **limits)
            quality = f"radius {chosen.provenance['radius'] or 0:.4g}"
        else:
            graph = NeighbourGraph(
                num_neighbours=self.num_neighbours,
                similarity=self.similarity,
                num_probes=self.num_probes,
                seed=self.seed,
            )
            chosen = FacilityLocation(graph=graph).select(rows, **limits)
            mean = chosen.provenance["value"] / len(rows)
            quality = f"mean similarity to a chosen row {mean:.3f}"
        yield from write_selection(self, chosen, data, self.out, self.rejected)
        yield quality
        remove_work(self.out)
