"""Passes over models that are spread over ranks; run as a program it is one of them.

torchrun --nproc-per-node=2 tests/sharded_ranks.py FOLDER
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pass_ranks import READING, texts
from torch import Tensor, nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.utils.checkpoint import checkpoint
from transformers import LlamaConfig, LlamaForCausalLM

from influence import EKFAC, GaussNewton, make_plan
from projections import (
    SJLT,
    CausalLM,
    GradientNorm,
    Sketch,
    Statistic,
    alone,
    current_ranks,
    fingerprint_model,
    run_pass,
)


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 6), nn.Linear(6, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(self.up(self.norm(x)).tanh())


class Blocks(nn.Module):
    """A language model in blocks, run again in backward where that is asked for."""

    def __init__(self, *, checkpointed: bool) -> None:
        super().__init__()
        self.words = nn.Embedding(11, 4)
        self.blocks = nn.ModuleList([Block(4), Block(4)])
        self.head = nn.Linear(4, 11)
        self.checkpointed = checkpointed

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.words(input_ids)
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False) if self.checkpointed else block(x)
        return self.head(x)


def llama() -> nn.Module:
    config = LlamaConfig(
        hidden_size=8,
        intermediate_size=12,
        num_hidden_layers=2,
        num_attention_heads=2,
        vocab_size=11,
        pad_token_id=0,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config).eval()


CASES: dict[str, Any] = {
    "checkpointed": lambda: Blocks(checkpointed=True).double(),
    "llama": llama,
    "bfloat16": lambda: Blocks(checkpointed=False).bfloat16(),
    "mixed precision": llama,
}


def make_task(name: str, *, spread: bool) -> CausalLM:
    """Return a task, with its model spread over the ranks or in one piece."""
    torch.manual_seed(0)
    model = CASES[name]()
    if spread:
        current_ranks()
        shortened = torch.bfloat16 if name == "mixed precision" else None
        policy = MixedPrecisionPolicy(param_dtype=shortened)
        for block in model.blocks if isinstance(model, Blocks) else model.model.layers:
            fully_shard(block, mp_policy=policy)
        fully_shard(model, mp_policy=policy)
    return CausalLM(model)


def found_by(name: str, *, spread: bool, folder: Path | None = None) -> dict[str, np.ndarray]:
    """Return what a pass, a fit in partitions and scores find."""
    task, rows = make_task(name, spread=spread), texts(13)
    found = {"model": np.array(fingerprint_model(task.model))}
    sketch = Sketch(SJLT(num_dims=5, seed=0))
    table = run_pass(task, rows, [Statistic("loss"), GradientNorm(), sketch], settings=READING)
    found |= {"ids": table.ids} | {f"column {key}": v for key, v in table.columns.items()}
    found["losses"] = run_pass(task, rows, [Statistic("loss")], settings=READING).columns["loss"]
    plan = make_plan(task, rows, memory="3KB", settings=READING)
    found["partitions"] = np.array(len(plan.partitions))
    memory = "3KB" if name == "checkpointed" else None
    fitted = EKFAC(seed=0).fit(task, rows, settings=READING, path=folder, memory=memory)
    found["scores"] = fitted.scores(task, texts(3), rows, settings=READING)["influence"].values
    found["self"] = fitted.self_influence(task, rows)["self_influence"].values
    return found


def refusals() -> list[str]:
    """Return what is said of calls that a sharded model cannot take."""
    task, found = make_task("checkpointed", spread=True), []
    for refused in (
        lambda: GaussNewton(fisher="empirical", seed=0).of(task, texts(3)),
        lambda: alone_over(task),
    ):
        try:
            refused()
        except ValueError as error:
            found.append(str(error))
    return found


def alone_over(task: CausalLM) -> None:
    with alone():
        run_pass(task, texts(3), [Statistic("loss")])


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    ranks = current_ranks()
    results: dict[str, Any] = {}
    for name in sys.argv[2:] or CASES:
        path = folder / f"fit {name}"
        for key, values in found_by(name, spread=True, folder=path).items():
            results[f"{name}: {key}"] = values
    np.savez(folder / f"rank{ranks.rank}.npz", **results)
    (folder / "refusals").write_text("\n".join(refusals()))
