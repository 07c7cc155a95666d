"""Moves of mixtures on some ranks; run as a program it is one rank of two."""

import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, distributed, nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

from projections import CausalLM
from selection import DGA, ODM, DoGE, DoReMi, InBatchDGA, MirrorDescent

VOCABULARY, LENGTH = 17, 6
NAMES = ("a", "b", "c")
MOVES = 8


class SmallLM(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(VOCABULARY, 5)
        self.mixed = nn.Linear(5, 5)
        self.head = nn.Linear(5, VOCABULARY)

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.head(self.mixed(self.words(input_ids)).tanh())


def make_task(seed: int) -> CausalLM:
    torch.manual_seed(seed)
    return CausalLM(SmallLM().double())


def texts(count: int, seed: int) -> list[dict[str, list[int]]]:
    drawn = np.random.default_rng(seed).integers(0, VOCABULARY, (count, LENGTH))
    return [{"input_ids": row} for row in drawn.tolist()]


def moved(name: str, share: slice) -> Any:
    """Return a mixture after a few steps, of which this rank sees a share of each batch."""
    task, rule = make_task(0), MirrorDescent(step_size=2.0, average=0.5, floor=0.01)
    domains = {domain: texts(7, at) for at, domain in enumerate(NAMES)}
    target = texts(4, 9)
    settings: dict[str, Any] = {"every": 1, "batch_size": 3, "rule": rule, "seed": 0}
    mixture: Any = {
        "dga": lambda: DGA(task, domains, target, **settings),
        "doge": lambda: DoGE(task, domains, **settings),
        "in batch": lambda: InBatchDGA(task, NAMES, target, rank=None, **settings),
        "odm": lambda: ODM(NAMES),
        "doremi": lambda: DoReMi(task, make_task(1), NAMES, rule=rule),
    }[name]()
    model = DistributedDataParallel(task.model) if distributed.is_initialized() else task.model
    for step in range(MOVES):
        places = np.array([0, 1, 2, 1, 0, 2, 2, 0])[share]
        rows = texts(8, 20 + step)[share]
        batch = task.collate(task.encode(rows))
        if name == "doremi":
            mixture.loss(step, batch, places)
        elif name == "in batch":
            with mixture.watching():
                logits = model(batch["input_ids"])[:, :-1].flatten(0, 1)
                cross_entropy(logits, batch["input_ids"][:, 1:].flatten()).backward()
                mixture.update(step, domains=places)
                mixture.state_dict()  # the next forward takes the target's gradient anew
        else:
            losses = task.losses(batch).detach().numpy() / (LENGTH - 1)
            mixture.update(step, domains=places, losses=losses)
    return mixture


def travelled(sizes: list[int]) -> None:
    """Keep how many numbers each exchange between ranks has."""
    for name in ("all_reduce", "all_gather", "broadcast"):
        exchange = getattr(distributed, name)

        def counted(*args: Any, exchange: Any = exchange, **settings: Any) -> Any:
            sent = args[1] if exchange.__name__ == "all_gather" else args[0]
            sizes.append(sent.numel())
            return exchange(*args, **settings)

        setattr(distributed, name, counted)


CASES = ("dga", "doge", "in batch", "odm", "doremi")

if __name__ == "__main__":
    rank, folder = int(sys.argv[1]), Path(sys.argv[2])
    distributed.init_process_group(
        "gloo",
        init_method=f"file://{folder / 'meet'}",
        rank=rank,
        world_size=2,
        timeout=timedelta(seconds=60),
    )
    own = slice(0, 3) if rank == 0 else slice(3, 8)  # ranks have different numbers of examples
    sizes: list[int] = []
    travelled(sizes)
    found = {name: moved(name, own).weights for name in CASES}
    np.savez(folder / f"rank{rank}.npz", **found, sizes=np.array(sizes))
    distributed.destroy_process_group()
