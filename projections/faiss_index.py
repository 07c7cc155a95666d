"""Search by a FAISS index, built by a factory string and kept beside the store.

Letters: ``q`` queries, ``n`` rows, ``k`` neighbours, ``d`` dimensions of a row.

The index numbers rows as they lie on the disk, so that it stays right when rows are
deleted: these are passed over while searching. A saved index is mapped from the disk and
not read into memory. Not handled: FAISS on a GPU; `SearchIndex` runs there.
"""

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from projections.base import TopK
from projections.checks import check_at_least
from projections.disk_index import DiskIndex
from projections.errors import StoreMismatchError
from projections.faiss_factory import (
    FOLDER,
    LISTS_SEARCHED,
    added_blocks,
    empty_index,
    load_faiss,
    training_rows,
)
from projections.files import read_json, replacing, write_json
from projections.fingerprint import differences
from projections.index_building import build_disk_index, has_plain_lists
from projections.progress import track
from projections.ranks import current_ranks
from projections.search import check_queries, row_ids, width_of
from projections.store import GradientStore

KIND = "a FAISS index made by `FaissIndex.save`"


@dataclass(frozen=True)
class FaissIndex:
    """Search by a FAISS index with inner products.

    Args:
        index: The FAISS index; its numbers are those of rows on the disk.
        ids: Ids of all rows on the disk.
        note: Where it came from: factory string, seed, and the store's fingerprint.
        live: Numbers on the disk of the rows that are not deleted; None for all.

    Example:
        >>> index = FaissIndex.build(np.eye(3, dtype=np.float32), "Flat", seed=0)
        >>> index.search(np.array([[0.1, 0.3, 0.2]]), 2).ids
        array([[1, 2]])

    References:
        Douze et al., The Faiss library (2024), arXiv:2401.08281.
    """

    index: Any
    ids: np.ndarray
    note: dict[str, Any] = field(default_factory=dict)
    live: Int[np.ndarray, " n"] | None = None

    @classmethod
    def build(
        cls, rows: Any, factory: str, *, seed: int, ids: np.ndarray | None = None
    ) -> "FaissIndex":
        """Build an index from a factory string such as ``"IVF256,SQ8"``.

        An index with lists looks into a sixteenth of them; see `with_lists_searched`.

        Args:
            rows: A `GradientStore`, or an array ``n d``.
            factory: A FAISS factory string.
            seed: Chooses the rows that train the index.
            ids: Ids of the rows; those of the store, or the positions, unless given.

        Raises:
            ImportError: FAISS is not installed.
            ValueError: FAISS does not understand the string, it keeps whole numbers of rows that
                are none, or there are too few rows.
        """
        if "direct" in factory:
            raise ValueError(
                f"`factory` must not round rows and queries to whole numbers. Got {factory!r}. "
                "`build_disk_index` takes 'IVF256,SQ8_direct_signed', in units that fit the rows."
            )
        is_store = isinstance(rows, GradientStore)
        whole, live = (rows.undeleted(), rows.live) if is_store else (rows, None)
        index = empty_index(width_of(whole), factory)
        if not index.is_trained:
            index.train(training_rows(whole, index, factory, seed))
        for block in track(added_blocks(whole), "faiss", total=len(whole), size=len):
            index.add(np.ascontiguousarray(block, np.float32))
        if (lists := load_faiss().try_extract_index_ivf(index)) is not None:
            lists.nprobe = max(1, lists.nlist // LISTS_SEARCHED)
        note = {"factory": factory, "seed": seed, "num_rows": len(whole)}
        if is_store:
            note["store"] = rows.fingerprint
        return cls(index, row_ids(whole, ids), note, live)

    def __len__(self) -> int:
        """Return the number of rows that are not deleted."""
        return self.index.ntotal if self.live is None else len(self.live)

    def search(self, queries: Float[np.ndarray, "q d"], k: int) -> TopK:
        """Return about the ``k`` rows with the largest inner products for each query.

        Rows that an approximate index does not find have the position -1 and the id -1 or "".

        Args:
            queries: One query a row.
            k: Number of neighbours, at most the number of rows.

        Raises:
            ValueError: ``k`` is larger than the number of rows, or the widths differ.
            NonFiniteError: A query is not finite.
        """
        queries = check_queries(queries, self.index.d, k, len(self))
        scores, numbers = self._search_live(queries, k)
        ids = self.ids[numbers]
        ids[numbers < 0] = -1 if ids.dtype.kind == "i" else ""
        if self.live is None:
            return TopK(ids, scores, numbers)
        positions = np.where(numbers < 0, -1, np.searchsorted(self.live, numbers))
        return TopK(ids, scores, positions)

    def search_both(self, queries: Float[np.ndarray, "q d"], k: int) -> tuple[TopK, TopK]:
        """Return both ends: the bottom is the top of the negated queries."""
        bottom = self.search(-np.asarray(queries), k)
        return self.search(queries, k), TopK(bottom.ids, -bottom.scores, bottom.positions)

    def with_lists_searched(self, num_lists: int) -> "FaissIndex":
        """Return the index set to look into this many lists of an IVF index for each query.

        Raises:
            ValueError: It has no lists.
        """
        check_at_least("num_lists", num_lists, 1)
        lists = load_faiss().try_extract_index_ivf(self.index)
        if lists is None:
            raise ValueError(
                "`num_lists` is for an index with lists, whose factory string has 'IVF'. This is "
                f"{self.note.get('factory')!r}."
            )
        lists.nprobe = min(num_lists, lists.nlist)
        return self

    def save(self, path: str | Path) -> None:
        """Write the index to ``path``, and its ids and note to files beside it."""
        path, faiss = Path(path), load_faiss()
        with replacing(path) as file:
            faiss.write_index(self.index, faiss.PyCallbackIOWriter(file.write))
        with replacing(_beside(path, ".ids.npy")) as file:
            np.save(file, self.ids, allow_pickle=False)
        lists = faiss.try_extract_index_ivf(self.index)
        note = {**self.note, "has_lists": lists is not None}
        write_json(_beside(path, ".json"), {**note, "nprobe": lists.nprobe if lists else None})

    @classmethod
    def load(cls, path: str | Path, *, store: GradientStore | None = None) -> "FaissIndex":
        """Open a saved index, mapped from the disk.

        Args:
            path: The file.
            store: The store it was built from; its deleted rows are not found.

        Raises:
            StoreMismatchError: There is none, or it was built from other rows.
        """
        path, faiss = Path(path), load_faiss()
        note = read_json(_beside(path, ".json"), KIND)
        has_lists, nprobe = note.pop("has_lists"), note.pop("nprobe")
        if store is not None:
            now = {"store": store.fingerprint, "num_rows": len(store.undeleted())}
            if different := differences({key: note.get(key) for key in now}, now):
                raise StoreMismatchError(
                    f"{path} must have been built from the rows of {store.path} as they are now. "
                    f"They differ in: {'; '.join(different)}. Build the index again."
                )
        # NOTE: IO_FLAG_MMAP maps inverted lists and does nothing for flat codes; the other one
        # maps flat codes and does nothing for inverted lists (faiss 1.15).
        flag = faiss.IO_FLAG_MMAP if has_lists else faiss.IO_FLAG_MMAP_IFC
        index = faiss.read_index(str(path), flag)
        if has_lists:
            faiss.extract_index_ivf(index).nprobe = nprobe
        ids = np.load(_beside(path, ".ids.npy"), allow_pickle=False)
        return cls(index, ids, note, None if store is None else store.live)

    @cached_property
    def _selector(self) -> Any:
        """FAISS's own form of the rows that are not deleted."""
        assert self.live is not None
        bits = np.zeros(self.index.ntotal, dtype=bool)
        bits[self.live] = True
        return load_faiss().IDSelectorBitmap(np.packbits(bits, bitorder="little"))

    def _search_live(
        self, queries: Float[np.ndarray, "q d"], k: int
    ) -> tuple[Float[np.ndarray, "q k"], Int[np.ndarray, "q k"]]:
        """Return scores and numbers of rows that are not deleted."""
        if self.live is None or len(self.live) == self.index.ntotal:
            return self.index.search(queries, k)
        faiss = load_faiss()
        lists = faiss.try_extract_index_ivf(self.index)
        # These parameters are taken by indexes of every kind that can pass over rows.
        settings = faiss.SearchParametersIVF(
            sel=self._selector, **({"nprobe": lists.nprobe} if lists is not None else {})
        )
        try:
            return self.index.search(queries, k, params=settings)
        except RuntimeError as error:
            raise ValueError(
                f"an index with deleted rows must be of a kind that can pass over them. FAISS "
                f"cannot with {self.note.get('factory')!r}. Run `compact_store` and build the "
                "index again, or use an IVF, HNSW, SQ, RaBitQ or Flat index."
            ) from error


def faiss_beside(store: GradientStore, factory: str, *, seed: int = 0) -> FaissIndex | DiskIndex:
    """Open the FAISS index beside a store, or build and save it there.

    One with lists that can lie on the disk is a `DiskIndex`; see `build_disk_index`.

    Args:
        store: The store.
        factory: A FAISS factory string.
        seed: Chooses the rows that train the index.

    Raises:
        ValueError: FAISS does not understand the string, or there are too few rows.
    """
    if has_plain_lists(empty_index(store.num_dims, factory)):
        return build_disk_index(store, factory, seed=seed)
    ranks = current_ranks()
    with ranks.telling():
        return ranks.first_then_others(lambda: _saved(store, factory, seed), "building an index")


def _saved(store: GradientStore, factory: str, seed: int) -> FaissIndex:
    """Open a saved index of the rows as they are, or build it."""
    path = store.path / FOLDER / f"{factory.replace('/', '_')}-{seed}.index"
    if _beside(path, ".json").exists():
        note = read_json(_beside(path, ".json"), KIND)
        if (note.get("store"), note.get("num_rows")) == (
            store.fingerprint,
            len(store.undeleted()),
        ):
            return FaissIndex.load(path, store=store)
    index = FaissIndex.build(store, factory, seed=seed)
    index.save(path)
    return FaissIndex.load(path, store=store)


def _beside(path: Path, ending: str) -> Path:
    """Return the path of a file that belongs to an index."""
    return path.with_name(path.name + ending)
