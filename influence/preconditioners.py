"""Cheap approximate inverses: any fitted curvature, and the identity.

Letters: ``q`` vectors, ``d`` parameters.

The diagonal gives the preconditioner of Jacobi, EK-FAC one that knows the directions too.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from influence.curvature import FittedCurvature
from influence.damping import AbsoluteDamping
from influence.products import Products, SymmetricMatrix
from projections import StoreMismatchError, describe

Precondition = Callable[[Float[Tensor, "q d"]], Float[Tensor, "q d"]]


@runtime_checkable
class Preconditioner(Protocol):
    """Hyper-parameters of a symmetric positive approximation of a damped inverse."""

    def prepare(self, matrix: SymmetricMatrix, damping: float) -> Precondition:
        """Return the map that approximates ``(H + damping)^-1``."""
        ...


@dataclass(frozen=True)
class NoPreconditioner:
    """The identity."""

    def prepare(self, matrix: SymmetricMatrix, damping: float) -> Precondition:
        """Return the identity."""
        return lambda vectors: vectors


@dataclass(frozen=True)
class CurvaturePreconditioner:
    """Precondition by a fitted curvature: EK-FAC, K-FAC, or the diagonal (Jacobi).

    Its own damping is replaced by that of the system. Parameters that are in no linear map
    (norms, embeddings), which it knows nothing of, are scaled by its mean eigenvalue.

    Args:
        curvature: A curvature that was fitted to the same model.

    Example:
        >>> from influence import ConjugateGradients, Diagonal
        >>> from projections import Classification
        >>> task = Classification(torch.nn.Linear(2, 3))
        >>> data = [(torch.ones(2), 0), (torch.zeros(2), 1)]
        >>> jacobi = CurvaturePreconditioner(Diagonal(seed=0).fit(task, data))
        >>> ConjugateGradients(preconditioner=jacobi).describe()["preconditioner"]["curvature"]
        {'kind': 'Diagonal', ...}
    """

    curvature: FittedCurvature = field(repr=False)

    def prepare(self, matrix: SymmetricMatrix, damping: float) -> Precondition:
        """Return the inverse of the curvature plus the damping.

        Raises:
            StoreMismatchError: It was fitted to another model, or to other layers.
            TypeError: The matrix does not know its parameters.
        """
        if not isinstance(matrix, Products):
            raise TypeError(
                "a curvature must precondition a matrix over a dataset, whose parameters have "
                f"names. Got {type(matrix).__name__}. Use Nystroem."
            )
        self.curvature.check_model(matrix.task)
        damped = self.curvature.with_damping(AbsoluteDamping(damping))
        known = set(damped.layers)
        names = {name for _, maps in matrix.space.linear_maps(_none(matrix)) for name in maps}
        if not known <= names:
            raise StoreMismatchError(
                "the curvature must be of layers that the matrix has. It also has "
                f"{sorted(known - names)[:5]}. Fit both with the same settings."
            )
        total = sum(float(layer.eigenvalues.double().sum()) for layer in damped.layers.values())
        count = sum(layer.eigenvalues.numel() for layer in damped.layers.values())
        rest = 1 / (total / count + damping)

        def precondition(vectors: Float[Tensor, "q d"]) -> Float[Tensor, "q d"]:
            out = vectors * rest
            for component, maps in matrix.space.linear_maps(vectors):
                if known.issuperset(maps):
                    matrix.space.put(component, damped.precondition(maps), out)
            return out

        return precondition

    def describe(self) -> dict[str, Any]:
        """Return which curvature it is, as plain JSON values."""
        how = self.curvature.provenance
        return {"kind": "CurvaturePreconditioner", "curvature": how.get("curvature", {})}


def describe_with(settings: Any, preconditioner: Preconditioner) -> dict[str, Any]:
    """Return a solver's settings as plain JSON values, its preconditioner among them."""
    plain = {
        name: value
        for name, value in vars(settings).items()
        if isinstance(value, int | float | str | None)
    }
    kind = {"kind": type(settings).__name__}
    return {**kind, **plain, "preconditioner": describe(preconditioner)}


def _none(matrix: SymmetricMatrix) -> Float[Tensor, "q d"]:
    """Return no vectors at all."""
    return torch.zeros(0, matrix.num_dims, dtype=matrix.dtype, device=matrix.device)
