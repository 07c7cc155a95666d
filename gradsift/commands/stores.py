"""The commands that look after a store: verify, delete, compact, merge."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from projections import (
    GradientStore,
    StoreMismatchError,
    compact_store,
    delete_rows,
    merge_stores,
)


@dataclass(frozen=True, kw_only=True)
class StoreVerify:
    """Compare every file of a store with its checksum."""

    store: Annotated[Path, tyro.conf.Positional]
    """Folder of a store, or one made by `gradsift index`."""

    def run(self) -> Iterator[str]:
        """Read every byte."""
        store = GradientStore.open(find_store(self.store), allow_unfinished=True)
        store.verify()
        deleted = len(store.undeleted()) - len(store)
        yield f"whole: {len(store):,} rows of {store.num_dims:,} numbers in {store.path}"
        if deleted:
            yield f"{deleted:,} deleted rows are still on the disk; `store-compact` removes them"
        if not store.is_finished:
            yield f"unfinished: {store.num_written:,} of {store.num_planned:,} rows are written"


@dataclass(frozen=True, kw_only=True)
class StoreDelete:
    """Delete rows of a store by id."""

    store: Annotated[Path, tyro.conf.Positional]
    """Folder of a store, or one made by `gradsift index`."""

    ids: tuple[str, ...] = ()
    """Ids of the rows."""

    ids_file: Path | None = None
    """A file with one id a line."""

    def run(self) -> Iterator[str]:
        """Delete the rows."""
        path = find_store(self.store)
        wanted = list(self.ids)
        if self.ids_file is not None:
            wanted += [line for line in self.ids_file.read_text().splitlines() if line]
        if not wanted:
            raise ValueError("an id must be given, with `--ids ID` or `--ids-file FILE`.")
        numbered = GradientStore.open(path, allow_unfinished=True).ids.dtype.kind == "i"
        store = delete_rows(path, [int(one) for one in wanted] if numbered else wanted)
        yield f"deleted {len(wanted):,} rows; {len(store):,} are left in {path}"
        yield f"next: gradsift store-compact {self.store}"


@dataclass(frozen=True, kw_only=True)
class StoreCompact:
    """Give back the space of deleted rows."""

    store: Annotated[Path, tyro.conf.Positional]
    """Folder of a store, or one made by `gradsift index`."""

    def run(self) -> Iterator[str]:
        """Write shards with deleted rows again."""
        store = compact_store(find_store(self.store))
        yield f"compacted: {len(store):,} rows in {store.path}"


@dataclass(frozen=True, kw_only=True)
class StoreMerge:
    """Copy the rows of several stores into a new one."""

    stores: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Folders of stores, or made by `gradsift index`, from different data."""

    out: Path
    """Folder of the new store. A merge that was stopped goes on."""

    def run(self) -> Iterator[str]:
        """Copy the rows."""
        store = merge_stores([find_store(path) for path in self.stores], self.out)
        yield f"merged {len(self.stores)} stores: {len(store):,} rows in {self.out}"


def find_store(path: Path) -> Path:
    """Return the folder of the store in a folder made by `gradsift index`, or the folder itself.

    Raises:
        StoreMismatchError: There is no such folder.
    """
    if not path.is_dir():
        raise StoreMismatchError(f"{path} must be the folder of a store. There is no such folder.")
    return path / "store" if (path / "store").is_dir() else path
