"""The command that keeps one of several rows that say nearly the same."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from gradsift.commands.choosing import write_selection
from gradsift.commands.embedding import (
    EMBEDDING,
    Corpus,
    EmbeddingSource,
    embed_all,
    remove_work,
)
from projections import read_dataset
from selection import SemanticDedup


@dataclass(frozen=True, kw_only=True)
class Dedup:
    """Keep one of several rows that say nearly the same."""

    data: str
    """The data: jsonl, parquet or csv (also .gz, .zst), a datasets folder or name."""

    out: Path
    """The kept rows (.jsonl, .parquet or .csv, also .gz and .zst). A stopped run goes on."""

    rejected: Path | None = None
    """Also write the other rows, each with the row that it repeats."""

    threshold: float = 0.95
    """The largest cosine that two kept rows of a cluster may have."""

    num_clusters: int | None = None
    """Clusters within which rows are compared; one for a thousand rows if left out."""

    keep: Literal["far", "near", "first"] = "far"
    """Which of two similar rows is kept rather: the one far from its centroid, near to it, or
    the first by id."""

    seed: int = 0
    """Seed of k-means and of tfidf."""

    embedding: tyro.conf.OmitArgPrefixes[EmbeddingSource] = EMBEDDING

    def run(self) -> Iterator[str]:
        """Embed, compare and write."""
        dedup = SemanticDedup(
            threshold=self.threshold,
            num_clusters=self.num_clusters,
            keep=self.keep,
            seed=self.seed,
        )
        data = read_dataset(self.data)
        (rows,) = embed_all(self.embedding, [Corpus("data", data)], out=self.out, seed=self.seed)
        chosen = dedup.select(rows)
        yield from write_selection(self, chosen, data, self.out, self.rejected)
        remove_work(self.out)
