"""Memory that a batch frees, kept for the next one.

The C library hands a large block back to the system when it is freed. The next batch asks for
the same again, in pages that the system first fills with zeros: on a CPU a sixth of the time of an
index of a small language model (`benchmarks/freed_memory.py`). Here it keeps what is freed until
a shard is complete: blocks of many sizes leave gaps, which would add up over a long pass. What was
made within and is freed later goes back to the system after the next shard of any pass.

NOTE: settings are of the whole process, and help its first thread: others have heaps of 64 MB at
most, and take larger blocks from the system whatever is set.
"""

import ctypes
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from threading import Lock

# Parameters of `mallopt`, by their numbers in malloc.h of the GNU C library.
TRIM_THRESHOLD, MMAP_THRESHOLD, MMAP_MAX = -1, -3, -4
KEEPING = {MMAP_MAX: 0, TRIM_THRESHOLD: -1}  # no block of its own mapping, nothing given back
# Up to these the library moves its thresholds by itself, until someone sets one of them.
AT_THEIR_LIMITS = {MMAP_MAX: 1 << 16, MMAP_THRESHOLD: 32 << 20, TRIM_THRESHOLD: 64 << 20}

_lock = Lock()
_num_inside = 0


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Keep memory that is freed within, and give it back to the system at the end.

    Thresholds of the C library are then those that it would have grown to: 32 MB for blocks of
    their own, 64 MB for what is kept. With other allocators and systems than the GNU C library's,
    or where the environment sets its thresholds (``MALLOC_TRIM_THRESHOLD_``, ``GLIBC_TUNABLES``,
    ...), nothing is changed.
    """
    global _num_inside
    library = _gnu_library()
    if library is None:
        yield
        return
    with _lock:
        if _num_inside == 0:
            _set(library.mallopt, KEEPING)
        _num_inside += 1
    try:
        yield
    finally:
        with _lock:
            _num_inside = max(0, _num_inside - 1)  # a fork begins at 0
            if _num_inside == 0:
                _set(library.mallopt, AT_THEIR_LIMITS)
                library.malloc_trim(0)


def _set(mallopt: Callable[[int, int], int], values: dict[int, int]) -> None:
    """Set parameters; one that this version refuses stays what it is."""
    for parameter, value in values.items():
        mallopt(parameter, value)


@cache
def _gnu_library() -> ctypes.CDLL | None:
    """Return the GNU C library where it is this process's, and its user has set nothing."""
    chosen = [name for name in os.environ if name.startswith("MALLOC_") and name.endswith("_")]
    if chosen or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", ""):
        return None
    if sys.platform != "linux":
        return None
    library = ctypes.CDLL(None)
    names = ("gnu_get_libc_version", "mallopt", "malloc_trim")
    if not all(hasattr(library, name) for name in names):
        return None
    library.malloc_trim.argtypes = [ctypes.c_size_t]
    os.register_at_fork(after_in_child=_begin_anew)
    return library


def _begin_anew() -> None:
    """Forget the threads of the parent, of which a fork has none."""
    global _lock, _num_inside
    _lock, _num_inside = Lock(), 0
    library = _gnu_library()
    if library is not None:
        _set(library.mallopt, AT_THEIR_LIMITS)
