"""Weigh examples and draw rows in a loop of your own, with accelerate, and go on after a stop.

Two lines for the weights, two for the rows, one for the state. Some seconds on a CPU.
"""

from tempfile import TemporaryDirectory

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from selection import DrawSampler, LossReweighter, Reweighting, WeightedDraws, linupper

torch.manual_seed(0)
inputs = torch.randn(200, 5)
targets = inputs @ torch.tensor([1.0, -2.0, 0.5, 0.0, 3.0])
STEPS, BATCH = 40, 16


def run(folder: str, start: int, end: int) -> tuple[torch.Tensor, list[int]]:
    """Train from one step to another; return the parameters and the rows that were seen."""
    accelerator = Accelerator(cpu=True, project_dir=folder)
    torch.manual_seed(1)
    model = nn.Linear(5, 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)

    reweighting = Reweighting(LossReweighter(curve=linupper, temperature=0.4))
    draws = WeightedDraws(np.ones(len(inputs)), batch_size=BATCH, seed=0)
    data = TensorDataset(inputs, targets, torch.arange(len(inputs)))

    accelerator.register_for_checkpointing(reweighting, draws)
    model, optimizer = accelerator.prepare(model, optimizer)
    if start:
        accelerator.load_state(f"{folder}/half")
    # The sampler is made after the state is loaded, since it begins where the draws stand.
    sampler = DrawSampler(draws, num_batches=STEPS)
    # Numbers of its own, so that starting it leaves those of dropout alone.
    own = torch.Generator()
    loader = DataLoader(data, sampler=sampler, batch_size=BATCH, generator=own)
    loader = accelerator.prepare(loader)

    seen: list[int] = []
    for step, (batch, target, rows) in enumerate(loader, start=start):
        losses = (model(batch)[:, 0] - target).square()
        loss = reweighting(losses)  # in place of losses.mean()
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        draws.advance()
        seen += rows.tolist()
        if step == end - 1:
            break
    accelerator.save_state(f"{folder}/half")
    return torch.cat([part.detach().flatten() for part in model.parameters()]), seen


with TemporaryDirectory() as whole, TemporaryDirectory() as stopped:
    expected, rows = run(whole, 0, STEPS)
    _, first = run(stopped, 0, STEPS // 2)
    found, second = run(stopped, STEPS // 2, STEPS)

print("same rows after a stop:", first + second == rows)
print("same parameters after a stop:", bool((found == expected).all()))
