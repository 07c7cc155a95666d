r"""In how many directions gradients lie, and whether these stay the same over training.

Letters: ``n`` rows, ``k`` dimensions, ``r`` main directions, ``s`` states of training.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from projections import DataError, GradientStore, check_at_least
from selection.diagnostics.moments import RowMoments, measure_moments
from selection.row_blocks import as_row_blocks


@dataclass(frozen=True)
class Spectrum:
    r"""Eigenvalues of :math:`E g g^\top`, and its main directions.

    Args:
        num_examples: Number ``n`` of rows.
        eigenvalues: All of them, the largest first, ``k``.
        directions: The main directions as columns, ``k r``.
        examples: Id of the row that is largest along each of them, ``r``.
    """

    num_examples: int
    eigenvalues: Float[np.ndarray, " k"]
    directions: Float[np.ndarray, "k r"]
    examples: np.ndarray

    @property
    def effective_dimension(self) -> float:
        r""":math:`(\sum \lambda)^2 / \sum \lambda^2`: as many equal directions would spread so.

        0 where all gradients are zero; at most the smaller of ``n`` and ``k``.
        """
        squares = float(np.square(self.eigenvalues).sum())
        return float(self.eigenvalues.sum()) ** 2 / squares if squares > 0 else 0.0

    @property
    def stable_rank(self) -> float:
        r""":math:`\sum \lambda / \lambda_1`; 0 where all gradients are zero."""
        first = float(self.eigenvalues[0])
        return float(self.eigenvalues.sum()) / first if first > 0 else 0.0

    @property
    def explained(self) -> Float[np.ndarray, " k"]:
        """Share of all squared norms along the first directions, one more each time."""
        total = float(self.eigenvalues.sum())
        return self.eigenvalues.cumsum() / (total if total > 0 else 1.0)

    def overlap(self, other: "Spectrum", num_directions: int) -> float:
        r"""Return :math:`\|U^\top V\|_F^2 / r` of the first directions: 1 the same, 0 orthogonal.

        Of ``r`` directions at random ``r / k`` is expected.

        Raises:
            ValueError: There are fewer directions, or they are of other rows.
        """
        for one in (self, other):
            check_at_least("num_directions", num_directions, 1)
            if num_directions > one.directions.shape[1]:
                raise ValueError(
                    f"`num_directions` must be at most {one.directions.shape[1]}, the number that "
                    f"was kept. Got {num_directions}."
                )
        if len(self.directions) != len(other.directions):
            raise ValueError(
                "directions must be of rows with equally many dimensions. Got "
                f"{len(self.directions)} and {len(other.directions)}."
            )
        both = self.directions[:, :num_directions].T @ other.directions[:, :num_directions]
        return float(np.square(both).sum()) / num_directions


def measure_spectrum(rows: Any, *, num_directions: int = 10) -> Spectrum:
    """Measure in how many directions gradients lie.

    Args:
        rows: A `GradientStore`, `Embeddings`, an array ``n k``, or their `measure_moments`.
        num_directions: Most main directions to keep; fewer where there are not as many.

    Raises:
        ValueError: There is no row, or the number is below 1.

    Example:
        >>> found = measure_spectrum(np.array([[3.0, 0], [0, 3], [3, 0], [0, 3]]))
        >>> round(found.effective_dimension, 3), found.explained
        (2.0, array([0.5, 1. ]))

    References:
        Roy and Vetterli, The effective rank (EUSIPCO 2007); Gur-Ari et al., Gradient descent
        happens in a tiny subspace (2018), arXiv:1812.04754, for the overlap.
    """
    check_at_least("num_directions", num_directions, 1)
    moments = measure_moments(rows)
    blocks = moments.blocks
    values, axes = np.linalg.eigh(moments.products / len(blocks))
    values, axes = values[::-1].clip(min=0), axes[:, ::-1]
    count = min(num_directions, len(values), len(blocks))
    main = axes[:, :count]
    largest, where = np.full(count, -1.0), np.zeros(count, np.int64)
    for part, some in blocks:
        sizes = np.abs(some @ main)
        best = sizes.argmax(axis=0)
        found = sizes[best, np.arange(count)]
        where = np.where(found > largest, part.start + best, where)
        largest = np.maximum(found, largest)
    return Spectrum(len(blocks), values, main, blocks.ids[where])


@dataclass(frozen=True)
class SubspaceHistory:
    """How the main directions of gradients changed over training.

    Args:
        names: The states, in order.
        spectra: The spectrum at each.
        overlaps: Overlap of the main directions of each two states, ``s s``.
        num_directions: Number of directions that are compared.
        chance: The overlap of directions at random.
    """

    names: tuple[str, ...]
    spectra: tuple[Spectrum, ...]
    overlaps: Float[np.ndarray, "s s"]
    num_directions: int
    chance: float

    @property
    def effective_dimensions(self) -> Float[np.ndarray, " s"]:
        """The effective dimension at each state."""
        return np.array([spectrum.effective_dimension for spectrum in self.spectra])


def follow_subspace(states: Mapping[str, Any], *, num_directions: int = 10) -> SubspaceHistory:
    """Compare the main directions of the same examples' gradients at several states of training.

    Args:
        states: By name, in order: stores, `Embeddings` or arrays of rows in one projection, or
            their `measure_moments`.
        num_directions: Number of directions that are compared.

    Raises:
        DataError: Rows are about other examples, or fewer than the directions.
        StoreMismatchError: Stores have different projections.
        ValueError: There are fewer than two states.

    Example:
        >>> rows = np.array([[3.0, 0, 0.1], [-2, 0.1, 0]])
        >>> found = follow_subspace({"early": rows, "late": 2 * rows}, num_directions=1)
        >>> found.overlaps.round(3).tolist()
        [[1.0, 1.0], [1.0, 1.0]]

    References:
        As for `measure_spectrum`.
    """
    check_at_least("len(states)", len(states), 2)
    blocks = [
        rows.blocks if isinstance(rows, RowMoments) else as_row_blocks(rows)
        for rows in states.values()
    ]
    sources = [b.source for b in blocks if isinstance(b.source, GradientStore)]
    for store in sources[1:]:
        store.require(projector=sources[0].manifest.get("projector"))
    for name, own in zip(states, blocks, strict=True):
        if not np.array_equal(own.ids, blocks[0].ids) or own.num_dims != blocks[0].num_dims:
            first = f"{len(blocks[0])} of {blocks[0].num_dims}"
            raise DataError(
                f"states must have rows of the same ids and dimensions. {name!r} has {len(own)} "
                f"rows of {own.num_dims} numbers, the first {first}. Project the same data at each."
            )
        if num_directions > min(len(own), own.num_dims):
            raise DataError(
                f"`num_directions` must be at most the rows and their dimensions, {len(own)} and "
                f"{own.num_dims}. Got {num_directions}."
            )
    spectra = tuple(
        measure_spectrum(rows, num_directions=num_directions) for rows in states.values()
    )
    overlaps = [[a.overlap(b, num_directions) for b in spectra] for a in spectra]
    chance = num_directions / blocks[0].num_dims
    return SubspaceHistory(tuple(states), spectra, np.array(overlaps), num_directions, chance)
