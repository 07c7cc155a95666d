"""Ray clusters that commands use, and data that their workers read."""

import logging
from functools import reduce
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa

from projections import DataError, Rows, read_dataset, require, without_compression

INSTALL_RAY = "pip install 'gradsift[ray]'"
LOCAL = "local"
BLOCK_ROWS = 4096  # rows of a block made from a dataset
READERS = {
    ".jsonl": "read_json",
    ".json": "read_json",
    ".parquet": "read_parquet",
    ".csv": "read_csv",
}


def join_cluster(address: str) -> Any:
    """Join a Ray cluster, unless this process has joined one, and return ``ray``.

    Args:
        address: ``"auto"`` or an address; ``"local"`` starts workers on this machine, which
            end with the process.

    Raises:
        ImportError: Ray is not installed.
        ConnectionError: There is no such cluster.
    """
    ray: Any = require("ray", INSTALL_RAY)
    require("ray.data", INSTALL_RAY)
    if not ray.is_initialized():
        own = {"include_dashboard": False} if address == LOCAL else {}
        ray.init(address=address, log_to_driver=False, logging_level="ERROR", **own)
        ray.data.DataContext.get_current()
        logging.getLogger("ray.data").setLevel(logging.ERROR)  # plans and progress of its own
    return ray


def read_on_ray(sources: tuple[str, ...], address: str) -> Any:
    """Return the rows of files as a Ray dataset, which the workers read.

    Args:
        sources: Files that all machines of the cluster reach, or the folder or name of one
            dataset.
        address: The cluster.

    Raises:
        DataError: A file is not there or of no known format.
    """
    kinds = [without_compression(Path(source)) for source in sources]
    if len(sources) == 1 and kinds[0] not in READERS:
        return dataset_on_ray(read_dataset(sources[0]), address)
    for source, kind in zip(sources, kinds, strict=True):
        if not Path(source).is_file() or kind not in READERS:
            raise DataError(
                f"{source} must be a file that ends in one of {', '.join(READERS)}, perhaps with "
                ".gz or .zst. It is not there, or ends otherwise."
            )
    ray = join_cluster(address)
    parts = [
        getattr(ray.data, READERS[kind])(str(Path(source).resolve()), file_extensions=None)
        for source, kind in zip(sources, kinds, strict=True)
    ]
    return reduce(lambda left, right: left.union(right), parts)


def dataset_on_ray(data: datasets.Dataset, address: str) -> Any:
    """Return a dataset of this process as one of Ray, with the ids that its rows have here."""
    ray, rows = join_cluster(address), data.with_format("arrow")
    ids = pa.array(Rows(data).ids)
    tables = []
    for start in range(0, len(data), BLOCK_ROWS):
        table: Any = rows[start : start + BLOCK_ROWS]
        if "id" in table.column_names:
            table = table.drop_columns(["id"])
        tables.append(table.append_column("id", ids[start : start + table.num_rows]))
    return ray.data.from_arrow(tables)
