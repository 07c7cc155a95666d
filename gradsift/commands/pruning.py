"""The command that keeps a part of a dataset by its scores."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import datasets
import numpy as np
import tyro

from gradsift.commands.choosing import BUDGET, BudgetOptions, count_tokens
from gradsift.commands.options import config_beside, write_config
from projections import DataError, Rows, Scores, read_dataset, write_dataset
from selection import (
    Selection,
    keep_between,
    keep_budget,
    keep_by_chance,
    keep_covering,
    keep_quotas,
    keep_stratified,
    keep_window,
    prune,
    select_within,
)

MethodName = Literal["top", "window", "bounds", "stratified", "coverage", "gumbel", "quotas"]


@dataclass(frozen=True, kw_only=True)
class Prune:
    """Keep a part of a dataset by its scores."""

    scores: Annotated[Path, tyro.conf.Positional]
    """A table made by `gradsift score`."""

    data: str
    """The data that was scored."""

    out: Path
    """The rows that are kept (.jsonl, .parquet or .csv, also .gz and .zst)."""

    keep: float | None = None
    """The share of rows to keep, from 0 to 1."""

    column: str | None = None
    """Which score to use, where the table has several."""

    drop: Literal["lowest", "highest"] = "lowest"
    """Which end to drop; label errors have the highest loss, norm and self-influence."""

    method: MethodName = "top"
    """top: drop one end. window: leave out the other end too. bounds: keep what is between
    numbers. stratified: evenly from the whole range. coverage: the same without the hardest.
    gumbel: by chance, the better the likelier. quotas: the best of each group."""

    offset: float | None = None
    """Share left out at the far end by window, or cut as the hardest by coverage."""

    at_least: float | None = None
    """The lowest score that bounds keeps."""

    at_most: float | None = None
    """The highest score that bounds keeps."""

    num_strata: int | None = None
    """Strata of the range for stratified and coverage; 50 if left out."""

    temperature: float | None = None
    """Temperature of gumbel, in units of the score."""

    group_column: str | None = None
    """A column of the data, such as the label; the method is applied to each group by itself."""

    quota: tuple[str, ...] = ()
    """Most rows of a group, as NAME=COUNT, for quotas."""

    seed: int = 0
    """Seed of what is drawn by stratified, coverage and gumbel."""

    budget: tyro.conf.OmitArgPrefixes[BudgetOptions] = BUDGET

    def run(self) -> Iterator[str]:
        """Write the kept rows, and beside them the reason for each row that was dropped."""
        self._check()
        scores, data = Scores.load(self.scores), read_dataset(self.data)
        if self.column is None and len(scores.names) > 1:
            raise ValueError(f"`--column` must name one of the scores, {', '.join(scores.names)}.")
        chosen = self._select(scores if self.column is None else scores[self.column], data)
        kept = chosen.apply(data)
        write_dataset(kept, self.out)
        reasons = self.out.with_name(self.out.name + ".selection.parquet")
        chosen.save(reasons)
        write_config(self, config_beside(self.out))
        yield f"kept {len(chosen):,} of {len(scores):,} rows: {self.out}"
        for row_id, reason in list(chosen.rejected.items())[:3]:
            yield f"  dropped {row_id}: {reason}"
        yield f"reasons for all: {reasons}"

    def _check(self) -> None:
        """Refuse options that the method lacks, and those that it does not look at.

        Raises:
            ValueError: Names the option.
        """
        given = {name for name in OPTIONS if getattr(self, name) not in (None, ())}
        if self.budget.num is not None or self.budget.num_tokens is not None:
            given.add("budget")
        needed, _ = METHODS[self.method]
        if self.method == "top" and "budget" in given:
            needed = ("budget",)
        for name in given - set(needed) - set(ALSO.get(self.method, ())) - {"group_column"}:
            raise ValueError(
                f"{_flag(name)} must be used with another method than {self.method!r}, which does "
                f"not look at it. That one takes {', '.join(map(_flag, needed))}."
            )
        for name in set(needed) - given:
            raise ValueError(f"{_flag(name)} must be given with `--method {self.method}`.")
        if self.method == "bounds" and not given & {"at_least", "at_most"}:
            raise ValueError("`--at-least` or `--at-most` must be given with `--method bounds`.")
        if self.method == "top" and "budget" in given and "group_column" in given:
            raise ValueError("`--num` and `--num-tokens` must be used without `--group-column`.")

    def _select(self, scores: Scores, data: datasets.Dataset) -> Selection:
        """Apply the method, to each group by itself where there are groups."""
        rows = Rows(data)
        where = rows.find(scores.ids)
        if self.budget.num is not None or self.budget.num_tokens is not None:
            limits: dict[str, Any] = {"num_selected": self.budget.num}
            if self.budget.num_tokens is not None:
                counts = count_tokens(data, self.budget.tokens_column, "text")
                limits |= {"num_tokens": self.budget.num_tokens, "tokens": counts[where]}
            return keep_budget(scores, **limits, drop=self.drop)
        _, select = METHODS[self.method]
        if self.group_column is None:
            return select(self, scores)
        if self.group_column not in data.column_names:
            raise DataError(
                f"`--group-column` must be a column of the data. {self.group_column!r} is none of "
                f"{data.column_names}."
            )
        groups = np.asarray([str(value) for value in data[self.group_column]])[where]
        if self.method == "quotas":
            return keep_quotas(scores, groups, quotas=self._quotas(), drop=self.drop)
        return select_within(scores, groups, lambda part: select(self, part))

    def _quotas(self) -> dict[str, int]:
        """Return the quotas by group.

        Raises:
            ValueError: One is not NAME=COUNT.
        """
        found = {}
        for quota in self.quota:
            name, sign, count = quota.rpartition("=")
            if not sign or not count.isdecimal():
                raise ValueError(f"`--quota` must be NAME=COUNT, as in web=1000. Got {quota!r}.")
            found[name] = int(count)
        return found


OPTIONS = (
    "keep",
    "offset",
    "at_least",
    "at_most",
    "num_strata",
    "temperature",
    "group_column",
    "quota",
)
"""Options that some methods look at and others do not."""

METHODS: dict[MethodName, tuple[tuple[str, ...], Callable[[Any, Scores], Selection]]] = {
    "top": (("keep",), lambda o, s: prune(s, keep=o.keep, drop=o.drop)),
    "window": (
        ("keep", "offset"),
        lambda o, s: keep_window(s, keep=o.keep, offset=o.offset, drop=o.drop),
    ),
    "bounds": ((), lambda o, s: keep_between(s, at_least=o.at_least, at_most=o.at_most)),
    "stratified": (
        ("keep",),
        lambda o, s: keep_stratified(s, keep=o.keep, num_strata=o.num_strata or 50, seed=o.seed),
    ),
    "coverage": (
        ("keep", "offset"),
        lambda o, s: keep_covering(
            s,
            keep=o.keep,
            cut=o.offset,
            hard=o.drop,
            num_strata=o.num_strata or 50,
            seed=o.seed,
        ),
    ),
    "gumbel": (
        ("keep", "temperature"),
        lambda o, s: keep_by_chance(
            s, keep=o.keep, temperature=o.temperature, drop=o.drop, seed=o.seed
        ),
    ),
    "quotas": (("group_column", "quota"), lambda o, s: prune(s, keep=1)),
}
"""What each method needs, and what carries it out; quotas need the groups beside."""

ALSO = {
    "bounds": ("at_least", "at_most"),
    "stratified": ("num_strata",),
    "coverage": ("num_strata",),
}
"""What a method looks at if it is given."""


def _flag(name: str) -> str:
    """Return an option as it is typed."""
    return "`--num` or `--num-tokens`" if name == "budget" else f"`--{name.replace('_', '-')}`"
