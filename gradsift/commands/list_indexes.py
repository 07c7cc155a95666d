"""The command that builds the FAISS index of a large store, and merges its parts."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from gradsift.commands.indexing import read_index_config
from gradsift.commands.options import CONFIG
from gradsift.commands.stores import find_store
from projections import GradientStore, build_disk_index, current_ranks, merge_parts


@dataclass(frozen=True, kw_only=True)
class StoreIndex:
    """Build the FAISS index of a store on the disk, part by part, or go on with it."""

    store: Annotated[Path, tyro.conf.Positional]
    """Folder of a store, or one made by `gradsift index`."""

    faiss: str
    """A FAISS factory string with lists, such as "IVF1024,SQ8" or, searched fastest,
    "IVF1024,SQ8_direct_signed"."""

    merge: int | None = None
    """Merge its parts into at most so many afterwards."""

    part_rows: int | None = None
    """Rows of a part; as many as a gigabyte holds if left out."""

    seed: int | None = None
    """Chooses the rows that train the lists; that of `gradsift index` if left out, or 0."""

    def run(self) -> Iterator[str]:
        """Build, then merge."""
        store = GradientStore.open(find_store(self.store))
        seed = self.seed
        if seed is None:
            seed = read_index_config(self.store).seed if (self.store / CONFIG).exists() else 0
        index = build_disk_index(store, self.faiss, seed=seed, rows_per_part=self.part_rows)
        if self.merge is not None:
            index = merge_parts(index, into=self.merge)
        if not current_ranks().is_first:
            return
        yield f"indexed {len(index):,} rows in {len(index.parts)} parts: {index.path}"
        yield f"a query looks into {index.num_lists:,} of {index.note['nlist']:,} lists"
        if self.store != store.path:
            yield f"next: gradsift retrieve {self.store} --faiss '{self.faiss}' --query '...'"
