"""Search by FAISS's inverted lists on the disk, in parts, by one process or several ranks.

Letters: ``q`` queries, ``n`` rows, ``k`` neighbours, ``d`` dimensions of a row.

The index of a large store does not fit into memory and takes long to build. So it is built
in parts, each a FAISS index of some shards with the same lists; parts are finished one by
one, searched together, and merged when that pays. Not handled: FAISS on a GPU, and lists
that are no plain arrays, as those of ``PQ4x4fs``; `FaissIndex` has those.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from projections.base import TopK
from projections.checks import check_at_least
from projections.errors import StoreMismatchError
from projections.faiss_factory import LISTS_SEARCHED, load_faiss
from projections.files import read_json
from projections.index_files import TRAINED, damaged_parts, open_part
from projections.index_parts import NONE, Part, deleted_numbers, positions_of, read_parts
from projections.journal import Journal
from projections.ranks import Ranks, current_ranks
from projections.row_types import INT8_MOST
from projections.search import check_queries
from projections.store import GradientStore

NOTE = "index.json"
PARTS = "journal.jsonl"
KIND = "an index made by `build_disk_index`"


@dataclass(frozen=True)
class DiskIndex:
    """Search by inverted lists on the disk.

    Ranks share a search where there are several: each opens and searches some parts, and all
    of them return the best of all.

    Args:
        path: The folder.
        store: The store whose rows it holds.
        note: What it was made by: factory string, seed, width, and the unit of whole numbers.
        parts: The finished parts.
        num_lists: Lists that are looked into for each query.

    References:
        Douze et al., The Faiss library (2024), arXiv:2401.08281, Sec. 6 (inverted files).
    """

    path: Path
    store: GradientStore
    note: Mapping[str, Any]
    parts: tuple[Part, ...]
    num_lists: int
    _opened: dict[tuple[int, int], Any] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    @classmethod
    def open(cls, path: str | Path, store: GradientStore) -> "DiskIndex":
        """Open an index that was built before.

        Args:
            path: Its folder.
            store: The store that it was built from.

        Raises:
            StoreMismatchError: There is none, or it was built from other rows.
        """
        folder = Path(path)
        note = read_json(folder / NOTE, KIND)
        parts = read_parts(Journal(folder / PARTS).entries)
        check_parts(folder, parts, store)
        return cls(folder, store, note, parts, max(1, note["nlist"] // LISTS_SEARCHED))

    def __len__(self) -> int:
        """Return the number of rows that are not deleted."""
        return len(self.store)

    def search(self, queries: Float[np.ndarray, "q d"], k: int) -> TopK:
        """Return about the ``k`` rows with the largest inner products for each query.

        Rows that are not found have the position -1 and the id -1 or "". Ties go to the
        first row among those that were found.

        Args:
            queries: One query a row.
            k: Number of neighbours, at most the number of rows.

        Raises:
            ValueError: ``k`` is larger than the number of rows, or the widths differ.
            NonFiniteError: A query is not finite.
        """
        queries = check_queries(queries, self.note["num_dims"], k, len(self))
        ranks = current_ranks()
        found = ranks.gather(self._search_own(queries, k, ranks), "search")
        scores = np.concatenate([scores for scores, _ in found], axis=1)
        numbers = np.concatenate([numbers for _, numbers in found], axis=1)
        positions = positions_of(self.store, numbers)
        order = np.lexsort((positions, -scores), axis=1)[:, :k]
        scores, positions = (np.take_along_axis(a, order, 1) for a in (scores, positions))
        ids = self.store.ids[positions]
        ids[positions == NONE] = -1 if ids.dtype.kind == "i" else ""
        return TopK(ids, scores, positions)

    def search_both(self, queries: Float[np.ndarray, "q d"], k: int) -> tuple[TopK, TopK]:
        """Return both ends: the bottom is the top of the negated queries."""
        bottom = self.search(-np.asarray(queries), k)
        return self.search(queries, k), TopK(bottom.ids, -bottom.scores, bottom.positions)

    def with_lists_searched(self, num_lists: int) -> "DiskIndex":
        """Return the index set to look into this many lists for each query."""
        check_at_least("num_lists", num_lists, 1)
        return replace(self, num_lists=min(num_lists, self.note["nlist"]))

    def verify(self) -> None:
        """Compare every file of the parts with its checksum.

        Raises:
            StoreMismatchError: Names the files that are damaged or missing.
        """
        if bad := damaged_parts(self.path, self.parts):
            raise StoreMismatchError(
                f"every file of {self.path} must match its checksum. Damaged or missing: "
                f"{', '.join(bad)}. Remove {self.path} and build the index again."
            )

    def _search_own(
        self, queries: Float[np.ndarray, "q d"], k: int, ranks: Ranks
    ) -> tuple[Float[np.ndarray, "q k"], Int[np.ndarray, "q k"]]:
        """Return scores and numbers of the best rows in the parts of one rank."""
        own = self.parts[ranks.rank :: ranks.size]
        if not own:
            shape = (len(queries), k)
            return np.full(shape, -np.inf, np.float32), np.full(shape, NONE)
        key = (ranks.rank, ranks.size)
        if key not in self._opened:
            self._opened[key] = _Opened(self, own)
        if (unit := self.note["unit"]) is None:
            scores, numbers = self._opened[key].search(queries, k)
        else:
            # NOTE: FAISS cuts queries of whole numbers down to signed bytes without a word
            # where the width is a multiple of 32 (faiss 1.15).
            units = np.abs(queries).max(axis=1, keepdims=True, initial=0) / INT8_MOST
            units[units == 0] = 1
            scores, numbers = self._opened[key].search(np.rint(queries / units), k)
            scores *= units * np.float32(unit)
        scores[numbers == NONE] = -np.inf
        return scores, numbers


class _Opened:
    """Some parts of an index, opened as one of FAISS's shards each."""

    def __init__(self, index: DiskIndex, parts: tuple[Part, ...]) -> None:
        """Map the lists."""
        faiss = load_faiss()
        self._trained = faiss.read_index(str(index.path / TRAINED))
        self._parts = [open_part(index.path / part.folder) for part in parts]
        self._settings: dict[str, Any] = {}
        gone = deleted_numbers(index.store)
        if len(gone):
            # NOTE: IndexShardsIVF finds the lists of a query once for all of its shards, but
            # does not take a selector, and does not say so (faiss 1.15); IndexShards does.
            self._shards = faiss.IndexShards(self._trained.d, False, False)
            self._gone = faiss.IDSelectorBatch(gone)
            self._kept = faiss.IDSelectorNot(self._gone)
            settings = faiss.SearchParametersIVF(sel=self._kept, nprobe=index.num_lists)
            self._settings["params"] = settings
        else:
            self._shards = faiss.IndexShardsIVF(
                self._trained.quantizer, self._trained.nlist, False, False
            )
        for part in self._parts:
            part.nprobe = index.num_lists
            self._shards.add_shard(part)

    def search(
        self, queries: Float[np.ndarray, "q d"], k: int
    ) -> tuple[Float[np.ndarray, "q k"], Int[np.ndarray, "q k"]]:
        """Return scores and numbers of the best rows."""
        return self._shards.search(queries, k, **self._settings)


def check_parts(path: Path, parts: tuple[Part, ...], store: GradientStore) -> None:
    """Refuse parts that are not those of a store's rows as they are.

    Raises:
        StoreMismatchError: Some are of other rows, or some rows are in none.
    """
    current = [part for part in parts if part.is_of(store)]
    held = {number for part in current for number, _ in part.shards}
    missing = [shard for shard in store.shards if shard.number not in held]
    if missing or len(current) < len(parts):
        raise StoreMismatchError(
            f"{path} must have been built from the rows of {store.path} as they are now. "
            f"{len(parts) - len(current)} of its {len(parts)} parts are of other rows, and "
            f"{sum(map(len, missing))} of the store's {len(store)} rows are in none. Run "
            "`build_disk_index` to go on with it."
        )
