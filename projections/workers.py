"""Who works on the parts of a job: this process, or the workers of a Ray cluster.

The parts and the function are the same either way, and so are the results, which come in
the order of the parts.
"""

import pickle
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, runtime_checkable

import pyarrow as pa

from projections.checks import require
from projections.ray_data import map_on_ray

INSTALL_RAY = "pip install 'gradsift[ray]'"
WINDOW_BYTES = 1 << 28  # parts that are with the cluster at a time
PART = "part"


@runtime_checkable
class Workers(Protocol):
    """Those who do a function of many parts."""

    def map(self, function: Callable[[Any], Any], parts: Iterable[Any]) -> Iterator[Any]:
        """Yield the result of each part, in order."""
        ...


@dataclass(frozen=True)
class Here:
    """This process.

    Example:
        >>> list(Here().map(abs, [-1, 2]))
        [1, 2]
    """

    def map(self, function: Callable[[Any], Any], parts: Iterable[Any]) -> Iterator[Any]:
        """Yield the result of each part, one after the other."""
        return map(function, parts)


@dataclass(frozen=True)
class OnRay:
    """The workers of the Ray cluster that this process is joined with.

    Args:
        window_bytes: Size of the parts that are with the cluster at a time.
    """

    window_bytes: int = WINDOW_BYTES

    def map(self, function: Callable[[Any], Any], parts: Iterable[Any]) -> Iterator[Any]:
        """Yield the result of each part, some parts at a time; a dead worker's are done again.

        Args:
            function: A function of a part alone.
            parts: Anything that can be pickled.
        """
        data = require("ray.data", INSTALL_RAY)
        for tables in self._windows(parts):
            for results in map_on_ray(data.from_arrow(tables), partial(_apply, function)):
                yield from results

    def _windows(self, parts: Iterable[Any]) -> Iterator[list[pa.Table]]:
        """Yield parts as tables of one row, up to a size."""
        tables: list[pa.Table] = []
        for part in parts:
            if sum(table.nbytes for table in tables) >= self.window_bytes:
                yield tables
                tables = []
            tables.append(pa.table({PART: pa.array([pickle.dumps(part)], pa.large_binary())}))
        if tables:
            yield tables


def _apply(function: Callable[[Any], Any], table: pa.Table) -> list[Any]:
    """Return the results of the parts in a table."""
    return [function(pickle.loads(part.as_buffer())) for part in table.column(PART)]


HERE, ON_RAY = Here(), OnRay()
