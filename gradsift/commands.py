"""What each command does: a frozen set of options, and one call that carries them out.

Every command writes its resolved options beside its output, goes on where an earlier run
with the same options stopped, and returns the lines that say what it did.
"""

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, is_dataclass, replace
from dataclasses import fields as dataclass_fields
from pathlib import Path
from typing import Annotated, Any, Literal, cast, get_args, get_type_hints

import numpy as np
import tyro

from gradsift.demo import SUMMARY, run_demo
from gradsift.models import ModelSource, load_task
from gradsift.report import write_report
from gradsift.terminal import summary_lines
from influence import (
    EKFAC,
    TRAK,
    GradientCosine,
    GradientDot,
    InfluenceIndex,
    Metric,
    RelativeDamping,
    SelfInfluence,
    build_index,
    retrieve,
)
from projections import (
    SJLT,
    DataError,
    GradientNorm,
    GradientStore,
    PassSettings,
    Rows,
    Scores,
    Sketch,
    Statistic,
    StoreMismatchError,
    StoreWriter,
    Task,
    TopK,
    describe,
    fingerprint_model,
    index_gradients,
    read_dataset,
    read_json,
    run_pass,
    write_dataset,
    write_json,
)
from selection import prune

CONFIG = "config.json"
SNIPPET = 160  # characters of a text that a line shows
MetricName = Literal["trak", "cosine", "dot"]
MethodName = Literal["loss", "el2n", "margin", "grad-norm", "self-influence", "ekfac-self"]
RowsName = Literal["sketch", "ekfac"]


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How a pass reads its data; no result depends on it."""

    batch_size: int = 32
    """Most examples in a batch."""

    max_tokens: int | None = 16_384
    """Most tokens in a batch, padding included."""

    shard_size: int = 1024
    """Rows that are finished, and safe, at a time."""

    layers: tuple[str, ...] | None = None
    """Patterns of the layers to look at, such as "*.mlp.*"; all of them if left out."""


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
class Index:
    """Index the projected gradients of a dataset, to retrieve from it later."""

    source: tyro.conf.OmitArgPrefixes[ModelSource]

    data: str
    """The training data: jsonl, parquet or csv (also .gz, .zst), a datasets folder or name."""

    out: Path
    """Folder of the index. A run that was stopped goes on."""

    rows: RowsName = "sketch"
    """What is kept of a gradient: a random sketch of all layers, in one pass, or the
    coordinates of most curvature of the linear layers, in three, which attribute better."""

    num_dims: int = 4096
    """Numbers kept of each gradient."""

    seed: int = 0
    """Seed of the random projection, or of the labels that the curvature draws."""

    row_dtype: Literal["float32", "float16", "int8"] = "float32"
    """Type of the rows on disk."""

    reading: tyro.conf.OmitArgPrefixes[Reading] = Reading()

    def run(self) -> Iterator[str]:
        """Build the index."""
        data = read_dataset(self.data)
        task = load_task(self.source)
        store = self._sketch(task, data) if self.rows == "sketch" else self._curvature(task, data)
        write_config(self, self.out / CONFIG)
        losses, norms = store.column("loss"), store.column("grad_norm")
        yield f"indexed {len(store):,} rows of {store.num_dims:,} numbers: {self.out}"
        yield f"loss {summary(losses)}; gradient norm {summary(norms)}"
        yield f"next: gradsift retrieve {self.out} --query '...'"

    def _sketch(self, task: Task, data: Any) -> GradientStore:
        """Build a store of random sketches."""
        return index_gradients(
            task,
            data,
            SJLT(num_dims=self.num_dims, seed=self.seed),
            path=self.out / "store",
            settings=pass_settings(self.reading),
            dtype=self.row_dtype,
        )

    def _curvature(self, task: Task, data: Any) -> GradientStore:
        """Fit EK-FAC and build an influence index."""
        settings = pass_settings(self.reading)
        fitted = EKFAC(seed=self.seed).fit(task, data, settings=settings, path=self.out / "fit")
        index = build_index(
            fitted,
            task,
            data,
            num_dims=self.num_dims,
            path=self.out,
            row_dtype=self.row_dtype,
            seed=self.seed,
        )
        return index.store


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
    """Candidates at each end that are scored again by full EK-FAC, in an index of ekfac rows."""

    out: Path | None = None
    """Also write the hits to this file (.jsonl)."""

    def run(self) -> Iterator[str]:
        """Search the index."""
        built = read_index_config(self.index)
        rows: Any = self._query_rows(built)
        store = GradientStore.open(self.index / "store")
        data = read_dataset(built.data)
        store.require(data=Rows(data).fingerprint)
        if self.rerank and built.rows == "sketch":
            raise ValueError(
                "`--rerank` must be used with an index of `--rows ekfac`. This is not."
            )
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
        if self.out is not None:
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
        projector = SJLT(num_dims=built.num_dims, seed=built.seed)
        metric = pick_metric(self.metric, self.damping)
        settings = pass_settings(built.reading)
        return retrieve(task, rows, store, projector, metric, k=self.k, settings=settings)

    def _query_rows(self, built: Index) -> list[dict[str, Any]]:
        """Return the queries as rows."""
        rows = [{built.source.text_column: text} for text in self.query]
        if self.queries is not None:
            rows.extend(read_dataset(self.queries))  # pyright: ignore[reportArgumentType]
        if not rows:
            raise ValueError("a query must be given, with `--query TEXT` or `--queries FILE`.")
        return rows


@dataclass(frozen=True, kw_only=True)
class Score:
    """Score every example of a dataset, by one or more methods in one pass."""

    source: tyro.conf.OmitArgPrefixes[ModelSource]

    data: str
    """The data: jsonl, parquet or csv (also .gz, .zst), a datasets folder or name."""

    out: Path
    """The table of scores (.parquet). A run that was stopped goes on."""

    method: tuple[MethodName, ...] = ("loss", "grad-norm")
    """What to compute; el2n and margin need a classification task, ekfac-self two more passes."""

    num_dims: int = 2048
    """Dimensions of the sketch that self-influence is computed in."""

    damping: float | None = None
    """Damping of self-influence, as a multiple of the mean eigenvalue; by a rule if left out."""

    seed: int = 0
    """Seed of the random projection, and of the labels that ekfac-self draws."""

    reading: tyro.conf.OmitArgPrefixes[Reading] = Reading()

    def run(self) -> Iterator[str]:
        """Compute the scores."""
        data = read_dataset(self.data)
        task = load_task(self.source)
        work = self.out.with_name(self.out.name + ".work")
        store = self._compute(task, Rows(data), work)
        columns = {name: self._column(store, name) for name in self.method}
        provenance = {"score": as_json(self), "model": store.manifest["model"]}
        scores = Scores(store.ids, columns, provenance=provenance)
        scores.save(self.out)
        write_config(self, config_beside(self.out))
        shutil.rmtree(work)
        yield f"scored {len(scores):,} rows: {self.out}"
        for name, values in columns.items():
            yield f"  {name:16} {summary(values)}"
        yield f"next: gradsift prune {self.out} --data {self.data} --keep 0.9 --out kept.jsonl"

    def _compute(self, task: Task, rows: Rows, work: Path) -> GradientStore:
        """Run the pass, or go on with one that was stopped."""
        columns: list[Any] = [
            Statistic(name) for name in self.method if name in ("loss", "el2n", "margin")
        ]
        if "grad-norm" in self.method or "self-influence" in self.method:
            columns.append(GradientNorm())
        if "self-influence" in self.method:
            columns.append(Sketch(SJLT(num_dims=self.num_dims, seed=self.seed)))
        settings = pass_settings(self.reading)
        if "ekfac-self" in self.method:
            damping = RelativeDamping() if self.damping is None else RelativeDamping(self.damping)
            method = EKFAC(seed=self.seed, damping=damping)
            fitted = method.fit(task, rows, settings=settings, path=work / "fit")
            columns.append(SelfInfluence(fitted.layers, fitted.inverses, name="ekfac_self"))
        description = {
            "model": fingerprint_model(task.model),
            "data": rows.fingerprint,
            "columns": [column.name for column in columns],
            "settings": describe(replace(settings, batch_size=1, max_tokens=None)),
            "options": [self.num_dims, self.seed, self.damping],
        }
        writer = StoreWriter(work / "scores", description, num_rows=len(rows))
        run_pass(task, rows, columns, settings=settings, sink=writer, description="scores")
        return GradientStore.open(work / "scores")

    def _column(self, store: GradientStore, name: str) -> np.ndarray:
        """Return the values of one method."""
        if name == "self-influence":
            return TRAK(damping=self.damping).fit(store).self_scores()
        return store.column(name.replace("-", "_"))


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


@dataclass(frozen=True, kw_only=True)
class Report:
    """Write an HTML page about scores or an index."""

    source: Annotated[Path, tyro.conf.Positional]
    """A table of scores, or a folder made by `gradsift index`."""

    data: Path | None = None
    """The data, to show the best and worst examples."""

    out: Path | None = None
    """The page; beside the source if left out."""

    def run(self) -> Iterator[str]:
        """Write the page."""
        source, data = self.source, self.data
        if (source / CONFIG).exists() and (source / "store").exists():
            data = data or Path(read_index_config(source).data)
            page = self.out or source / "report.html"
            report = write_report(source / "store", data=data, out=page)
        else:
            report = write_report(source, data=data, out=self.out)
        yield f"report: {report.resolve()}"


Command = Demo | Index | Retrieve | Score | Prune | Report
COMMANDS: dict[str, type[Command]] = {
    "demo": Demo,
    "index": Index,
    "retrieve": Retrieve,
    "score": Score,
    "prune": Prune,
    "report": Report,
}


def pass_settings(reading: Reading) -> PassSettings:
    """Return the settings of a pass."""
    return PassSettings(**asdict(reading))


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
    rows = Rows(data).fetch(found.positions[query].tolist())
    return [
        {"id": row_id, "score": float(score), "text": shown_text(row, column)}
        for row_id, score, row in zip(
            found.ids[query].tolist(), found.scores[query], rows, strict=True
        )
    ]


def shown_text(row: Any, column: str) -> str:
    """Return the text of a row, or the whole row where it has none."""
    return str(row.get(column, row))


def snippet(text: str) -> str:
    """Return the start of a text on one line."""
    line = " ".join(text.split())
    return line if len(line) <= SNIPPET else line[: SNIPPET - 3] + "..."


def summary(values: Sequence[float] | np.ndarray) -> str:
    """Return the quartiles of some numbers."""
    low, middle, high = np.quantile(values, [0.25, 0.5, 0.75])
    return f"median {middle:.4g}, quartiles {low:.4g} and {high:.4g}"


def as_json(options: Any) -> dict[str, Any]:
    """Return options as plain JSON values."""
    return json.loads(json.dumps(asdict(options), default=str))


def write_config(options: Command, path: Path) -> None:
    """Write the resolved options."""
    write_json(path, {"command": type(options).__name__.lower(), **as_json(options)})


def config_beside(path: Path) -> Path:
    """Return where the options of a command that writes one file go."""
    return path.with_name(path.name + "." + CONFIG)


def read_index_config(folder: Path) -> Index:
    """Return the options that an index was built with.

    Raises:
        StoreMismatchError: The folder was not made by `gradsift index`, or is unfinished.
    """
    if (folder / "store").exists() and not (folder / CONFIG).exists():
        raise StoreMismatchError(
            f"{folder} must be a finished index. Run the `gradsift index` that began it again."
        )
    values = read_json(folder / CONFIG, "an index made by `gradsift index`")
    if values.pop("command", None) != "index":
        raise StoreMismatchError(f"{folder / CONFIG} must be that of an index. It is not.")
    return command_from_json(Index, values)


def command_from_json(kind: type[Any], values: Mapping[str, Any], *, missing: Any = None) -> Any:
    """Return options from plain JSON values, such as a configuration that was written.

    Args:
        kind: The class of the options.
        values: Values by field; options within options are mappings.
        missing: Stands for fields that have no default and no value; None refuses them.

    Raises:
        DataError: A field is unknown or missing.
    """
    hints = get_type_hints(kind)
    fields = {field.name: field for field in dataclass_fields(kind)}
    unknown = sorted(set(values) - set(fields) - {"command"})
    if unknown:
        raise DataError(
            f"the configuration of {kind.__name__.lower()} must have only the fields "
            f"{sorted(fields)}. Got also {unknown}."
        )
    built = {}
    for name, field in fields.items():
        required = field.default is MISSING
        if is_dataclass(hints[name]) and (name in values or required):
            built[name] = command_from_json(
                cast(type, hints[name]), values.get(name, {}), missing=missing
            )
        elif name in values:
            built[name] = _typed(values[name], hints[name])
        elif required and missing is not None:
            built[name] = missing
        elif required:
            raise DataError(f"the configuration of {kind.__name__.lower()} must have {name!r}.")
    return kind(**built)


def _typed(value: Any, hint: Any) -> Any:
    """Return a JSON value as the type of its field: a path, a tuple, or as it is."""
    if isinstance(value, list):
        return tuple(value)
    if isinstance(value, str) and Path in (hint, *get_args(hint)):
        return Path(value)
    return value
