"""The ranks of a run: which of them this process is, and what they do together.

One process is the one rank of one, for which nothing below costs anything. Under `torchrun`
or `accelerate launch` a process joins the others where it first needs them, unless the
script has called ``init_process_group`` itself. What is gathered goes through a gloo group of
its own, so that a rank that waits can look whether the others are alive.

All ranks make the same calls in the same order; what one of them does by itself goes into
`alone`.
"""

import atexit
import os
import pickle
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, distributed

from projections.errors import LostRankError
from projections.life_signs import LifeSigns

Result = TypeVar("Result")
NEEDED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # what launchers set
TIMEOUT = timedelta(days=2)  # `LifeSigns` is quicker
_alone: ContextVar[bool] = ContextVar("alone", default=False)


@dataclass(frozen=True)
class Ranks:
    """This process among those of a run; by default the only one.

    Args:
        rank: Number of this rank.
        size: Number of ranks.
        local: Number of this rank among those of its machine, and so of its device.

    Example:
        >>> ranks = Ranks()
        >>> ranks.is_first, ranks.gather("a"), ranks.sum_(torch.ones(2))
        (True, ['a'], tensor([1., 1.]))
    """

    rank: int = 0
    size: int = 1
    local: int = 0
    _group: Any = field(default=None, repr=False)
    _signs: LifeSigns | None = field(default=None, repr=False)

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0, which prints, and writes what all have in common."""
        return self.rank == 0

    def gather(self, value: Result, purpose: str = "gather") -> list[Result]:
        """Return what each rank has given, in their order. It travels pickled.

        Args:
            value: What this rank gives.
            purpose: What the ranks meet for, for messages.

        Raises:
            LostRankError: A rank died, or stopped with an error.
        """
        if self.size == 1:
            return [value]
        own = torch.from_numpy(np.frombuffer(pickle.dumps(value), dtype=np.uint8).copy())
        lengths = self._all(torch.tensor([len(own)]), purpose)
        width = max(int(length) for length in lengths)
        padded = torch.zeros(width, dtype=torch.uint8)
        padded[: len(own)] = own
        parts = self._all(padded, purpose)
        return [
            pickle.loads(part[: int(length)].numpy().tobytes())
            for part, length in zip(parts, lengths, strict=True)
        ]

    def barrier(self, purpose: str) -> None:
        """Wait until all ranks have come here."""
        if self.size > 1:
            self._all(torch.zeros(1), purpose)

    def sum_(self, tensor: Tensor, purpose: str = "sum") -> Tensor:
        """Replace a tensor by its sum over the ranks, with the same bits on each, and return it."""
        if self.size > 1:
            near = self._reachable(tensor)
            work = distributed.all_reduce(near, group=self._group_of(near), async_op=True)
            self._wait(work, purpose)
            if near is not tensor:
                tensor.copy_(near)
        return tensor

    def broadcast_(self, tensor: Tensor, source: int, purpose: str = "broadcast") -> Tensor:
        """Replace a tensor by that of one rank, and return it."""
        if self.size > 1:
            near = self._reachable(tensor)
            work = distributed.broadcast(near, source, group=self._group_of(near), async_op=True)
            self._wait(work, purpose)
            if near is not tensor:
                tensor.copy_(near)
        return tensor

    def on_first(self, function: Callable[[], Result], purpose: str) -> Result:
        """Call a function on rank 0 alone; all ranks return what it returned, or raise alike.

        Args:
            function: What to do. Its result, or its error, travels pickled.
            purpose: What it is for, for messages.
        """
        if self.size == 1:
            return function()
        outcome: Any = (None, None)
        if self.is_first:
            try:
                outcome = (function(), None)
            except Exception as error:
                outcome = (None, error)
        result, error = self.gather(outcome, purpose)[0]
        if error is not None:
            raise error
        return result

    def first_then_others(self, function: Callable[[], Result], purpose: str) -> Result:
        """Call a function on rank 0, then on the others, which find what it has written."""
        if self.size == 1:
            return function()
        found: list[Result] = []
        self.on_first(lambda: found.append(function()), purpose)
        return found[0] if self.is_first else function()

    @contextmanager
    def telling(self) -> Iterator[None]:
        """Let an error inside the block stop the other ranks too, and name this one.

        Raises:
            LostRankError: In place of the broken connection to a rank that died.
        """
        try:
            yield
        except LostRankError:
            raise
        except BaseException as error:
            if self._signs is None:
                raise
            broken = isinstance(error, RuntimeError) and "onnection" in str(error)
            if broken and not isinstance(error, torch.cuda.OutOfMemoryError):
                # A collective of the model itself, as of one that is fully sharded.
                raise self._signs.explain(error) from error
            self._signs.last_words(error)
            raise

    def is_first_to_say(self, text: str) -> bool:
        """Tell whether no other rank has said this before."""
        return self._signs is None or self._signs.is_first_to_say(text)

    def _all(self, tensor: Tensor, purpose: str) -> list[Tensor]:
        """Return the tensors of all ranks, which have one shape, on the CPU."""
        parts = [torch.empty_like(tensor) for _ in range(self.size)]
        work = distributed.all_gather(parts, tensor, group=self._group, async_op=True)
        self._wait(work, purpose)
        return parts

    def _wait(self, work: Any, purpose: str) -> None:
        """Wait for a collective."""
        assert self._signs is not None
        self._signs.wait(work, purpose)

    def _group_of(self, tensor: Tensor) -> Any:
        """Return the group that carries tensors of this device."""
        return self._group if tensor.device.type == "cpu" else None

    @staticmethod
    def _reachable(tensor: Tensor) -> Tensor:
        """Return a contiguous tensor where a group carries it: the device with NCCL, or the CPU."""
        on_cpu = tensor.device.type == "cpu"
        if on_cpu or "nccl" not in str(distributed.get_backend_config()):
            return tensor.detach().cpu().contiguous()
        return tensor.detach().contiguous()


_known: dict[int, Ranks] = {}


def current_ranks() -> Ranks:
    """Return the ranks of this run, and join them where a launcher started several.

    Example:
        >>> current_ranks().size
        1
    """
    if _alone.get() or not distributed.is_available():
        return Ranks()
    if not distributed.is_initialized():
        if not is_launched(os.environ):
            return Ranks()
        _join()
    if distributed.get_world_size() == 1:
        return Ranks()
    whole = distributed.distributed_c10d._get_default_group()
    if id(whole) not in _known:
        _known.clear()
        _known[id(whole)] = _meet()
    return _known[id(whole)]


@contextmanager
def alone() -> Iterator[None]:
    """Let passes inside the block be of this process only, whatever other ranks do.

    For what one rank does by itself, or each with data of its own.

    Example:
        >>> with alone():
        ...     current_ranks().size
        1
    """
    token = _alone.set(True)
    try:
        yield
    finally:
        _alone.reset(token)


def is_launched(environment: Mapping[str, str]) -> bool:
    """Tell whether a launcher such as `torchrun` started this process beside others."""
    return all(environment.get(name) for name in NEEDED) and int(environment["WORLD_SIZE"]) > 1


def num_processes() -> int:
    """Return the number of processes that have joined, `alone` or not."""
    together = distributed.is_available() and distributed.is_initialized()
    return distributed.get_world_size() if together else 1


def suffix_of_rank() -> str:
    """Return what keeps apart the unfinished files of ranks that write the same."""
    rank = distributed.get_rank() if num_processes() > 1 else 0
    return f".{rank}" if rank else ""


def _join() -> None:
    """Meet the other processes of the launcher, and part from them when this one ends."""
    local = int(os.environ.get("LOCAL_RANK", 0))
    devices = torch.cuda.device_count() if torch.cuda.is_available() else 0
    own_device = devices >= int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    if own_device:
        torch.cuda.set_device(local)
    distributed.init_process_group("cpu:gloo,cuda:nccl" if own_device else "gloo")
    atexit.register(_part)


def _part() -> None:
    """Leave what `_join` joined."""
    if distributed.is_initialized():
        distributed.destroy_process_group()


def _meet() -> Ranks:
    """Return this process among those that torch knows."""
    store = distributed.distributed_c10d._get_default_store()
    rank, size = distributed.get_rank(), distributed.get_world_size()
    signs = LifeSigns(store, rank, size)
    group = distributed.new_group(backend="gloo", timeout=TIMEOUT)
    local = int(os.environ.get("LOCAL_RANK", rank))
    ranks = Ranks(rank, size, local, group, signs)
    ranks.barrier("start")
    atexit.register(signs.leave)
    return ranks
