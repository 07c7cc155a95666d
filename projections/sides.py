"""Sides of a two-sided projection: matrices of one layer's inputs or outputs.

Letters: ``n`` examples, ``t`` positions, ``s`` features of the side, ``p`` dimensions.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from math import sqrt
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from projections.checks import check_between
from projections.philox import distinct
from projections.rademacher import sign_entries

Draw = Callable[[int, str, Int[Tensor, " c"], int], Float[Tensor, "c p"]]
"""``draw(seed, name, columns, num_rows)``: `sign_entries` or `normal_entries`."""


@runtime_checkable
class Side(Protocol):
    """A linear map of ``s`` features to ``p`` numbers."""

    @property
    def size(self) -> int:
        """Number ``s`` of features."""
        ...

    @property
    def num_dims(self) -> int:
        """Number ``p`` of dimensions."""
        ...

    def matrix(self, like: Tensor) -> Float[Tensor, "s p"]:
        """Return the map, with the dtype and device of ``like``."""
        ...

    def rows(self, numbers: Int[Tensor, "n t"], like: Tensor) -> Float[Tensor, "n t p"]:
        """Return the images of some unit vectors."""
        ...


@dataclass(frozen=True, kw_only=True)
class RandomSide:
    """Independent entries of variance ``1 / p``, drawn by Philox and never stored.

    A side that keeps all its features is the identity.

    Args:
        name: Name of the matrix; sides of equal names and seeds share their entries.
        size: Number ``s`` of features.
        num_dims: Number ``p`` of dimensions, at most ``s``.
        seed: Seed of the entries.
        draw: How entries of variance 1 are drawn. Default: random signs.
    """

    name: str
    size: int
    num_dims: int
    seed: int
    draw: Draw = field(default=sign_entries)

    def __post_init__(self) -> None:
        """Check the arguments."""
        check_between("num_dims", self.num_dims, 1, self.size, f"the features of {self.name}")

    def matrix(self, like: Tensor) -> Float[Tensor, "s p"]:
        """Return the map, with the dtype and device of ``like``."""
        if self.num_dims == self.size:
            return torch.eye(self.size, dtype=like.dtype, device=like.device)
        return self._entries(torch.arange(self.size, device=like.device), like)

    def rows(self, numbers: Int[Tensor, "n t"], like: Tensor) -> Float[Tensor, "n t p"]:
        """Return the images of some unit vectors; only these are drawn."""
        if self.num_dims == self.size:
            return self.matrix(like)[numbers]
        drawn, places = distinct(numbers)
        return self._entries(drawn, like)[places]

    def _entries(self, columns: Int[Tensor, " c"], like: Tensor) -> Float[Tensor, "c p"]:
        """Draw the images of some unit vectors."""
        entries = self.draw(self.seed, self.name, columns, self.num_dims)
        return entries.to(like.dtype) / sqrt(self.num_dims)


@dataclass(frozen=True)
class GivenSide:
    """A matrix that was computed, such as the leading eigenvectors of a covariance.

    Args:
        values: The matrix.
    """

    values: Float[Tensor, "s p"] = field(repr=False)

    @property
    def size(self) -> int:
        """Number ``s`` of features."""
        return self.values.shape[0]

    @property
    def num_dims(self) -> int:
        """Number ``p`` of dimensions."""
        return self.values.shape[1]

    def matrix(self, like: Tensor) -> Float[Tensor, "s p"]:
        """Return the map, with the dtype and device of ``like``."""
        return self.values.to(like)

    def rows(self, numbers: Int[Tensor, "n t"], like: Tensor) -> Float[Tensor, "n t p"]:
        """Return the images of some unit vectors."""
        return self.matrix(like)[numbers]
