"""The peer's side of `traker_mlp.py`; runs in an environment with torch and traker.

Reads ``task.pt`` in the folder it is given, and then, for each line on its standard
input, featurises all examples once and answers with the seconds that took. The features
of the last run stay in the folder, scaled so that their inner products estimate those of
the gradients.
"""

import shutil
import sys
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from trak import TRAKer
from trak.modelout_functions import AbstractModelOutput


class Loss(AbstractModelOutput):
    """The cross-entropy itself, so that both sides take the same gradients."""

    def __init__(self) -> None:
        """Keep nothing."""

    @staticmethod
    def get_output(
        model: nn.Module, weights: dict, buffers: dict, image: Tensor, label: Tensor
    ) -> Tensor:
        """Return the loss of one example."""
        logits = torch.func.functional_call(model, (weights, buffers), (image[None],))
        return nn.functional.cross_entropy(logits, label[None])

    def get_out_to_loss_grad(
        self, model: nn.Module, weights: dict, buffers: dict, batch: list[Tensor]
    ) -> Tensor:
        """Return ones: the output is the loss."""
        return torch.ones(len(batch[0]), 1)


def main() -> None:
    folder = Path(sys.argv[1])
    task = torch.load(folder / "task.pt")
    torch.set_num_threads(task["threads"])
    widths = task["widths"]
    layers: list[nn.Module] = []
    for num_in, num_out in pairwise(widths):
        layers += [nn.Linear(num_in, num_out), nn.ReLU()]
    model = nn.Sequential(*layers[:-1]).eval()
    model.load_state_dict(task["state"])
    print("ready", flush=True)
    for _ in sys.stdin:
        began = time.perf_counter()
        features = featurize(model, task, folder / "results")
        seconds = time.perf_counter() - began
        num_parameters = sum(parameter.numel() for parameter in model.parameters())
        # traker divides by the root of the number of parameters, not of dimensions.
        scale = (num_parameters / task["num_dims"]) ** 0.5
        np.save(folder / "peer.npy", features * scale)
        print(seconds, flush=True)


def featurize(model: nn.Module, task: dict, folder: Path) -> np.ndarray:
    """Return traker's features of all examples."""
    shutil.rmtree(folder, ignore_errors=True)
    traker = TRAKer(
        model=model,
        task=Loss(),
        train_set_size=len(task["labels"]),
        save_dir=str(folder),
        device="cpu",
        proj_dim=task["num_dims"],
        use_half_precision=False,
        logging_level="ERROR",
    )
    traker.load_checkpoint(model.state_dict(), model_id=0)
    for images, labels in batches(task):
        traker.featurize(batch=[images, labels], num_samples=len(labels))
    return np.array(traker.saver.current_store["grads"], dtype=np.float32)


def batches(task: dict) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the examples in batches."""
    size = task["peer_batch_size"]
    yield from zip(task["images"].split(size), task["labels"].split(size), strict=True)


if __name__ == "__main__":
    main()
