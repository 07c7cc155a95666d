"""The one funnel through which every long loop reports how far it is.

Silent by default: the library only logs. An application installs a display with
`show_progress`, as the command line does to draw a bar.
"""

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol, TypeVar, runtime_checkable

logger = logging.getLogger(__name__)
Item = TypeVar("Item")
LOG_EVERY = 10.0  # seconds between two log lines of one loop


@runtime_checkable
class Display(Protocol):
    """What shows the progress of one loop; a `tqdm` bar is one."""

    def update(self, n: float | None = 1) -> object:
        """Move forward by ``n`` units."""
        ...

    def close(self) -> object:
        """End the display."""
        ...


Opener = Callable[[str, int | None, int, str], Display]
_opener: ContextVar[Opener | None] = ContextVar("progress_opener", default=None)


@contextmanager
def show_progress(opener: Opener) -> Iterator[None]:
    """Show every loop inside the block with ``opener(description, total, done, unit)``.

    Args:
        opener: Called once a loop; returns an object with ``update`` and ``close``.
    """
    token = _opener.set(opener)
    try:
        yield
    finally:
        _opener.reset(token)


def track(
    items: Iterable[Item],
    description: str,
    *,
    total: int | None = None,
    done: int = 0,
    unit: str = "examples",
    size: Callable[[Item], int] = lambda item: 1,
) -> Iterator[Item]:
    """Yield ``items`` and report them to the display and, now and then, to the log.

    Args:
        items: What to loop over.
        description: What the loop does, in a few words.
        total: Number of units in all, if known.
        done: Number of units that were finished before, by a run that was resumed.
        unit: What is counted.
        size: Number of units of one item.
    """
    opener = _opener.get()
    display = opener(description, total, done, unit) if opener else None
    started = logged = time.monotonic()
    count = done
    try:
        for item in items:
            yield item
            count += size(item)
            if display is not None:  # a bar without a total has no truth value
                display.update(size(item))
            now = time.monotonic()
            if now - logged > LOG_EVERY:
                rate = (count - done) / (now - started)
                left = f", {(total - count) / rate:.0f} s left" if total and rate else ""
                logger.info("%s: %d %s, %.1f/s%s", description, count, unit, rate, left)
                logged = now
    finally:
        if display is not None:
            display.close()
