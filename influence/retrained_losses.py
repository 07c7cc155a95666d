"""Losses of retrained models, kept in a folder so that a run that was stopped goes on.

Letters: ``m`` subsets, ``n`` training examples, ``q`` queries, ``s`` seeds.
"""

from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int8

from influence.recipe import Batch
from influence.retraining import Trainer
from projections import (
    StoreMismatchError,
    check_not_empty,
    fingerprint_model,
    replacing,
    track,
)


def retrained_losses(
    trainer: Trainer,
    masks: Int8[np.ndarray, "m n"],
    queries: Batch,
    *,
    seeds: Sequence[int],
    kept: Path | None = None,
) -> Float[np.ndarray, "s m q"]:
    """Return the loss of every query under models retrained on every subset.

    Args:
        trainer: The model, its loss, the data and the recipe.
        masks: Which examples each subset holds, as 0 and 1.
        queries: Tensors with one row a query.
        seeds: Seeds of starts and orders, common to all subsets.
        kept: Folder that keeps what is done: a file for each seed and each group of models that
            is trained at once. A run that was stopped goes on after the last of them.

    Raises:
        StoreMismatchError: A file there is of other data, subsets, queries or settings.
        ValueError: Shapes do not fit.
    """
    check_not_empty("seeds", len(seeds))
    trainer.check(masks)
    wanted = fingerprint(trainer, masks, queries)
    groups = trainer.groups(masks)
    work = [(seed, number) for seed in seeds for number in range(len(groups))]
    found = []
    for seed, number in track(work, "retraining", total=len(work), unit="groups"):
        path = None if kept is None else kept / f"seed-{seed}-group-{number}.npz"
        losses = None if path is None else read_kept(path, wanted)
        if losses is None:
            params = trainer.train_group(groups[number], masks, seed=seed)
            losses = trainer.evaluate(params, queries)
            if path is not None:
                with replacing(path) as file:
                    np.savez(file, losses=losses, fingerprint=np.array(wanted))
        found.append(losses)
    rows = [found[first : first + len(groups)] for first in range(0, len(found), len(groups))]
    return np.stack([np.concatenate(row) for row in rows])


def fingerprint(trainer: Trainer, masks: Int8[np.ndarray, "m n"], queries: Batch) -> str:
    """Return digits that change with anything that losses of retrained models depend on."""
    recipe = trainer.recipe
    digest = sha256(f"{recipe} {trainer.losses.__qualname__}".encode())
    digest.update(fingerprint_model(trainer.start(0)).encode())
    for part in (*trainer.data, *queries, torch.from_numpy(masks)):
        digest.update(f"{tuple(part.shape)} {part.dtype}".encode())
        digest.update(part.contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def read_kept(path: Path, wanted: str) -> Float[np.ndarray, "m q"] | None:
    """Return losses that an earlier run kept, if there are any.

    Raises:
        StoreMismatchError: They are of something else.
    """
    if not path.exists():
        return None
    with np.load(path) as file:
        losses, found = file["losses"], str(file["fingerprint"])
    if found != wanted:
        raise StoreMismatchError(
            f"what is kept must be of the same data, subsets, queries and recipe. {path} is of "
            f"{found}, and this run of {wanted}. Give another folder, or delete it."
        )
    return losses
