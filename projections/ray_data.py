"""Work on the blocks of a Ray dataset, by the cluster that holds it.

What is done with a block is a function of its rows and their ids alone, so that Ray may do
it again where a worker died. Results come in the order of the blocks; nothing that we
compute depends on where one block ends and the next begins. Ray is imported by whoever made
the dataset, never here.
"""

import pickle
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import pyarrow as pa

from projections.errors import DataError, GradsiftError

Result = TypeVar("Result")
RESULT = "result"


@dataclass(frozen=True)
class Failed:
    """An error of ours on a worker, and where it was raised."""

    error: Exception
    trace: str


def is_on_ray(data: Any) -> bool:
    """Tell whether this is a ``ray.data.Dataset``.

    Example:
        >>> is_on_ray(["a text"])
        False
    """
    ray_data = sys.modules.get("ray.data")
    return ray_data is not None and isinstance(data, ray_data.Dataset)


def map_on_ray(dataset: Any, work: Callable[[pa.Table], Result]) -> Iterator[Result]:
    """Yield ``work(table)`` of each block that has rows, in the order of the blocks.

    Args:
        dataset: A ``ray.data.Dataset``.
        work: Sent to the workers once; what it returns is pickled.

    Raises:
        GradsiftError, TypeError, ValueError: As ``work`` does; other errors come as Ray
            wraps them.
    """
    sealed = partial(_seal, work)  # by name, since a function in a function would go by value
    done = dataset.map_batches(sealed, batch_format="pyarrow", batch_size=None)
    for table in ray_tables(done):
        for part in table.column(RESULT):
            result = pickle.loads(part.as_buffer())
            if isinstance(result, Failed):
                result.error.add_note(f"On a worker of Ray:\n{result.trace}")
                raise result.error
            yield result


def ray_tables(dataset: Any) -> Iterator[pa.Table]:
    """Yield the blocks of a Ray dataset that have rows as arrow tables, in their order."""
    with _in_order(dataset.context):
        for table in dataset.iter_batches(batch_format="pyarrow", batch_size=None):
            if table.num_rows:
                yield table


def check_ray_arguments(*, num_workers: int = 1, path: Any = None) -> None:
    """Refuse what is decided by Ray.

    Raises:
        ValueError: A number of workers, or a folder to go on from, is given.
    """
    if num_workers != 1:
        raise ValueError(
            f"`num_workers` must be left out for a Ray dataset, whose cluster has the workers. "
            f"Got {num_workers}."
        )
    if path is not None:
        raise ValueError(
            "`path` must be left out for a Ray dataset: Ray does lost blocks again by itself. "
            f"Got {str(path)!r}."
        )


def check_ray_ids(table: pa.Table, column: str) -> None:
    """Refuse a block without ids.

    Raises:
        DataError: It has no such column.
    """
    if column not in table.column_names:
        raise DataError(
            f"a Ray dataset must have a column {column!r} of ids, since its rows have no numbers. "
            f"Its columns are {sorted(table.column_names)}. Rename one, as in "
            f"`dataset.rename_columns({{'url': {column!r}}})`."
        )


def _seal(work: Callable[[pa.Table], Any], table: pa.Table) -> pa.Table:
    """Return the pickled result of a block as a table of one row."""
    parts = [pickle.dumps(_attempt(work, table))] if table.num_rows else []
    return pa.table({RESULT: pa.array(parts, pa.large_binary())})


def _attempt(work: Callable[[pa.Table], Any], table: pa.Table) -> Any:
    """Return the result of a block, or the error that it ended in."""
    try:
        return work(table)
    except (GradsiftError, TypeError, ValueError) as error:
        return Failed(error, traceback.format_exc())


@contextmanager
def _in_order(context: Any) -> Iterator[None]:
    """Have Ray give blocks in order and show no bars of its own, for a while."""
    options = context.execution_options
    before = options.preserve_order, context.enable_progress_bars
    options.preserve_order, context.enable_progress_bars = True, False
    try:
        yield
    finally:
        options.preserve_order, context.enable_progress_bars = before
