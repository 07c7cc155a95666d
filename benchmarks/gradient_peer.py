"""The peers' side of `gradient_index.py`; runs in an environment with traker, dattri or bergson.

Takes the name of a peer and a folder. Reads ``task.pt`` there and then, for each line on its
standard input, projects the gradients of all examples once and answers with the seconds
that took. The rows of the last run stay in the folder, scaled so that their inner products
estimate those of the gradients.
"""

import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM


def main() -> None:
    name, folder = sys.argv[1], Path(sys.argv[2])
    answers, sys.stdout = os.dup(1), sys.stderr
    os.dup2(2, 1)  # what a package prints is no answer
    task = torch.load(folder / "task.pt", weights_only=False)
    torch.set_num_threads(task["threads"])
    config = LlamaConfig(**{**task["config"], "attn_implementation": "eager"})
    model = LlamaForCausalLM(config).eval()
    model.load_state_dict(task["state"])
    project: Callable[[], np.ndarray] = PEERS[name](model, task, folder)
    os.write(answers, b"ready\n")
    for _ in sys.stdin:
        began = time.perf_counter()
        rows = project()
        seconds = time.perf_counter() - began
        np.save(folder / f"{name}.npy", rows)
        os.write(answers, f"{seconds}\n".encode())


def token_losses(model: nn.Module, weights: dict, buffers: dict, tokens: Tensor) -> Tensor:
    """Return the summed loss of one example, with a mask that `vmap` can follow."""
    length = tokens.shape[-1]
    mask = torch.full((length, length), torch.finfo(torch.float32).min).triu(1)
    inputs = {
        "input_ids": tokens[None],
        "attention_mask": mask[None, None],
        "position_ids": torch.arange(length)[None],
        "use_cache": False,
    }
    logits = torch.func.functional_call(model, (weights, buffers), (), inputs).logits[0]
    return nn.functional.cross_entropy(logits[:-1], tokens[1:], reduction="sum")


def traker(model: nn.Module, task: dict, folder: Path) -> Callable[[], np.ndarray]:
    """Project by traker's `BasicProjector`, its path on the CPU."""
    from trak import TRAKer
    from trak.modelout_functions import AbstractModelOutput

    class Loss(AbstractModelOutput):
        """The loss itself, so that all sides take the same gradients."""

        def __init__(self) -> None:
            """Keep nothing."""

        @staticmethod
        def get_output(model: nn.Module, weights: dict, buffers: dict, tokens: Tensor) -> Tensor:
            """Return the loss of one example."""
            return token_losses(model, weights, buffers, tokens)

        def get_out_to_loss_grad(
            self, model: nn.Module, weights: dict, buffers: dict, batch: list[Tensor]
        ) -> Tensor:
            """Return ones: the output is the loss."""
            return torch.ones(len(batch[0]), 1)

    def project() -> np.ndarray:
        results = folder / "results"
        shutil.rmtree(results, ignore_errors=True)
        peer = TRAKer(
            model=model,
            task=Loss(),
            train_set_size=len(task["tokens"]),
            save_dir=str(results),
            device="cpu",
            proj_dim=task["num_dims"],
            grad_wrt=task["parameters"],
            use_half_precision=False,
            logging_level="ERROR",
        )
        peer.load_checkpoint(model.state_dict(), model_id=0)
        for tokens in task["tokens"].split(task["batch_size"]):
            peer.featurize(batch=[tokens], num_samples=len(tokens))
        rows = np.array(peer.saver.current_store["grads"], dtype=np.float32)
        # traker divides by the root of the number of parameters, not of dimensions.
        return rows * (count(model, task["parameters"]) / task["num_dims"]) ** 0.5

    return project


def dattri(model: nn.Module, task: dict, folder: Path) -> Callable[[], np.ndarray]:
    """Project by the projector of dattri's TRAK, as its `cache` does for each batch."""
    from dattri.func.projection import random_project

    weights = {name: value.detach() for name, value in model.named_parameters()}
    chosen = {name: weights[name] for name in task["parameters"]}

    def loss(some: dict, tokens: Tensor) -> Tensor:
        return token_losses(model, {**weights, **some}, dict(model.named_buffers()), tokens)

    gradients = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))

    def project() -> np.ndarray:
        rows = []
        for tokens in task["tokens"].split(task["batch_size"]):
            flat = torch.cat([value.flatten(1) for value in gradients(chosen, tokens).values()], 1)
            projector = random_project(
                flat,
                len(flat),
                proj_dim=task["num_dims"],
                proj_max_batch_size=32,
                proj_seed=0,
                proj_type="rademacher",
                device="cpu",
            )
            rows.append(projector(flat, ensemble_id=0).detach())
        return torch.cat(rows).numpy()

    return project


def bergson(model: nn.Module, task: dict, folder: Path) -> Callable[[], np.ndarray]:
    """Project by bergson's index of whole gradients, which has one dense matrix a module."""
    from bergson import GradientProcessor, IndexConfig, collect_gradients, load_gradients
    from datasets import Dataset

    # It looks for modules below the base model.
    layers = {name.rpartition(".")[0].removeprefix("model.") for name in task["parameters"]}
    rows = task["tokens"].tolist()
    data = Dataset.from_dict({"input_ids": rows, "length": [len(row) for row in rows]})
    order = list(range(len(rows)))
    batches = [order[n : n + task["batch_size"]] for n in range(0, len(rows), task["batch_size"])]

    def project() -> np.ndarray:
        path = folder / "bergson"
        shutil.rmtree(f"{path}.part", ignore_errors=True)
        settings = {"projection_dim": task["num_dims"], "projection_target": "global"}
        processor = GradientProcessor(**settings, projection_seed=0)
        config = IndexConfig(run_path=str(path), **settings, projection_seed=0)
        collect_gradients(model, data, processor, config, batches=batches, target_modules=layers)
        return np.array(load_gradients(f"{path}.part"), dtype=np.float32)

    return project


def count(model: nn.Module, names: list[str]) -> int:
    """Return the number of entries of some parameters."""
    return sum(value.numel() for name, value in model.named_parameters() if name in names)


PEERS = {"traker": traker, "dattri": dattri, "bergson": bergson}

if __name__ == "__main__":
    main()
