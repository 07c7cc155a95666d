"""Work on many items at once, with results in the order of the items.

Threads are for work that releases the lock of the interpreter, as compiled loops and arrow
do; processes for work in Python, which must then be picklable.
"""

import multiprocessing
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import (
    BrokenExecutor,
    Executor,
    Future,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
)
from typing import TypeVar

from projections.checks import check_at_least

Item = TypeVar("Item")
Result = TypeVar("Result")
AHEAD = 2  # items that wait for each worker, so that memory is bounded


def ordered_map(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    *,
    num_workers: int,
    processes: bool = False,
) -> Iterator[Result]:
    """Yield ``function(item)`` of each item in order, computed by several workers.

    Args:
        function: What to do with an item.
        items: Read as workers become free, never far ahead.
        num_workers: Number of workers; 1 works here and now.
        processes: Whether workers are processes, which start afresh, or threads.

    Raises:
        RuntimeError: A process died, or could not import the function.

    Example:
        >>> list(ordered_map(abs, [-1, 2, -3], num_workers=2))
        [1, 2, 3]
    """
    check_at_least("num_workers", num_workers, 1)
    if num_workers == 1:
        yield from map(function, items)
        return
    with _pool(num_workers, processes=processes) as pool:
        waiting: deque[Future[Result]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) > AHEAD * num_workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenExecutor as error:
            raise RuntimeError(
                "every worker process must live to the end. One was killed, perhaps for memory, or "
                "could not import what it was sent: functions must be in a module, and a script "
                "must start its work under `if __name__ == '__main__':`."
            ) from error
        finally:
            for future in waiting:
                future.cancel()


def _pool(num_workers: int, *, processes: bool) -> Executor:
    """Return workers. Processes start afresh, since a copy of a process with threads may hang."""
    if processes:
        return ProcessPoolExecutor(num_workers, multiprocessing.get_context("spawn"))
    return ThreadPoolExecutor(num_workers)
