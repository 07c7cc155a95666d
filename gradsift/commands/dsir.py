"""The command that chooses text for a target by importance resampling."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from gradsift.clusters import read_on_ray
from gradsift.commands.options import config_beside, write_config
from projections import DataError, TextColumns, Texts, read_dataset, write_json
from selection import (
    DSIR,
    Draw,
    FittedDSIR,
    HashedNgrams,
    Selection,
    check_format,
    report_draw,
    row_writer,
    write_chosen,
)

ROWS_AT_ONCE = 10_000  # reasons that are written together


@dataclass(frozen=True, kw_only=True)
class Dsir:
    """Choose text that looks like a target, by importance resampling."""

    raw: tuple[str, ...]
    """Files to choose from: jsonl, parquet or csv (also .gz, .zst), or a datasets folder."""

    target: tuple[str, ...]
    """Files with text like the wanted."""

    out: Path
    """The chosen rows (.jsonl, .parquet or .csv, also .gz and .zst). A run that was stopped
    goes on."""

    num: int | None = None
    """Number of rows to choose; or else --num-tokens."""

    num_tokens: int | None = None
    """Number of tokens to choose."""

    separate_targets: bool = False
    """Choose for each target file on its own, instead of for all of them together."""

    proportions: tuple[float, ...] | None = None
    """Share of each target file, if they are separate; by their size if left out."""

    domains: tuple[str, ...] | None = None
    """Shares of domains of the raw data, such as wiki=3 code=1; needs --domain-column."""

    text_column: str = "text"
    """Column with the text."""

    id_column: str = "id"
    """Column with the ids; rows are known by file and position where there is none."""

    domain_column: str | None = None
    """Column of the raw data that says where a row comes from."""

    order: int = 2
    """The longest n-gram, in words."""

    num_buckets: int = 10_000
    """Buckets that n-grams are hashed into."""

    hashing: Literal["fast", "sha256"] = "fast"
    """The hash; sha256 gives the buckets of the package data-selection."""

    min_length: int = 100
    """Rows with fewer tokens are never chosen."""

    smoothing: float = 0.0
    """Pseudo-count of each bucket in the target; small targets need one."""

    num_ngrams_to_fit: int | None = None
    """Most n-grams that the raw distribution is fitted on, from a random sample of rows; 0
    for all, 100,000 a bucket if left out."""

    length: Literal["sum", "mean"] = "sum"
    """Sum log ratios over the n-grams of a row, as published, or take their mean."""

    chunk_tokens: int | None = None
    """Cut rows into pieces of so many tokens first."""

    temperature: float = 1.0
    """0 takes the largest weights; more than 1 comes closer to choosing at random."""

    seed: int = 0
    """Seed of the sample and of the draw."""

    workers: int = 1
    """Threads that read, count and weigh. No result depends on it."""

    ray: str | None = None
    """Address of a Ray cluster that counts and weighs, such as auto, or local for one on this
    machine. Its machines must reach the raw files, whose rows must have ids."""

    rejected: Path | None = None
    """File for id and reason of every row that was not chosen; weighs all rows again."""

    report: bool = True
    """Look at all rows once more, to say what the choice changed."""

    def run(self) -> Iterator[str]:
        """Fit, draw, and write the chosen rows with their weights beside them."""
        columns = TextColumns(text=self.text_column, id=self.id_column, domain=self.domain_column)
        raw = self._raw(columns)
        work = None if self.ray else self.out.with_name(self.out.name + ".work")
        check_format(self.out)
        self._draw()
        fitted = self._settings().fit(raw, self._targets(), num_workers=self.workers, path=work)
        chosen = self._select(fitted, raw, work)
        # A cluster may hand files on in another order, which only the order of writing follows.
        files = raw if self.ray is None else open_texts(self.raw, columns)
        write_chosen(chosen, files, self.out, chunk_tokens=self.chunk_tokens)
        table = self.out.with_name(self.out.name + ".selection.parquet")
        chosen.save(table)
        fitted.save(self.out.with_name(self.out.name + ".dsir.npz"))
        write_config(self, config_beside(self.out))
        yield from self._summary(chosen)
        if self.rejected is not None:
            write_reasons(fitted.rejections(raw, chosen, num_workers=self.workers), self.rejected)
            yield f"reasons for the others: {self.rejected}"
        if self.report and len(chosen):
            found = report_draw(fitted, raw, chosen, num_workers=self.workers)
            write_json(self.out.with_name(self.out.name + ".report.json"), dict(found.facts))
            yield from found.lines()
        yield f"weights and provenance: {table}"
        if work is not None:
            shutil.rmtree(work, ignore_errors=True)

    def _raw(self, columns: TextColumns) -> Texts:
        """Return what is chosen from, read by this process or by a cluster."""
        if self.ray is None:
            return open_texts(self.raw, columns)
        return Texts(read_on_ray(self.raw, self.ray), columns)

    def _settings(self) -> DSIR:
        """Return the method."""
        return DSIR(
            ngrams=HashedNgrams(
                order=self.order, num_buckets=self.num_buckets, hashing=self.hashing
            ),
            min_length=self.min_length,
            smoothing=self.smoothing,
            num_ngrams_to_fit=self.num_ngrams_to_fit,
            length=self.length,
            chunk_tokens=self.chunk_tokens,
            seed=self.seed,
        )

    def _targets(self) -> Any:
        """Return the target, or each by the name of its file."""
        columns = TextColumns(text=self.text_column, id=self.id_column)
        if not self.separate_targets:
            return open_texts(self.target, columns)
        return {name: open_texts((name,), columns) for name in self.target}

    def _select(self, fitted: FittedDSIR, raw: Texts, work: Path | None) -> Selection:
        """Draw rows."""
        draw = self._draw()
        return fitted.select(
            raw,
            num_selected=draw.num_selected,
            num_tokens=draw.num_tokens,
            num_workers=self.workers,
            path=work,
            temperature=draw.temperature,
            proportions=draw.proportions,
            domain_shares=draw.domain_shares,
        )

    def _draw(self) -> Draw:
        """Return how much is drawn, and from where."""
        proportions = None
        if self.proportions is not None:
            if len(self.proportions) != len(self.target) or not self.separate_targets:
                raise ValueError(
                    "`--proportions` must be one number for each of the targets, with "
                    f"`--separate-targets`. Got {len(self.proportions)} for {len(self.target)}."
                )
            proportions = dict(zip(self.target, self.proportions, strict=True))
        return Draw(
            num_selected=self.num,
            num_tokens=self.num_tokens,
            temperature=self.temperature,
            proportions=proportions,
            domain_shares=parse_shares(self.domains),
            seed=self.seed,
        )

    def _summary(self, chosen: Selection) -> Iterator[str]:
        """Say how much was chosen, and what was missing."""
        note = chosen.provenance
        tokens = int(chosen.columns["num_tokens"].sum())
        yield f"chose {len(chosen):,} of {note['rows']:,} rows, {tokens:,} tokens: {self.out}"
        if note["too_short"]:
            yield f"  {note['too_short']:,} rows have fewer than {self.min_length} tokens"
        asked, got = (self.num, len(chosen)) if self.num is not None else (self.num_tokens, tokens)
        if asked is not None and got < asked:
            yield f"  there was not enough for the {asked:,} that were asked for"


def open_texts(sources: tuple[str, ...], columns: TextColumns) -> Texts:
    """Return texts from files, folders, or the name of a dataset."""
    if len(sources) == 1 and not Path(sources[0]).exists() and not Path(sources[0]).suffix:
        return Texts(read_dataset(sources[0]), columns)
    return Texts([Path(source) for source in sources], columns)


def parse_shares(words: tuple[str, ...] | None) -> dict[str, float] | None:
    """Return shares by name from words such as ``wiki=3``.

    Raises:
        DataError: A word is not of that form.
    """
    if words is None:
        return None
    shares = {}
    for word in words:
        name, _, number = word.rpartition("=")
        try:
            shares[name] = float(number)
        except ValueError as error:
            raise DataError(f"a share must be like wiki=3. Got {word!r}.") from error
        if not name:
            raise DataError(f"a share must be like wiki=3. Got {word!r}.")
    return shares


def write_reasons(reasons: Iterator[tuple[Any, str]], path: Path) -> None:
    """Write ids and reasons as they come."""
    rows: list[dict[str, Any]] = []
    with row_writer(path) as write:
        for row_id, reason in reasons:
            rows.append({"id": row_id, "reason": reason})
            if len(rows) == ROWS_AT_ONCE:
                write(rows)
                rows.clear()
        if rows:
            write(rows)
