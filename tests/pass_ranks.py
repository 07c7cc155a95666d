"""Passes, fits and an index on some ranks; run as a program it is one rank of a launcher.

torchrun --nproc-per-node=3 tests/pass_ranks.py FOLDER [ROW VISITS]
"""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from influence import EKFAC, KFAC, ConjugateGradients, Diagonal, GaussNewton, Inverse, build_index
from influence.eigen_index import RowGram
from projections import (
    SJLT,
    CausalLM,
    Classification,
    GradientNorm,
    PassSettings,
    Sketch,
    Statistic,
    current_ranks,
    index_gradients,
    merging,
    run_pass,
)

NUM_ROWS = 23
READING = PassSettings(batch_size=2, shard_size=4)  # 6 shards


class SmallLM(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(11, 4)
        self.query, self.key = nn.Linear(4, 3), nn.Linear(4, 3)  # which share their inputs
        self.head = nn.Linear(3, 11)

    def forward(self, input_ids: Tensor) -> Tensor:
        words = self.words(input_ids)
        return self.head((self.query(words) * self.key(words)).tanh())


def make_language_task() -> CausalLM:
    torch.manual_seed(0)
    return CausalLM(SmallLM().double())


def make_task(kind: type[Classification] = Classification) -> Classification:
    torch.manual_seed(0)
    return kind(nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double())


def texts(count: int = NUM_ROWS) -> list[dict[str, Any]]:
    drawn = np.random.default_rng(0)
    return [
        {"id": f"row {number}", "input_ids": drawn.integers(0, 11, 3 + number % 4).tolist()}
        for number in range(count)
    ]


def tables() -> list[tuple[Tensor, int]]:
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(NUM_ROWS, 4, generator=generator, dtype=torch.float64)
    return [(row, number % 3) for number, row in enumerate(inputs)]


class Deadly(Classification):
    """Kills its process at a visit to a row, as a system does that runs out of memory."""

    row: int
    visits: int

    def encode(self, rows: Any) -> list[Any]:
        self.visits -= any(torch.equal(row[0], tables()[self.row][0]) for row in rows)
        if not self.visits:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().encode(rows)


def build(task: Classification, folder: Path) -> None:
    """Fit a curvature and build a store, both of which go on where they were stopped."""
    EKFAC(seed=0).fit(task, tables(), settings=READING, path=folder / "fit")
    index_gradients(task, tables(), SJLT(num_dims=5, seed=0), path=folder / "s", settings=READING)


@contextmanager
def reading_shares_from_files() -> Iterator[None]:
    """Let every state be too large for the network."""
    before, merging.MOST_REDUCED = merging.MOST_REDUCED, 0
    try:
        yield
    finally:
        merging.MOST_REDUCED = before


def everything(folder: Path) -> dict[str, np.ndarray]:
    """Return what passes, fits, scores and searches find; the store lies in the folder."""
    task, rows = make_language_task(), texts()
    columns = [Statistic("loss"), GradientNorm(), Sketch(SJLT(num_dims=5, seed=0))]
    gram = RowGram(SJLT(num_dims=5, seed=0))
    table = run_pass(task, rows, columns, accumulators=[gram], settings=READING)
    found = {f"column {name}": values for name, values in table.columns.items()}
    found |= {"ids": table.ids, "gram": gram.mean.numpy()}
    store = index_gradients(task, rows, SJLT(num_dims=5, seed=0), path=folder / "store")
    found["stored ids"] = store.ids
    fitted = EKFAC(seed=0).fit(task, rows, settings=READING, path=folder / "fit lm")
    found["scores"] = fitted.scores(task, texts(5), rows, settings=READING)["influence"].values
    found["self"] = fitted.self_influence(task, rows)["self_influence"].values
    tokens = fitted.token_scores(task, texts(2), rows, settings=READING)
    found["tokens"] = np.concatenate([tokens[row["id"]] for row in rows], axis=1)
    top, bottom = fitted.top(task, texts(2), rows, k=3, settings=READING)
    found |= {"top": top.ids, "bottom": bottom.ids}
    table_task = make_task()
    with reading_shares_from_files():
        files = EKFAC(seed=0).fit(task, rows, settings=READING, path=folder / "files")
    found["self, by files"] = files.self_influence(task, rows)["self_influence"].values
    resumed = EKFAC(seed=0).fit(table_task, tables(), settings=READING, path=folder / "fit")
    scores = resumed.scores(table_task, tables()[:2], tables(), settings=READING)
    found["resumed scores"] = scores["influence"].values
    for curvature in (KFAC(seed=0), Diagonal(seed=0), EKFAC(seed=0)):
        fitted = curvature.fit(table_task, tables(), settings=READING)
        scores = fitted.scores(table_task, tables()[:2], tables(), settings=READING)
        found[f"{type(curvature).__name__} scores"] = scores["influence"].values
    matrix = GaussNewton(fisher="empirical", seed=0)
    solved = Inverse(matrix=matrix, solver=ConjugateGradients(tolerance=1e-10), damping=1.0).fit(
        table_task, tables(), settings=READING
    )
    scores = solved.scores(table_task, tables()[:2], tables(), settings=READING)
    found["solved scores"] = scores["influence"].values
    for gram in ("exact", "empirical"):
        path = folder / f"index {gram}"
        index = build_index(
            fitted, table_task, tables(), num_dims=20, path=path, gram=gram, settings=READING
        )
        top, bottom = index.search(table_task, tables()[:2], k=3)
        found |= {f"{gram} top": top.ids, f"{gram} scores": top.scores}
    return found


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    ranks = current_ranks()
    if len(sys.argv) > 2:
        task = make_task(Deadly)
        assert isinstance(task, Deadly)
        task.row, task.visits = int(sys.argv[2]), int(sys.argv[3])
        build(task, folder)
    else:
        build(make_task(), folder)
        results: dict[str, Any] = everything(folder)
        np.savez(folder / f"rank{ranks.rank}.npz", **results)
