"""Mixtures in runs: on several ranks, stopped and resumed, with a sampler that reads them."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mixture_ranks import CASES, MOVES, NAMES, make_task, moved, texts

from selection import DGA, InBatchDGA, MirrorDescent, MixtureDraws

FLOAT32 = 1e-6  # products of the training batch are kept in float32


@pytest.fixture(scope="module")
def of_two_ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, np.ndarray]]:
    folder = tmp_path_factory.mktemp("ranks")
    program = [sys.executable, str(Path(__file__).parent / "mixture_ranks.py")]
    running = [
        subprocess.Popen([*program, str(rank), str(folder)], stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    for process in running:
        _, errors = process.communicate(timeout=200)
        assert process.returncode == 0, errors
    return [dict(np.load(folder / f"rank{rank}.npz")) for rank in range(2)]


@pytest.mark.parametrize("name", CASES)
def test_two_ranks_move_a_mixture_as_one_does(
    of_two_ranks: list[dict[str, np.ndarray]], name: str
) -> None:
    expected = moved(name, slice(0, 8)).weights
    assert np.ptp(expected) > 1e-3
    for found in of_two_ranks:
        np.testing.assert_allclose(found[name], expected, rtol=FLOAT32)


def test_only_a_few_numbers_a_domain_travel_between_ranks(
    of_two_ranks: list[dict[str, np.ndarray]],
) -> None:
    for found in of_two_ranks:
        assert len(found["sizes"]) >= len(CASES) * MOVES
        assert found["sizes"].max() <= 3 * len(NAMES)


class Run:
    """A small training run whose sampler draws by a mixture that moves."""

    def __init__(self, make_mixture: Callable[[Any], Any]) -> None:
        self.rows = [row for at in range(3) for row in texts(6, at)]
        names = [name for name in NAMES for _ in range(6)]
        self.task = make_task(0)
        self.mixture = make_mixture(self.task)
        self.optimizer = torch.optim.Adam(self.task.model.parameters(), lr=0.01)
        self.places = np.array([NAMES.index(name) for name in names])
        self.draws = MixtureDraws(self.mixture, names, batch_size=4, seed=3, lag=1)
        self.seen: list[list[int]] = []

    def steps(self, first: int, last: int) -> "Run":
        for step in range(first, last):
            drawn = self.draws.positions(step)
            self.seen.append(drawn.tolist())
            batch = self.task.collate(self.task.encode([self.rows[at] for at in drawn]))
            self.optimizer.zero_grad()
            (self.task.losses(batch).sum() / 20).backward()
            self.optimizer.step()
            if self.mixture.due(step):
                self.mixture.update(step, domains=self.places[drawn])
            self.draws.advance()
        return self

    def state(self) -> dict[str, Any]:
        mixture = json.loads(json.dumps(self.mixture.state_dict(), allow_nan=False))
        return {
            "mixture": mixture,
            "draws": self.draws.state_dict(),
            "model": self.task.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def load(self, state: dict[str, Any]) -> "Run":
        self.task.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.mixture.load_state_dict(state["mixture"])
        self.draws.load_state_dict(state["draws"])
        return self


RULE = MirrorDescent(step_size=2.0, average=0.5, floor=0.05)


def dga(task: Any) -> DGA:
    domains = {name: texts(6, at) for at, name in enumerate(NAMES)}
    return DGA(task, domains, texts(3, 9), every=2, batch_size=2, rule=RULE, seed=0)


def in_batch(task: Any) -> InBatchDGA:
    return InBatchDGA(task, NAMES, texts(3, 9), every=2, batch_size=2, rule=RULE, seed=0)


@pytest.mark.parametrize("stop", [4, 5])
def test_a_run_that_stops_and_goes_on_draws_the_same_examples(stop: int, tmp_path: Path) -> None:
    whole = Run(dga).steps(0, 10)
    torch.save(Run(dga).steps(0, stop).state(), tmp_path / "state.pt")
    resumed = Run(dga).load(torch.load(tmp_path / "state.pt")).steps(stop, 10)
    assert resumed.seen == whole.seen[stop:]
    np.testing.assert_array_equal(resumed.mixture.weights, whole.mixture.weights)
    np.testing.assert_array_equal(
        resumed.mixture.history.columns["weights"], whole.mixture.history.columns["weights"]
    )


@pytest.mark.parametrize("stop", [4, 5])
@pytest.mark.parametrize("watched_first", [False, True])
def test_a_watched_run_goes_on_exactly_from_where_it_was_saved(
    stop: int, watched_first: bool, tmp_path: Path
) -> None:
    whole, resumed = Run(in_batch), Run(in_batch)
    with whole.mixture.watching():
        whole.steps(0, stop)
        torch.save(whole.state(), tmp_path / "state.pt")
        whole.steps(stop, 10)
    state = torch.load(tmp_path / "state.pt")
    if not watched_first:
        resumed.load(state)
    with resumed.mixture.watching():
        if watched_first:  # as a trainer does, which loads when it starts
            resumed.load(state)
        resumed.steps(stop, 10)
    assert resumed.seen == whole.seen[stop:]
    np.testing.assert_array_equal(resumed.mixture.weights, whole.mixture.weights)
