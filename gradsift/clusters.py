"""Ray clusters that commands use, and data that their workers read."""

import importlib
import logging
import socket
from functools import reduce
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import datasets
import pyarrow as pa

from projections import DataError, Rows, read_dataset, require, without_compression

INSTALL_RAY = "pip install 'gradsift[ray]'"
LOCAL, AUTO = "local", "auto"
PATIENCE = 5.0  # seconds in which a head node must answer; Ray itself tries for over a minute
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
        ConnectionError: There is no such cluster, or its head node does not answer.
        DataError: The address is none.
    """
    ray: Any = require("ray", INSTALL_RAY)
    require("ray.data", INSTALL_RAY)
    if not ray.is_initialized():
        own = {"include_dashboard": False} if address == LOCAL else {}
        check_answers(address)
        try:
            ray.init(address=address, log_to_driver=False, logging_level="ERROR", **own)
        except ConnectionError as error:
            raise _no_cluster(address, str(error)) from error
        ray.data.DataContext.get_current()
        logging.getLogger("ray.data").setLevel(logging.ERROR)  # plans and progress of its own
    return ray


def check_answers(address: str) -> None:
    """Refuse an address at which nothing listens, before Ray waits for it.

    Args:
        address: ``host:port``, ``ray://host:port``, ``"auto"`` or ``"local"``.

    Raises:
        ConnectionError: Nothing answers within `PATIENCE` seconds.
        DataError: There is no host and port in it.
    """
    known = _address_of_auto(address) if address == AUTO else address
    if known is None or known == LOCAL:
        return
    host, port = _host_and_port(known)
    try:
        socket.create_connection((host, port), timeout=PATIENCE).close()
    except OSError as error:
        raise _no_cluster(address, f"nothing answers at {host}, port {port}: {error}") from error


def _address_of_auto(address: str) -> str | None:
    """Return what Ray takes ``"auto"`` for; None where this version does not tell."""
    services = importlib.import_module("ray._private.services")
    find = getattr(services, "get_ray_address_from_environment", None)
    try:
        return None if find is None else find(address, None)
    except ConnectionError as error:
        raise _no_cluster(address, str(error)) from error


def _host_and_port(address: str) -> tuple[str, int]:
    """Return both parts of an address."""
    try:
        parts = urlsplit(address if "://" in address else f"ray://{address}")
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    if not host or not port:
        raise DataError(
            "`--ray` must be 'local', 'auto', or the address of a head node such as "
            f"10.0.0.1:6379 or ray://10.0.0.1:10001. Got {address!r}."
        )
    return host, port


def _no_cluster(address: str, reason: str) -> ConnectionError:
    """Say that there is no cluster to join."""
    return ConnectionError(
        f"`--ray` must lead to a Ray cluster that runs. Got {address!r}: {reason.rstrip('.')}. "
        "Start one with `ray start --head`, give the address of its head node, or use "
        "`--ray local`."
    )


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
