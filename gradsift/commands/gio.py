"""The command that chooses rows whose distribution is near that of a target."""

from collections.abc import Callable, Iterator
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
from selection import (
    GIO,
    DataShare,
    Increase,
    MinDifference,
    MinDivergence,
    Restarts,
    SequentialIncreases,
    StoppingRule,
    UniformStart,
)

StopName = Literal["increase", "sequential-increases", "min-difference", "min-divergence", "share"]


@dataclass(frozen=True, kw_only=True)
class Gio:
    """Choose rows whose distribution is near that of a target, by GIO."""

    raw: str
    """What to choose from: jsonl, parquet or csv (also .gz, .zst), a datasets folder or name."""

    target: str
    """Data like what is wanted."""

    out: Path
    """The chosen rows (.jsonl, .parquet or .csv, also .gz and .zst). A stopped run goes on."""

    rejected: Path | None = None
    """Also write the other rows, each with the reason why it was left out."""

    target_embeddings: str | None = None
    """The target's .npy file or index, with the encoders that read such."""

    estimate: Literal["published", "nearest-discarded", "coverage", "knn"] = "knn"
    """How the divergence is estimated (docs/gio.md)."""

    num_neighbours: int = 5
    """Neighbours that densities are estimated from."""

    num_centroids: int = 1500
    """Centroids that both sides are reduced to before; 0 takes each row as it is."""

    count: Literal["rows", "centroids"] = "rows"
    """What a chosen centroid counts for: its rows, or one as in the published package."""

    stop: StopName | None = None
    """When to stop; if left out: at an increase, or where there is a budget when it is spent."""

    stop_at: float | None = None
    """The number of increases, the difference, the divergence or the share of the stop."""

    restarts: int = 0
    """How often all rows become available again instead of stopping."""

    num_start: int = 20
    """Random points to start from, which are not chosen."""

    seed: int = 0
    """Seed of k-means, of the start and of tfidf."""

    budget: tyro.conf.OmitArgPrefixes[BudgetOptions] = BUDGET
    embedding: tyro.conf.OmitArgPrefixes[EmbeddingSource] = EMBEDDING

    def run(self) -> Iterator[str]:
        """Embed both sides, rank and write."""
        rule = self._rule()
        if self.embedding.encoder in ("npy", "store") and self.target_embeddings is None:
            raise ValueError(
                "`--target-embeddings` must be given with this encoder, for the target."
            )
        raw, target = read_dataset(self.raw), read_dataset(self.target)
        limits = self.budget.limits(raw, self.embedding.text_column)
        corpora = [Corpus("raw", raw), Corpus("target", target, self.target_embeddings)]
        candidates, wanted = embed_all(self.embedding, corpora, out=self.out, seed=self.seed)
        path = GIO(
            estimate=self.estimate,
            num_neighbours=self.num_neighbours,
            num_centroids=self.num_centroids or None,
            count=self.count,
            stop=rule,
            start=UniformStart(num_points=self.num_start),
            seed=self.seed,
        ).fit(candidates, wanted)
        chosen = path.select(**limits)
        yield from write_selection(self, chosen, raw, self.out, self.rejected)
        first, last = path.divergences[0], path.divergences[-1]
        yield f"{len(path.picks):,} picks, divergence from {first:.4g} to {last:.4g}; {path.ended}"
        remove_work(self.out)

    def _rule(self) -> StoppingRule:
        """Return the rule of this name."""
        spent = self.budget.num is not None or self.budget.num_tokens is not None
        at = self.stop_at
        name = self.stop or ("share" if spent else "increase")
        if name == "increase" and at is not None:
            raise ValueError("`--stop-at` must go with a stop that takes a number, not increase.")
        rules: dict[str, Callable[[], StoppingRule]] = {
            "increase": Increase,
            "sequential-increases": lambda: SequentialIncreases(3 if at is None else int(at)),
            "min-difference": lambda: MinDifference(at or 0.0),
            "min-divergence": lambda: MinDivergence(at or 0.0),
            "share": lambda: DataShare(1.0 if at is None else at),
        }
        rule = rules[name]()
        return Restarts(rule, most=self.restarts) if self.restarts else rule
