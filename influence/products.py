"""Products with symmetric matrices that are means over a dataset and are never formed.

Letters: ``q`` vectors, ``d`` parameters, ``n`` rows.

A product walks the data once for all vectors: batch by batch a graph of the losses is made,
and one vector after the other goes through it, so that memory does not grow with their
number. (Mapped over vectors, autograd gives wrong shapes for batch norm.) Attention is run
in its plain form meanwhile, the only one that can be differentiated twice. Nothing about the
model is changed; ``.grad`` is not touched. Not handled: reentrant gradient checkpointing,
which cannot be differentiated twice either.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from influence.parameter_space import ParameterSpace, parameter_space
from projections import (
    GradientNorm,
    NonFiniteError,
    PassSettings,
    Ranks,
    Rows,
    Task,
    as_rows,
    current_ranks,
    is_sharded,
    pack,
    run_pass,
    to_device,
    track,
)


@runtime_checkable
class SymmetricMatrix(Protocol):
    """A symmetric matrix that is known by its products."""

    @property
    def num_dims(self) -> int:
        """Width ``d``."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the products."""
        ...

    @property
    def device(self) -> torch.device:
        """Where they are computed."""
        ...

    def apply(self, vectors: Float[Tensor, "q d"]) -> Float[Tensor, "q d"]:
        """Return the product with each vector."""
        ...


@runtime_checkable
class MeanMatrix(SymmetricMatrix, Protocol):
    """A symmetric matrix that is a mean over rows, some of which can be taken alone."""

    @property
    def num_rows(self) -> int:
        """Number ``n`` of rows."""
        ...

    def of_rows(self, positions: Sequence[int]) -> SymmetricMatrix:
        """Return the mean over some of the rows."""
        ...


@runtime_checkable
class Matrix(Protocol):
    """Hyper-parameters of a matrix over a dataset: `Hessian`, `GaussNewton`."""

    def of(self, task: Task, data: Any, *, settings: PassSettings | None = None) -> "Products":
        """Return the matrix of the mean loss over the data."""
        ...


Multiply = Callable[[list[Tensor]], Sequence[Tensor | None]]
Linearize = Callable[[Task, Any, np.ndarray, list[Any]], Multiply]
"""From a batch, its ids and the parameters to products with its **sum** of matrices."""


@dataclass(frozen=True)
class Products:
    """The matrix of a mean loss over a dataset, by its products.

    Args:
        task: The model and its loss.
        rows: The data.
        positions: Which of the rows the mean is over.
        space: The parameters.
        linearize: How a batch is multiplied.
        settings: Batching.
    """

    task: Task
    rows: Rows
    positions: Sequence[int]
    space: ParameterSpace
    linearize: Linearize
    settings: PassSettings

    @property
    def num_dims(self) -> int:
        """Number ``d`` of parameters."""
        return self.space.num_dims

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the products."""
        return self.space.dtype

    @property
    def device(self) -> torch.device:
        """Where they are computed."""
        return self.space.device

    @property
    def num_rows(self) -> int:
        """Number ``n`` of rows."""
        return len(self.positions)

    def of_rows(self, positions: Sequence[int]) -> "Products":
        """Return the mean over some of the rows."""
        return replace(self, positions=positions)

    def apply(self, vectors: Float[Tensor, "q d"]) -> Float[Tensor, "q d"]:
        """Return the product with each vector.

        Raises:
            NonFiniteError: A product is NaN or infinite.
        """
        out = torch.zeros(vectors.shape, dtype=self.dtype, device=self.device)
        ranks = current_ranks()
        with ranks.telling(), torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
            for ids, batch in track(self.batches(ranks), "products", unit="batches"):
                multiply = self.linearize(self.task, batch, ids, self.space.parameters)
                for vector, row in zip(vectors.to(out), out, strict=True):
                    directions = [block[0] for block in self.space.split(vector[None])]
                    found = self._filled(multiply(directions), directions)
                    row += self.space.join([block[None] for block in found])[0]
            ranks.sum_(out, "products")
        if not torch.isfinite(out).all():
            raise NonFiniteError(
                "the product of the curvature with every vector must be finite, and is not. A "
                "second derivative is NaN or infinite (as that of a square root at zero), or the "
                "vectors grew without bound. Use GaussNewton, which needs first derivatives only."
            )
        return out / len(self.positions)

    def mean_gradient(self) -> Float[Tensor, " d"]:
        """Return the gradient of the mean loss over the rows."""
        out = torch.zeros(self.num_dims, dtype=self.dtype, device=self.device)
        ranks = current_ranks()
        for _, batch in self.batches(ranks):
            with torch.enable_grad():
                loss = self.task.losses(batch).sum()
                grads = torch.autograd.grad(loss, self.space.parameters, allow_unused=True)
            filled = self._filled(grads, list(self.space.parameters))
            out += self.space.join([block[None] for block in filled])[0]
        return ranks.sum_(out, "mean gradient") / self.num_rows

    def reading(self, settings: PassSettings | None) -> PassSettings:
        """Return the layers of this matrix, batched as asked for."""
        return self.settings.with_batching(settings)

    @staticmethod
    def _filled(found: Sequence[Tensor | None], like: list[Tensor]) -> list[Tensor]:
        """Return zeros where a loss does not depend on a parameter."""
        pairs = zip(found, like, strict=True)
        return [torch.zeros_like(zero) if f is None else f.detach() for f, zero in pairs]

    def batches(self, ranks: Ranks) -> Iterator[tuple[np.ndarray, Any]]:
        """Yield the ids and the batch of a few rows, which hold nothing of each other.

        Args:
            ranks: Only the shards of this rank are walked.
        """
        size = self.settings.shard_size
        for first in range(ranks.rank * size, len(self.positions), ranks.size * size):
            shard = self.positions[first : first + size]
            ids = self.rows.ids[np.asarray(shard)]
            examples = self.task.encode(self.rows.fetch(shard))
            for group in pack([self.task.size(example) for example in examples], self.settings):
                batch = self.task.collate([examples[position] for position in group])
                yield ids[group], to_device(batch, self.task.device)


def products(
    task: Task, data: Any, settings: PassSettings | None, *, linearize: Linearize
) -> Products:
    """Return products over a dataset, after the checks that every pass makes.

    Raises:
        NonDeterministicError: Losses depend on chance or on the batch.
        UnsupportedLayerError: A trainable layer has no rule.
        ValueError: The model is spread over ranks.
    """
    if is_sharded(task.model):
        raise ValueError(
            "solvers must have the whole model on each rank, since they differentiate twice. This "
            "one is fully sharded. Use EKFAC, or a model in one piece."
        )
    rows, reading = as_rows(data), settings or PassSettings()
    space = parameter_space(task, reading)
    few = Rows(rows.fetch(range(min(2, len(rows)))), by_position=True)
    run_pass(task, few, [GradientNorm()], settings=reading, description="checks")
    return Products(task, rows, range(len(rows)), space, linearize, reading)


def pull_back(
    outputs: Sequence[Tensor], inputs: Sequence[Tensor], vectors: Sequence[Tensor]
) -> Sequence[Tensor | None]:
    """Return a product with the transposed Jacobian, and None where there is no path.

    Args:
        outputs: What is differentiated.
        inputs: With respect to what.
        vectors: The vector, one tensor an output.
    """
    whole = [(o, v) for o, v in zip(outputs, vectors, strict=True) if o.requires_grad]
    if not whole:
        return [None] * len(inputs)
    kept, chosen = zip(*whole, strict=True)
    return torch.autograd.grad(kept, inputs, chosen, retain_graph=True, allow_unused=True)
