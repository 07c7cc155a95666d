"""Ranks that die, stop, leave or do not come are named; and what must be alike is checked."""

from collections.abc import Iterator
from typing import Any

import pytest
from torch._C._distributed_c10d import HashStore

from projections import (
    LostRankError,
    Ranks,
    alone,
    current_ranks,
    life_signs,
)
from projections.life_signs import LifeSigns
from projections.ranks import is_launched
from projections.rounds import check_alike, check_shared


class Work:
    """A collective that fails, or is never done."""

    def __init__(self, *, fails: bool = False) -> None:
        self.fails = fails

    def is_completed(self) -> bool:
        return self.fails

    def wait(self) -> None:
        raise RuntimeError("Connection closed by peer")


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Any:
    for name, value in {"BEAT": 0.02, "SILENT": 0.2, "HUNG_UP": 0.1}.items():
        monkeypatch.setattr(life_signs, name, value)
    return HashStore()


@pytest.fixture
def signs(store: Any) -> Iterator[LifeSigns]:
    found = LifeSigns(store, 0, 2)
    yield found
    found.leave()


@pytest.mark.parametrize("fails", [True, False])
def test_a_rank_without_signs_of_life_has_died(signs: LifeSigns, store: Any, fails: bool) -> None:
    LifeSigns(store, 1, 2)._stopped.set()
    with pytest.raises(LostRankError, match=r"rank 1 of 2 has died: no sign of life for .* Run"):
        signs.wait(Work(fails=fails), "rows")


def test_the_last_words_of_a_rank_are_repeated(signs: LifeSigns, store: Any) -> None:
    other = LifeSigns(store, 1, 2)
    other.last_words(ValueError("too much"))
    with pytest.raises(LostRankError, match=r"rank 1 of 2 stopped with ValueError: too much\."):
        signs.wait(Work(), "rows")
    other.leave()


def test_a_rank_that_leaves_others_waiting_is_named(signs: LifeSigns, store: Any) -> None:
    LifeSigns(store, 1, 2).leave()
    with pytest.raises(LostRankError, match="rank 1 of 2 has ended while others still wait"):
        signs.wait(Work(), "rows")


def test_patience_with_a_rank_that_is_alive_and_does_not_come_ends(
    signs: LifeSigns, store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(life_signs, "PATIENCE", 0.1)
    other = LifeSigns(store, 1, 2)
    message = r"must make the same calls\. Ranks \[1\] are alive and have not come to 'rows'"
    with pytest.raises(LostRankError, match=message):
        signs.wait(Work(), "rows")
    other.leave()


def test_a_broken_connection_between_ranks_that_live_is_said(signs: LifeSigns, store: Any) -> None:
    other = LifeSigns(store, 1, 2)
    with pytest.raises(LostRankError, match=r"the ranks must reach each other, and do not: Conn"):
        signs.wait(Work(fails=True), "rows")
    other.leave()


def test_what_all_ranks_say_is_said_once(signs: LifeSigns, store: Any) -> None:
    other = LifeSigns(store, 1, 2)
    assert [rank.is_first_to_say("no such file") for rank in (signs, other)] == [True, False]
    other.leave()


class Two(Ranks):
    """The first of two ranks, of which the other says something of its own."""

    def gather(self, value: Any, purpose: str = "gather") -> list[Any]:
        return [value, {**value, "model": "b"}]


def test_ranks_with_other_models_are_refused() -> None:
    with pytest.raises(ValueError, match="Rank 0 and rank 1 differ in: model: 'a' against 'b'"):
        check_alike({"model": "a", "data": "c"}, Two(0, 2))


def test_a_sink_for_one_rank_is_refused_by_several() -> None:
    class Kept:
        num_finished = 0

        def write(self, shard: int, table: Any) -> None: ...

    sink: Any = Kept()
    with pytest.raises(TypeError, match="`sink` must be a SharedSink where 2 ranks share a pass"):
        check_shared(sink, None, Ranks(0, 2))
    check_shared(sink, None, Ranks())


def test_a_process_that_no_launcher_started_is_alone() -> None:
    assert not is_launched({})
    meet = {"RANK": "0", "MASTER_ADDR": "here", "MASTER_PORT": "1"}
    assert not is_launched({**meet, "WORLD_SIZE": "1"})
    assert is_launched({**meet, "WORLD_SIZE": "2"})
    with alone():
        assert current_ranks() == Ranks()
