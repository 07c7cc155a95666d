"""Signs of life of the ranks of a run, so that one that dies is named by the others.

Each rank counts up under its name in the store that they met at, once a second, beside the
number of meetings it has come to; one that stops with an error leaves its last words. Who
waits for the others looks at both. Nothing is killed here: the survivors raise.
"""

import logging
import threading
import time
from contextlib import suppress
from typing import Any

from torch._C._distributed_c10d import PrefixStore

from projections.errors import LostRankError

logger = logging.getLogger(__name__)
BEAT = 1.0  # seconds between two signs of life
SILENT = 60.0  # seconds without one after which a rank is dead
HUNG_UP = 4.0  # the same where a connection has just broken
PATIENCE = 3600.0  # seconds to wait for ranks that are alive
REMIND = 60.0  # seconds between two warnings that a rank waits
ADVICE = "Run the same again to go on after the last finished shard, with any number of ranks."


class LifeSigns:
    """What one rank shows of itself to the others, and sees of them.

    Args:
        store: Where the ranks met.
        rank: Number of this rank.
        size: Number of ranks.
    """

    def __init__(self, store: Any, rank: int, size: int) -> None:
        """Show the first sign of life, and go on with it in the background."""
        # A connection of its own, which no one blocks by waiting for a key.
        self._store = PrefixStore("gradsift", store.clone() if hasattr(store, "clone") else store)
        self._rank, self._size = rank, size
        self._meetings = 0
        self._seen: dict[int, tuple[bytes, float]] = {}
        self._stopped = threading.Event()
        self._show(0)
        threading.Thread(target=self._beat, daemon=True, name="signs of life").start()

    def last_words(self, error: BaseException) -> None:
        """Tell the others why this rank stops."""
        with suppress(Exception):
            self._store.set(f"words/{self._rank}", f"{type(error).__name__}: {error}")

    def leave(self) -> None:
        """Tell the others that this rank has nothing more to do."""
        self._stopped.set()
        with suppress(Exception):
            self._store.set(f"left/{self._rank}", "")

    def is_first_to_say(self, text: str) -> bool:
        """Tell whether no other rank has said this before."""
        with suppress(Exception):
            return self._store.add(f"said/{text}", 1) == 1
        return True

    def wait(self, work: Any, purpose: str) -> None:
        """Wait for a collective, and look after the others meanwhile.

        Args:
            work: What an asynchronous collective returned.
            purpose: What the ranks meet for, for messages.

        Raises:
            LostRankError: Names the rank that died, stopped, left or did not come.
        """
        self._meetings += 1
        started = looked = reminded = time.monotonic()
        pause = 1e-4
        while not work.is_completed():
            time.sleep(pause)
            pause, now = min(2 * pause, 0.02), time.monotonic()
            if now - looked > BEAT:
                looked = now
                self._refuse_lost(SILENT)
                if now - reminded > REMIND:
                    reminded = now
                    logger.warning("rank %d: %s", self._rank, self._late(purpose, now - started))
                if now - started > PATIENCE:
                    raise LostRankError(
                        f"all ranks must make the same calls. {self._late(purpose, now - started)} "
                        "Work for one rank goes into `with alone():`."
                    )
        try:
            work.wait()
        except RuntimeError as error:
            raise self.explain(error) from error

    def explain(self, error: BaseException) -> LostRankError:
        """Return who is behind a collective that failed, once their signs of life are late."""
        until = time.monotonic() + HUNG_UP + 3 * BEAT
        while time.monotonic() < until:
            try:
                self._refuse_lost(HUNG_UP)
            except LostRankError as lost:
                return lost
            time.sleep(0.1)
        return LostRankError(f"the ranks must reach each other, and do not: {error} {ADVICE}")

    def _refuse_lost(self, silence: float) -> None:
        """Raise if another rank has stopped, has left or is silent; all name the same one."""
        named = None
        with suppress(Exception):
            named = self._read("named")
        if named:
            raise LostRankError(named.decode())
        for rank in range(self._size):
            if rank != self._rank and (end := self._end_of(rank, silence)):
                text = f"rank {rank} of {self._size} {end}. {ADVICE}"
                with suppress(Exception):
                    self._store.set("named", text)
                if self._rank == 0:
                    time.sleep(2 * BEAT)  # the store may end with this process
                raise LostRankError(text)

    def _end_of(self, rank: int, silence: float) -> str | None:
        """Return how a rank ended, if it has."""
        try:
            if words := self._read(f"words/{rank}"):
                return f"stopped with {words.decode()}"
            if self._read(f"left/{rank}") is not None:
                return "has ended while others still wait for it"
            sign = self._read(f"alive/{rank}") or b""
        except (RuntimeError, OSError):  # the store is gone, with the process that held it
            return "or the launcher has died: the meeting point is gone" if rank == 0 else None
        before = self._seen.get(rank)
        if before is None or before[0] != sign:
            self._seen[rank] = (sign, time.monotonic())
            return None
        gone = time.monotonic() - before[1]
        return f"has died: no sign of life for {gone:.0f} s" if gone > silence else None

    def _late(self, purpose: str, waited: float) -> str:
        """Say who is waited for."""
        behind = []
        for rank in range(self._size):
            with suppress(Exception):
                sign = self._read(f"alive/{rank}") or b"0 0"
                if rank != self._rank and int(sign.split()[1]) < self._meetings:
                    behind.append(rank)
        return f"Ranks {behind} are alive and have not come to {purpose!r} in {waited:.0f} s."

    def _read(self, key: str) -> bytes | None:
        """Return an entry of the store, without waiting for it."""
        return self._store.get(key) if self._store.check([key]) else None

    def _show(self, number: int) -> None:
        """Show one sign of life."""
        self._store.set(f"alive/{self._rank}", f"{number} {self._meetings}")

    def _beat(self) -> None:
        """Show signs of life until this rank ends or the store is gone."""
        number = 0
        while not self._stopped.wait(BEAT):
            number += 1
            try:
                self._show(number)
            except (RuntimeError, OSError):  # the store is gone; whoever waits will say so
                return
