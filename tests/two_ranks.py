"""A step of reweighted training on some ranks; run as a program it is one rank of two."""

import sys
from datetime import timedelta
from pathlib import Path

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from selection import GroupDRO, LossReweighter, Reweighting, linupper

INPUTS = torch.linspace(-1, 2, 24).view(8, 3)
TARGETS = torch.tensor([0.0, 1.0, -1.0, 3.0, 0.5, 2.0, -2.0, 40.0])
GROUPS = torch.tensor([0, 0, 1, 1, 0, 2, 0, 1])


def make_model() -> nn.Linear:
    model = nn.Linear(3, 1)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[0.5, -0.25, 1.0]]))
        model.bias.fill_(0.1)
    return model


def losses_of(model: nn.Module, rows: slice) -> Tensor:
    return (model(INPUTS[rows])[:, 0] - TARGETS[rows]).square()


def gradient(model: nn.Module) -> Tensor:
    grads = [parameter.grad for parameter in model.parameters()]
    return torch.cat([grad.flatten() for grad in grads if grad is not None])


def step(model: nn.Module, rows: slice) -> dict[str, Tensor]:
    """Return the gradient and the weights of a batch, by loss and by group."""
    reweighting = Reweighting(LossReweighter(curve=linupper, temperature=0.4))
    reweighting(losses_of(model, rows)).backward()
    found = {"gradient": gradient(model), "weights": reweighting.last.values}
    model.zero_grad()
    groups = GroupDRO(num_groups=3, step_size=0.1)
    groups(losses_of(model, rows), GROUPS[rows]).backward()
    return {**found, "group gradient": gradient(model), "group weights": groups.weights}


if __name__ == "__main__":
    rank, folder = int(sys.argv[1]), Path(sys.argv[2])
    distributed.init_process_group(
        "gloo",
        init_method=f"file://{folder / 'meet'}",
        rank=rank,
        world_size=2,
        timeout=timedelta(seconds=60),
    )
    model = DistributedDataParallel(make_model())
    # The ranks have different numbers of examples.
    share = slice(0, 3) if rank == 0 else slice(3, 8)
    torch.save(step(model, share), folder / f"rank{rank}.pt")
    distributed.destroy_process_group()
