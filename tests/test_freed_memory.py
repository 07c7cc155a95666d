"""Memory that a pass frees stays with the process until a shard is complete."""

import ctypes
import os
import resource
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from torch import nn

from projections import Classification, PassSettings, Statistic, freed_memory, run_pass
from projections.freed_memory import freed_memory_kept

BYTES, TIMES = 1 << 26, 10

needs_gnu = pytest.mark.skipif(
    freed_memory._gnu_library() is None or threading.current_thread() != threading.main_thread(),
    reason="needs the GNU C library, with its own settings, and the first thread",
)


def pages_touched() -> int:
    """Return the number of fresh pages that a large block takes, one time after the other."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(TIMES):
        torch.ones(BYTES // 4)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def resident() -> int:
    """Return the bytes of memory that this process has."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


@needs_gnu
def test_a_block_is_taken_again_within_and_given_back_at_the_end() -> None:
    before = resident()
    with freed_memory_kept():
        pages_touched()
        kept = pages_touched()
        assert resident() > before + BYTES // 2
    assert resident() < before + BYTES // 2
    assert kept * 2 < pages_touched()


@needs_gnu
def test_an_inner_context_leaves_the_outer_one_alone() -> None:
    with freed_memory_kept():
        pages_touched()
        with freed_memory_kept():
            pass
        kept = pages_touched()
    assert kept * 2 < pages_touched()
    assert freed_memory._num_inside == 0


@needs_gnu
def test_a_fork_begins_outside() -> None:
    with freed_memory_kept():
        child = os.fork()
        if child == 0:
            os._exit(freed_memory._num_inside)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert freed_memory._num_inside == 1


@needs_gnu
def test_an_error_ends_it() -> None:
    with pytest.raises(ZeroDivisionError), freed_memory_kept():
        _ = 1 / 0
    assert freed_memory._num_inside == 0


@pytest.mark.parametrize("num_rows", [1, 3])
def test_a_pass_keeps_what_its_batches_free(num_rows: int) -> None:
    inside = []

    class Looking(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            inside.append(freed_memory._num_inside)
            return super().forward(x)

    torch.manual_seed(0)
    rows = [(torch.ones(2), 0)] * num_rows
    settings = PassSettings(batch_size=1)
    run_pass(Classification(Looking(2, 3)), rows, [Statistic("loss")], settings=settings)
    can = freed_memory._gnu_library() is not None
    assert inside[-1] == (can and num_rows > 1)
    assert freed_memory._num_inside == 0


@pytest.mark.parametrize(
    "setting", ["MALLOC_TRIM_THRESHOLD_=1000000", "GLIBC_TUNABLES=glibc.malloc.trim_threshold=9"]
)
def test_what_the_environment_sets_is_left_alone(setting: str) -> None:
    name, _, value = setting.partition("=")
    code = "from projections import freed_memory as f; print(f._gnu_library())"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {name: value},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "None"


def test_another_allocator_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    freed_memory._gnu_library.cache_clear()
    try:
        with freed_memory_kept():
            assert freed_memory._num_inside == 0
    finally:
        freed_memory._gnu_library.cache_clear()
