"""Deleting rows of a store, giving back their space, and making one store of several.

Each edit is one line of the journal or one a shard, so that a kill leaves the store as it
was before or after it, and the same call goes on.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from projections.checks import check_not_empty
from projections.errors import StoreMismatchError
from projections.fingerprint import differences
from projections.journal import Journal
from projections.progress import track
from projections.row_types import NUM_NAMED
from projections.shards import JOURNAL, Shard, delete_entry, rewrite_entry, shard_folder
from projections.store import IDS, GradientStore
from projections.store_writer import OF_A_PART, StoreWriter, write_columns


def delete_rows(path: str | Path, ids: Sequence[Any] | np.ndarray) -> GradientStore:
    """Delete rows by id: every reader and search passes over them from then on.

    Their bytes stay on the disk until `compact_store`.

    Args:
        path: Folder of the store.
        ids: The ids.

    Returns:
        The store without them.

    Raises:
        KeyError: An id is not in the store; nothing is deleted.
    """
    store = GradientStore.open(path, allow_unfinished=True)
    wanted = np.asarray(ids)
    found = np.isin(wanted, store.ids)
    if not found.all():
        raise KeyError(
            f"ids to delete must be in {store.path}. These are not: "
            f"{wanted[~found][:NUM_NAMED].tolist()}. Nothing was deleted."
        )
    gone = {}
    for shard in store.shards:
        here = np.isin(store.kept_column(shard, IDS), wanted)
        if (rows := shard.live[here]).size:
            gone[shard.number] = rows.tolist()
    if gone:
        Journal(store.path / JOURNAL).add(delete_entry(gone))
    return GradientStore.open(path, allow_unfinished=True)


def compact_store(path: str | Path) -> GradientStore:
    """Write the shards that have deleted rows again without them, and remove the old ones.

    One shard at a time needs room twice. Stores that are open elsewhere, and FAISS indexes of
    this store, have to be opened or built again.

    Args:
        path: Folder of the store.

    Returns:
        The store, with the same rows in the same order.
    """
    store = GradientStore.open(path, allow_unfinished=True)
    journal = Journal(store.path / JOURNAL)
    worked = [shard for shard in store.shards if shard.deleted]
    for shard in track(worked, "compact", total=len(worked)):
        folder = _next_folder(shard)
        files = write_columns(store.path / folder, _kept_columns(store, shard))
        journal.add(rewrite_entry(shard, folder, files))
    store = GradientStore.open(path, allow_unfinished=True)
    listed = {shard.folder for shard in store.shards}
    for folder in store.path.glob("shard-*"):
        # A shard beyond the listed ones is being written; any other is of before.
        if folder.name not in listed and folder.name < shard_folder(len(store.shards)):
            shutil.rmtree(folder)
    return store


def merge_stores(paths: Sequence[str | Path], out: str | Path) -> GradientStore:
    """Copy the rows of several stores into a new one, without deleted rows.

    Rows keep their bytes. A merge that was stopped goes on.

    Args:
        paths: Folders of finished stores, made with the same model, map and settings from
            different data.
        out: Folder of the new store.

    Raises:
        StoreMismatchError: The stores differ in their description or columns, or share ids.
    """
    check_not_empty("paths", len(paths))
    stores = [GradientStore.open(path) for path in paths]
    first = stores[0]
    for other in stores[1:]:
        if different := differences(_shared(first), _shared(other)):
            raise StoreMismatchError(
                f"stores to merge must have been made alike. {first.path} (first) and {other.path} "
                f"(second) differ in: {'; '.join(different)}."
            )
    _check_disjoint(stores)
    alike = {key: value for key, value in _shared(first).items() if key in first.manifest}
    description = {
        **{key: value for key, value in alike.items() if key not in ("format", "dtype")},
        "data": [store.manifest.get("data") for store in stores],
        "merged": [store.fingerprint for store in stores],
    }
    num_rows = sum(map(len, stores))
    writer = StoreWriter(out, description, num_rows=num_rows, dtype=first.manifest["dtype"])
    parts = [(store, shard) for store in stores for shard in store.shards if len(shard)]
    numbered = list(enumerate(parts))[writer.num_finished :]
    for number, (store, shard) in track(numbered, "merge", total=len(numbered)):
        writer.write_kept(number, _kept_columns(store, shard))
    return GradientStore.open(out)


def _shared(store: GradientStore) -> dict[str, Any]:
    """Return what stores must share to be merged."""
    alike = {key: value for key, value in store.manifest.items() if key not in OF_A_PART}
    kinds = {"ids": store.ids.dtype.kind, "columns": sorted(store.column_names)}
    return {**alike, **kinds, "num_dims": store.num_dims}


def _check_disjoint(stores: Sequence[GradientStore]) -> None:
    """Refuse stores that share ids, by both names."""
    for position, store in enumerate(stores):
        for other in stores[:position]:
            if (common := np.intersect1d(other.ids, store.ids)).size:
                raise StoreMismatchError(
                    f"stores to merge must have different ids. {other.path} and {store.path} both "
                    f"have {common[:NUM_NAMED].tolist()}. Delete them from one of the two."
                )


def _kept_columns(store: GradientStore, shard: Shard) -> dict[str, np.ndarray]:
    """Return the columns of one shard as they are kept, without deleted rows."""
    return {name: store.kept_column(shard, name) for name in shard.files}


def _next_folder(shard: Shard) -> str:
    """Return the folder of a shard that is written again."""
    _, _, generation = shard.folder.removeprefix(shard_folder(shard.number)).partition("-")
    return f"{shard_folder(shard.number)}-{int(generation or 0) + 1}"
