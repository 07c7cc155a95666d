"""Builds a small store; run as a program it is killed in the middle, as by a power cut."""

import os
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from projections import SJLT, GradientStore, PassSettings, Regression, index_gradients

NUM_ROWS = 10
SHARD_SIZE = 2


class Mortal(Regression):
    """A task that dies in its forward with a given number."""

    def __init__(self, model: nn.Module, dies_at: int | None = None) -> None:
        super().__init__(model)
        self.left = dies_at

    def losses(self, batch: Any) -> Tensor:
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                os.kill(os.getpid(), signal.SIGKILL)
        return super().losses(batch)


def build(path: Path, dies_at: int | None = None, *, seed: int = 0) -> GradientStore:
    """Build the store, or go on with it."""
    generator = torch.Generator().manual_seed(seed)
    model = nn.Linear(3, 2)
    with torch.no_grad():
        model.weight.copy_(torch.randn(2, 3, generator=generator))
        model.bias.zero_()
    data = [
        (torch.randn(3, generator=generator), torch.randn(2, generator=generator))
        for _ in range(NUM_ROWS)
    ]
    settings = PassSettings(shard_size=SHARD_SIZE)
    projector = SJLT(num_dims=8, seed=0)
    return index_gradients(Mortal(model, dies_at), data, projector, path=path, settings=settings)


def die_while_writing(path: Path, num_files: int) -> None:
    """Build the store until some files are whole and one is half there."""
    save, left = np.save, [num_files]

    def save_half(file: Any, array: np.ndarray, **settings: Any) -> None:
        left[0] -= 1
        save(file, array, **settings)
        if left[0] < 0:
            file.truncate(20)
            file.flush()
            os.kill(os.getpid(), signal.SIGKILL)

    np.save = save_half
    build(path)


if __name__ == "__main__":
    folder, way, number = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    if way == "forward":
        build(folder, number)
    else:
        die_while_writing(folder, number)
