"""What commands that choose rows share: budgets, and what they write and say."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np

from gradsift.commands.options import Command, config_beside, write_config
from projections import DataError, Rows, check_at_least, write_dataset
from selection import Selection


@dataclass(frozen=True, kw_only=True)
class BudgetOptions:
    """How much is chosen."""

    num: int | None = None
    """Most rows."""

    num_tokens: int | None = None
    """Most tokens of the chosen rows together; words, unless a column counts tokens."""

    tokens_column: str | None = None
    """The column with the number of tokens of each row."""

    def limits(self, data: Any, text_column: str) -> dict[str, Any]:
        """Return the limits as a selector takes them."""
        check_at_least("num", 0 if self.num is None else self.num, 0)
        check_at_least("num_tokens", self.num_tokens or 0, 0)
        if self.num_tokens is None:
            return {"num_selected": self.num}
        tokens = count_tokens(data, self.tokens_column, text_column)
        return {"num_selected": self.num, "num_tokens": self.num_tokens, "tokens": tokens}


BUDGET = BudgetOptions()


def count_tokens(data: Any, column: str | None, text_column: str) -> np.ndarray:
    """Return the number of tokens of each row: from a column, or of words.

    Raises:
        DataError: A row has neither.
    """
    wanted = column or text_column
    if wanted not in data.column_names:
        raise DataError(
            f"the data must have the column {wanted!r}, to count tokens. It has "
            f"{data.column_names}. Name one with `--tokens-column`."
        )
    values = data[wanted]
    if column is None:
        return np.array([len(str(text).split()) for text in values], dtype=np.int64)
    try:
        return np.array([float(value) for value in values])
    except (TypeError, ValueError) as error:
        raise DataError(f"column {wanted!r} must hold a number in every row: {error}") from error


def write_selection(
    command: Command, chosen: Selection, data: datasets.Dataset, out: Path, rejected: Path | None
) -> Iterator[str]:
    """Write the chosen rows, their weights and the reasons beside them, and say so.

    Args:
        command: The options, which are written too.
        chosen: The selection.
        data: What it was chosen from.
        out: File of the chosen rows.
        rejected: File of the other rows, each with its reason in the column ``reason``.
    """
    write_dataset(chosen.apply(data), out)
    beside = out.with_name(out.name + ".selection.parquet")
    chosen.save(beside)
    write_config(command, config_beside(out))
    yield f"chose {len(chosen):,} of {len(data):,} rows: {out}"
    for row_id, reason in list(chosen.rejected.items())[:3]:
        yield f"  left out {row_id}: {reason}"
    if rejected is not None:
        write_dataset(_rejected_rows(chosen, data), rejected)
        yield f"rows that were left out: {rejected}"
    yield f"weights, and reasons for all: {beside}"


def _rejected_rows(chosen: Selection, data: datasets.Dataset) -> datasets.Dataset:
    """Return the rows that were left out, in the order of the data, with their reasons."""
    ids = Rows(data).ids.tolist()
    where = [position for position, row_id in enumerate(ids) if row_id in chosen.rejected]
    reasons = [chosen.rejected[ids[position]] for position in where]
    rows = data.select(where)
    if "reason" in rows.column_names:
        rows = rows.remove_columns("reason")
    return rows.add_column("reason", reasons)  # pyright: ignore[reportCallIssue]
