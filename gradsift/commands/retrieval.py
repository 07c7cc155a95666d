"""The command that shows the training examples behind a query."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from gradsift.commands.indexing import Index, read_index_config
from gradsift.commands.options import config_beside, pass_settings, snippet, write_config
from gradsift.models import load_task
from influence import TRAK, GradientCosine, GradientDot, InfluenceIndex, Metric, retrieve_rows
from projections import (
    GradientStore,
    Rows,
    Task,
    TopK,
    current_ranks,
    faiss_beside,
    query_rows,
    read_dataset,
)

MetricName = Literal["trak", "cosine", "dot"]


@dataclass(frozen=True, kw_only=True)
class Retrieve:
    """Show the training examples behind a query, most helpful and most harmful."""

    index: Annotated[Path, tyro.conf.Positional]
    """Folder made by `gradsift index`."""

    query: tuple[str, ...] = ()
    """Text of a query; several may be given."""

    queries: str | None = None
    """A file of queries, in the format of the training data."""

    k: Annotated[int, tyro.conf.arg(aliases=["-k"])] = 10
    """Number of examples at each end."""

    metric: MetricName = "trak"
    """How the sketches of an index are compared; one with ekfac rows has its own way."""

    damping: float | None = None
    """Damping of trak, as a multiple of the mean eigenvalue; by a rule if left out."""

    rerank: int = 0
    """Candidates at each end that are scored again: by full EK-FAC in an index of ekfac rows, by
    the stored rows where FAISS found them."""

    faiss: str | None = None
    """A FAISS factory string such as "IVF256,SQ8", for an index of sketches; the FAISS index is
    kept beside the store. Exact search if left out."""

    lists: int | None = None
    """Lists that an index by --faiss looks into for each query; a sixteenth if left out."""

    out: Path | None = None
    """Also write the hits to this file (.jsonl)."""

    def run(self) -> Iterator[str]:
        """Search the index."""
        built = read_index_config(self.index)
        rows: Any = self._query_rows(built)
        store = GradientStore.open(self.index / "store")
        data = read_dataset(built.data)
        store.require(data=Rows(data).fingerprint)
        if self.rerank and built.rows == "sketch" and self.faiss is None:
            raise ValueError(
                "`--rerank` must be used with an index of `--rows ekfac`, or with `--faiss`. Exact "
                "search of sketches leaves nothing to score again."
            )
        if self.faiss is not None and built.rows == "ekfac":
            raise ValueError("`--faiss` must be used with an index of `--rows sketch`.")
        if self.lists is not None and self.faiss is None:
            raise ValueError("`--lists` must be used with `--faiss`.")
        top, bottom = self._search(built, load_task(built.source), rows, store, data)
        texts = [shown_text(row, built.source.text_column) for row in rows]
        hits = []
        for number, text in enumerate(texts):
            yield f"query: {snippet(text)}"
            for name, found in (("most helpful", top), ("most harmful", bottom)):
                yield f"  {name}:"
                for hit in describe_hits(found, number, data, built.source.text_column):
                    hits.append({"query": text, "end": name, **hit})
                    yield f"  {hit['score']:12.5g}  {hit['id']}  {snippet(hit['text'])}"
        if self.out is not None and current_ranks().is_first:
            lines = "".join(json.dumps(hit, ensure_ascii=False) + "\n" for hit in hits)
            self.out.parent.mkdir(parents=True, exist_ok=True)
            self.out.write_text(lines)
            write_config(self, config_beside(self.out))
            yield f"wrote {len(hits)} hits: {self.out}"

    def _search(
        self, built: Index, task: Task, rows: Any, store: GradientStore, data: Any
    ) -> tuple[TopK, TopK]:
        """Ask the index in the way it was built."""
        if built.rows == "ekfac":
            index = InfluenceIndex.load(self.index)
            return index.search(task, rows, k=self.k, rerank=self.rerank, data=data)
        projector = built.projector(task)
        metric = pick_metric(self.metric, self.damping)
        settings = pass_settings(built.reading, task.model)
        asked = query_rows(task, rows, projector, settings=settings, store=store)
        index = None if self.faiss is None else faiss_beside(store, self.faiss, seed=built.seed)
        if index is not None and self.lists is not None:
            index = index.with_lists_searched(self.lists)
        return retrieve_rows(asked, store, metric, k=self.k, index=index, rerank=self.rerank)

    def _query_rows(self, built: Index) -> list[dict[str, Any]]:
        """Return the queries as rows."""
        rows = [{built.source.text_column: text} for text in self.query]
        if self.queries is not None:
            rows.extend(read_dataset(self.queries))  # pyright: ignore[reportArgumentType]
        if not rows:
            raise ValueError("a query must be given, with `--query TEXT` or `--queries FILE`.")
        return rows


def pick_metric(name: MetricName, damping: float | None) -> Metric:
    """Return the metric of this name."""
    metrics: dict[str, Metric] = {
        "trak": TRAK(damping=damping),
        "cosine": GradientCosine(),
        "dot": GradientDot(),
    }
    return metrics[name]


def describe_hits(found: TopK, query: int, data: Any, column: str) -> list[dict[str, Any]]:
    """Return id, score and text of the hits of one query."""
    rows = Rows(data)
    # Positions in a store that lost rows are not those in the data.
    rows = rows.fetch(rows.find(found.ids[query]))
    return [
        {"id": row_id, "score": float(score), "text": shown_text(row, column)}
        for row_id, score, row in zip(
            found.ids[query].tolist(), found.scores[query], rows, strict=True
        )
    ]


def shown_text(row: Any, column: str) -> str:
    """Return the text of a row, or the whole row where it has none."""
    return str(row.get(column, row))
