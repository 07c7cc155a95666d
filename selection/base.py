"""A selection: which rows are kept, with what weight, and why the others are not."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float

from projections import DataError, Provenance, Rows, read_parquet, replacing

METADATA = b"gradsift"
COLUMNS = ("id", "kept", "weight", "reason")


@dataclass(frozen=True)
class Selection:
    """Rows that were chosen, by id, and the reason for every row that was not.

    Args:
        ids: Ids of the chosen rows, in the order of the data unless the method ranks.
        weights: Their weights in training.
        rejected: Reason for each row that was left out, by id.
        provenance: Where the selection came from.
        columns: What else is known of the chosen rows, one entry each, such as their scores.

    Example:
        >>> chosen = Selection(np.array([2, 0]), np.ones(2), {1: "score 0.1 is below 0.5"})
        >>> chosen.apply(datasets.Dataset.from_dict({"text": ["a", "b", "c"]}))["text"]
        Column(['c', 'a'])
    """

    ids: np.ndarray
    weights: Float[np.ndarray, " n"]
    rejected: Mapping[Any, str] = field(default_factory=dict)
    provenance: Provenance = field(default_factory=dict)
    columns: Mapping[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check that each id has one weight, and one entry in each column."""
        if len(self.ids) != len(self.weights):
            raise ValueError(
                f"`weights` must have one entry an id. Got {len(self.weights)} and {len(self.ids)}."
            )
        for name, values in self.columns.items():
            if len(values) != len(self.ids) or name in COLUMNS:
                raise ValueError(
                    f"the column {name!r} must have one entry an id and a name other than "
                    f"{', '.join(COLUMNS)}. Got {len(values)} for {len(self.ids)} ids."
                )

    def __len__(self) -> int:
        """Return the number of chosen rows."""
        return len(self.ids)

    def positions(self, data: Any) -> np.ndarray:
        """Return where the chosen rows stand in ``data``.

        Raises:
            DataError: A chosen id is not in the data.
        """
        where = {row_id: position for position, row_id in enumerate(Rows(data).ids.tolist())}
        missing = [row_id for row_id in self.ids.tolist() if row_id not in where]
        if missing:
            raise DataError(
                f"the data must hold every chosen id. {len(missing)} of {len(self)} are missing, "
                f"such as {missing[:5]}. Apply the selection to the data that was scored."
            )
        return np.array([where[row_id] for row_id in self.ids.tolist()], dtype=np.int64)

    def apply(self, data: Any) -> Any:
        """Return the chosen rows: a `datasets.Dataset` for one, a list for anything else."""
        positions = self.positions(data)
        if isinstance(data, datasets.Dataset):
            return data.select(positions)
        return Rows(data).fetch([int(position) for position in positions])

    def save(self, path: str | Path) -> None:
        """Write parquet with the columns id, kept, weight and reason, and those of the rows."""
        chosen, rejected = self.ids.tolist(), list(self.rejected)
        empty = [None] * len(rejected)
        more = {name: pa.array(v.tolist() + empty) for name, v in self.columns.items()}
        table = pa.table(
            {
                "id": pa.array(chosen + rejected),
                "kept": [True] * len(chosen) + [False] * len(rejected),
                "weight": np.concatenate([self.weights, np.zeros(len(rejected))]),
                "reason": [""] * len(chosen) + list(self.rejected.values()),
                **more,
            }
        )
        note = json.dumps(dict(self.provenance)).encode()
        with replacing(Path(path)) as file:
            pq.write_table(table.replace_schema_metadata({METADATA: note}), file)

    @classmethod
    def load(cls, path: str | Path) -> "Selection":
        """Read a selection.

        Raises:
            DataError: The file is none.
        """
        table = read_parquet(Path(path))
        missing = {"kept", "weight", "reason"} - set(table.column_names)
        if missing:
            raise DataError(f"{path} must be a selection. It lacks the columns {sorted(missing)}.")
        ids, reasons = table.column("id").to_pylist(), table.column("reason").to_pylist()
        kept = table.column("kept").to_numpy()
        weights = table.column("weight").to_numpy()[kept]
        rejected = {ids[row]: reasons[row] for row in np.flatnonzero(~kept).tolist()}
        note = json.loads((table.schema.metadata or {}).get(METADATA, b"{}"))
        more = [name for name in table.column_names if name not in COLUMNS]
        columns = {name: np.asarray(table.column(name).to_pylist())[kept] for name in more}
        return cls(np.asarray(ids)[kept], weights, rejected, note, columns)
