"""Gram matrices of kept coordinates: whose labels, what they are shrunk towards, how far.

Letters: ``D`` kept coordinates.

Measured in `benchmarks/influence_index.md`: with the exact expectation over labels the
identity is the better target on perceptrons; with the data's labels the damped eigenvalues
of the curvature are, on perceptrons, convolutions and a language model alike, and the
result hangs little on the damping.
"""

from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from influence.curvature import FittedCurvature
from influence.damping import noise_floor
from influence.eigen_index import IndexProjector, MetricName, RowGram
from influence.ekfac import FisherName, pick_labels
from influence.whitening import LowRankGram
from projections import (
    FolderCheckpoint,
    GradientStore,
    Labels,
    PassSettings,
    Rows,
    Task,
    current_ranks,
    replacing,
    run_pass,
)

TARGETS: dict[str, MetricName] = {"exact": "ones", "sampled": "curvature", "data": "curvature"}
FLOORS = {"ones": 1.0, "curvature": 10.0}  # noise floors that a target is added with


def gram_labels(fisher: FisherName, task: Task, seed: int) -> Labels:
    """Return the labels of a Gram matrix; few labels are exact, else those of the data."""
    labels = pick_labels(fisher, task, num_samples=1, seed=seed, purpose="gram")
    return Labels() if fisher == "auto" and labels.kind == "sampled" else labels


def check_gram_rank(rank: int | None, gram: FisherName | None, labels: Labels | None) -> None:
    """Refuse main directions of a Gram matrix that is not that of the rows."""
    if rank is not None and (labels is None or labels.kind != "data"):
        raise ValueError(
            "`gram_rank` must be used with a Gram matrix of the data's labels, `gram='empirical'`. "
            f"Got gram={gram!r}, which is {'none' if labels is None else labels.kind} here."
        )


def pick_target(
    name: MetricName, curvature: FittedCurvature, projector: IndexProjector
) -> Float[Tensor, "D *D"]:
    """Return what a Gram matrix is shrunk towards, as a diagonal where it is one."""
    if name == projector.metric:
        return torch.ones(projector.num_dims, dtype=torch.float64)
    if name == "ones":
        return projector.within(torch.ones(len(projector.eigenvalues), dtype=torch.float64))
    dampings = projector.dampings(curvature.dampings)
    added = projector.eigenvalues.double() if name == "curvature" else 0.0
    return projector.within(dampings + added)


def default_damping(
    gram: Float[np.ndarray, "D D"] | LowRankGram | None,
    target: Float[Tensor, "D *D"],
    num_rows: int,
    name: MetricName,
) -> float:
    """Return how much of the target is added, unless said otherwise.

    Args:
        gram: The Gram matrix, if there is one.
        target: What it is shrunk towards, a diagonal.
        num_rows: Number of rows that it was taken from.
        name: The name of the target.
    """
    if gram is None:
        return 1.0
    if isinstance(gram, LowRankGram):
        left_out = len(gram.target) - len(gram.values)
        trace = float(gram.values.sum()) + gram.rest * left_out
    else:
        trace = float((gram.diagonal() / target.numpy()).sum())
    return noise_floor(trace, num_rows).value * FLOORS[name]


def gram_of_rows(store: GradientStore) -> Float[np.ndarray, "D D"]:
    """Return the mean Gram matrix of stored rows, in float64; all ranks take their share."""
    ranks = current_ranks()
    total = np.zeros((store.num_dims, store.num_dims))
    for block in islice(store.blocks(), ranks.rank, None, ranks.size):
        wide = np.asarray(block, dtype=np.float32)
        total += wide.T @ wide
    return ranks.sum_(torch.from_numpy(total), "Gram matrix").numpy() / len(store)


def expected_gram(
    task: Task,
    rows: Rows,
    projector: IndexProjector,
    *,
    labels: Labels,
    settings: PassSettings,
    folder: Path,
    how: Mapping[str, Any],
) -> Float[np.ndarray, "D D"]:
    """Return the mean Gram matrix over labels of the model's own, in float64, by a pass.

    Args:
        task: The model and its loss.
        rows: The training data.
        projector: The kept coordinates.
        labels: Drawn, or all of them.
        settings: Layers and batching.
        folder: Where a killed pass goes on.
        how: What else the result depends on, as plain JSON values.
    """
    accumulator = RowGram(projector)
    options = {"fisher": labels.kind, "seed": labels.seed}
    run_pass(
        task,
        rows,
        accumulators=[accumulator],
        labels=labels,
        settings=settings,
        checkpoint=FolderCheckpoint(folder / "gram", {**how, **options}),
        description="gram",
    )
    return accumulator.mean.numpy()


def gram_file(labels: Labels, rank: int | None) -> str:
    """Return the name of the file of a Gram matrix, or of its main directions."""
    return f"gram-{labels.kind}.npy" if rank is None else f"gram-{labels.kind}-{rank}.npz"


def write_gram(path: Path, gram: Float[np.ndarray, "D D"] | LowRankGram) -> None:
    """Write a Gram matrix or its main directions."""
    with replacing(path) as file:
        if isinstance(gram, LowRankGram):
            np.savez(file, **vars(gram))
        else:
            np.save(file, gram)


def read_gram(path: Path) -> Float[np.ndarray, "D D"] | LowRankGram:
    """Read what `write_gram` has written."""
    found = np.load(path)
    if isinstance(found, np.ndarray):
        return found
    return LowRankGram(found["target"], found["basis"], found["values"], float(found["rest"]))
