"""The files of an index on the disk: what it is, its lists without rows, and its parts.

Letters: ``n`` rows, ``d`` dimensions of a row.

Each part is a folder with a FAISS index, which any program that has FAISS can read: one
file, or two where the lists of several parts were merged into `OnDiskInvertedLists`.
Either way FAISS maps the lists from the disk.
"""

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from projections.errors import StoreMismatchError
from projections.faiss_factory import ADDED_ROWS, load_faiss
from projections.files import replacing, sync_folder
from projections.fingerprint import fingerprint_file
from projections.index_parts import Part, fingerprint_shard, numbers_of, part_folder
from projections.progress import track
from projections.row_types import INT8_MOST
from projections.shards import Shard
from projections.store import GradientStore

TRAINED = "trained.index"  # the index without rows
LISTS = "lists.index"  # a part
DATA = "lists.ivfdata"  # the lists of a part, where several were merged


def save_index(index: Any, path: Path) -> None:
    """Write a FAISS index, whole or not at all."""
    faiss = load_faiss()
    with replacing(path) as file:
        faiss.write_index(index, faiss.PyCallbackIOWriter(file.write))


def open_part(folder: Path) -> Any:
    """Return a part with its lists mapped from the disk.

    Raises:
        StoreMismatchError: It is gone.
    """
    faiss = load_faiss()
    if not (folder / LISTS).exists():
        raise StoreMismatchError(
            f"{folder / LISTS} must be there. Parts were merged or built again since this index "
            "was opened: open it again. Or the file was removed: `verify` lists all such."
        )
    index = faiss.read_index(str(folder / LISTS), faiss.IO_FLAG_MMAP)
    if (folder / DATA).exists():
        # NOTE: IO_FLAG_MMAP leaves lists in a file of their own unmapped, and
        # IO_FLAG_ONDISK_SAME_DIR prints a line on every call (faiss 1.15).
        lists = faiss.downcast_InvertedLists(index.invlists)
        lists.filename, lists.read_only = str(folder / DATA), True
        lists.do_mmap()
    return index


def write_part(
    folder: Path, number: int, store: GradientStore, shards: Sequence[Shard], unit: float | None
) -> Part:
    """Write the rows of some shards as one part.

    Args:
        folder: Folder of the index, with the trained one.
        number: Number of the part.
        store: The store.
        shards: Its shards.
        unit: What an index of whole numbers counts in; see `to_units`.
    """
    faiss = load_faiss()
    index = faiss.read_index(str(folder / TRAINED))
    blocks = track(
        _numbered(store, shards), f"index part {number}", total=sum(map(len, shards)), size=_size
    )
    for rows, numbers in blocks:
        index.add_with_ids(rows if unit is None else to_units(rows, unit), numbers)
    save_index(index, folder / part_folder(number) / LISTS)
    return _finished(folder, number, shards, index.ntotal)


def merge_files(folder: Path, number: int, parts: Sequence[Part]) -> Part:
    """Write the rows of several parts as one, with the lists in one file."""
    faiss = load_faiss()
    merged = faiss.read_index(str(folder / TRAINED))
    data = folder / part_folder(number) / DATA
    data.parent.mkdir()
    sources = [open_part(folder / part.folder) for part in parts]
    pointers = faiss.InvertedListsPtrVector()
    for source in sources:
        pointers.push_back(source.invlists)
    with _without_faiss_lines():
        lists = faiss.OnDiskInvertedLists(merged.nlist, merged.code_size, str(data))
        merged.ntotal = lists.merge_from_multiple(pointers.data(), pointers.size(), False)
    merged.replace_invlists(lists, True)
    lists.this.disown()
    with data.open("rb") as file:
        os.fsync(file.fileno())
    save_index(merged, data.with_name(LISTS))
    shards = tuple(shard for part in parts for shard in part.shards)
    return Part(number, shards, merged.ntotal, _sealed(data.parent))


def to_units(rows: Float[np.ndarray, "n d"], unit: float) -> Float[np.ndarray, "n d"]:
    """Return rows as whole numbers of one byte, which an index takes as they are.

    A number beyond 127 units, as later rows may have, counts as 127.
    """
    return np.clip(np.rint(rows / np.float32(unit)), -INT8_MOST, INT8_MOST)


def damaged_parts(folder: Path, parts: Iterable[Part]) -> list[str]:
    """Return the files that do not match their checksums."""
    files = [
        (folder / part.folder / name, checksum)
        for part in parts
        for name, checksum in part.files.items()
    ]
    return [
        str(file.relative_to(folder))
        for file, checksum in files
        if not file.is_file() or fingerprint_file(file) != checksum
    ]


def _numbered(
    store: GradientStore, shards: Sequence[Shard]
) -> Iterator[tuple[Float[np.ndarray, "n d"], np.ndarray]]:
    """Yield rows as float32 with their numbers, some at a time."""
    wanted = {shard.number for shard in shards}
    rest = store.without([s.number for s in store.shards if s.number not in wanted])
    filled = [shard for shard in rest.shards if len(shard)]
    for shard, (rows, scales) in zip(filled, rest.tensors(), strict=True):
        numbers = numbers_of(shard)
        for start in range(0, len(rows), ADDED_ROWS):
            some = slice(start, start + ADDED_ROWS)
            wide = rows[some].float().numpy()
            yield wide if scales is None else wide * scales[some, None], numbers[some]


def _size(block: tuple[np.ndarray, np.ndarray]) -> int:
    """Return the number of rows of a block."""
    return len(block[1])


def _finished(folder: Path, number: int, shards: Sequence[Shard], num_rows: int) -> Part:
    """Return a part whose files are written."""
    known = tuple((shard.number, fingerprint_shard(shard)) for shard in shards)
    return Part(number, known, num_rows, _sealed(folder / part_folder(number)))


def _sealed(folder: Path) -> dict[str, str]:
    """Return the checksums of the files of a part, all of which are on the disk."""
    sync_folder(folder)
    sync_folder(folder.parent)
    return {file.name: fingerprint_file(file) for file in sorted(folder.iterdir())}


@contextmanager
def _without_faiss_lines() -> Iterator[None]:
    """Keep what FAISS itself prints while it merges from the output of a command."""
    sys.stdout.flush()
    kept = os.dup(1)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)
