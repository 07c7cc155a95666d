"""The command that attributes queries to training examples, by any method."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro

from gradsift.attribution import WITHOUT_MODEL, MethodSource, make_method
from gradsift.commands.options import (
    READING,
    Reading,
    as_json,
    config_beside,
    pass_settings,
    snippet,
    summary,
    write_config,
)
from gradsift.commands.retrieval import describe_hits, shown_text
from gradsift.models import ModelSource, load_task
from influence import FittedLESS
from projections import (
    DataError,
    PassSettings,
    Rows,
    Scores,
    Task,
    TopK,
    current_ranks,
    read_dataset,
)


@dataclass(frozen=True, kw_only=True)
class PerhapsModel(ModelSource):
    """The same, for methods of which some need no model."""

    model: str = ""
    """A folder with a saved Hugging Face model and tokenizer, or a name on the hub."""


MODEL, METHOD = PerhapsModel(), MethodSource()


@dataclass(frozen=True, kw_only=True)
class Attribute:
    """Score every training example for every query, by a method of attribution."""

    source: tyro.conf.OmitArgPrefixes[PerhapsModel] = MODEL

    data: str
    """The training data: jsonl, parquet or csv (also .gz, .zst), a datasets folder or name."""

    query: tuple[str, ...] = ()
    """Text of a query; several may be given."""

    queries: str | None = None
    """A file of queries, in the format of the training data."""

    out: Path
    """The table of scores (.parquet): a list for each example, with a number a query."""

    how: tyro.conf.OmitArgPrefixes[MethodSource] = METHOD

    subtask_column: str | None = None
    """For less: the column that says which subtask a query is of. The table then has one number
    an example: the largest of the subtasks' means, which `gradsift prune` can keep by."""

    k: Annotated[int, tyro.conf.arg(aliases=["-k"])] = 3
    """Number of examples shown at each end."""

    seed: int = 0
    """Seed of projections, drawn labels and drawn rows."""

    reading: tyro.conf.OmitArgPrefixes[Reading] = READING

    def run(self) -> Iterator[str]:
        """Fit the method, and score."""
        if self.subtask_column is not None and self.how.method != "less":
            raise ValueError("`--subtask-column` must be used with `--method less`.")
        data, asked = read_dataset(self.data), self._query_rows()
        if self.how.method in WITHOUT_MODEL and not current_ranks().is_first:
            return  # there is no pass to share
        task = self._task()
        settings = None if task is None else pass_settings(self.reading, task.model)
        work = self.out.with_name(self.out.name + ".work")
        method = make_method(
            self.how, self.source, task, seed=self.seed, path=work, settings=settings
        )
        fitted = method.fit(task, Rows(data), settings=settings)
        if self.subtask_column is not None:
            scores = self._by_subtask(fitted, task, asked, data, settings)
        else:
            scores = fitted.scores(task, Rows(asked), Rows(data), settings=settings)
        if not current_ranks().is_first:
            return
        Scores(
            scores.ids,
            scores.columns,
            scores.query_ids,
            {"attribute": as_json(self), "of": dict(scores.provenance)},
        ).save(self.out)
        write_config(self, config_beside(self.out))
        queries = "1 query" if len(asked) == 1 else f"{len(asked):,} queries"
        yield f"scored {len(scores):,} rows for {queries} by {self.how.method}: {self.out}"
        yield from self._shown(scores, asked, data)

    def _task(self) -> Task | None:
        """Load the model, if the method needs one."""
        if self.how.method in WITHOUT_MODEL:
            return None
        if not self.source.model:
            raise ValueError(
                f"`--model` must be given with `--method {self.how.method}`. Only "
                f"{', '.join(WITHOUT_MODEL)} need none."
            )
        return load_task(self.source)

    def _query_rows(self) -> list[dict[str, Any]]:
        """Return the queries as rows."""
        rows = [{self.source.text_column: text} for text in self.query]
        if self.queries is not None:
            rows.extend(read_dataset(self.queries))  # pyright: ignore[reportArgumentType]
        if not rows:
            raise ValueError("a query must be given, with `--query TEXT` or `--queries FILE`.")
        return rows

    def _by_subtask(
        self, fitted: Any, task: Any, asked: list[Any], data: Any, settings: PassSettings | None
    ) -> Scores:
        """Return the largest of the subtasks' means."""
        assert isinstance(fitted, FittedLESS)
        groups: dict[str, list[Any]] = defaultdict(list)
        for row in asked:
            if self.subtask_column not in row:
                raise DataError(
                    f"every query must have the column {self.subtask_column!r}. Got {row!r:.120}."
                )
            groups[str(row[self.subtask_column])].append(row)
        return fitted.subtask_scores(task, groups, Rows(data), settings=settings)

    def _shown(self, scores: Scores, asked: list[Any], data: Any) -> Iterator[str]:
        """Yield the ends of each query's scores, or the quartiles of each subtask's."""
        if scores.query_ids is None:
            for name, values in scores.columns.items():
                yield f"  {name:16} {summary(values)}"
            how = "--column less --keep 0.05 --out kept.jsonl"
            yield f"next: gradsift prune {self.out} --data {self.data} {how}"
            return
        column = self.source.text_column
        ends = [(sign, best(scores, sign, min(self.k, len(scores)))) for sign in (1, -1)]
        for number, row in enumerate(asked):
            yield f"query: {snippet(shown_text(row, column))}"
            for sign, found in ends:
                yield f"  {'most helpful' if sign > 0 else 'most harmful'}:"
                for hit in describe_hits(found, number, data, column):
                    yield f"  {hit['score']:12.5g}  {hit['id']}  {snippet(hit['text'])}"


def best(scores: Scores, sign: int, k: int) -> TopK:
    """Return the best rows of each query, or the worst for a sign of minus one."""
    values = scores.values
    positions = np.argsort(-sign * values, axis=1, kind="stable")[:, :k]
    return TopK(scores.ids[positions], np.take_along_axis(values, positions, 1), positions)
