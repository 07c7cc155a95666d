r"""TrackStar: cosines of projected gradients under a Gram matrix of training and target.

Letters: ``q`` queries, ``n`` rows, ``k`` dimensions of a row, ``b`` dimensions of a block.

With rows :math:`\phi` of gradients that Adam's or Adafactor's second moment has scaled
(`AdamScaled` around the projection),

.. math::
    s(q, z) = \cos(R^{-1/2} \phi_q, R^{-1/2} \phi_z), \qquad
    R = \lambda \Phi_e^\top \Phi_e / n_e + (1 - \lambda)\, \Phi^\top \Phi / n.

What queries of one kind share, such as a template, has large eigenvalues in the rows
:math:`\Phi_e` of the evaluation, and with enough :math:`\lambda` counts little. Differs from the
authors: the damping is said and not zero.
"""

from dataclasses import dataclass, field
from hashlib import sha256
from itertools import pairwise
from typing import Any

import numpy as np
from jaxtyping import Float

from influence.gradient_dot import inverse_norms, unit_queries
from projections import ConvergenceError, StoredRows, check_at_least, check_between


@dataclass(frozen=True, kw_only=True)
class TrackStar:
    r"""Compare rows by the cosine after whitening with a mixed Gram matrix.

    Args:
        evaluation: Rows of an evaluation set under the projection of the store, as `query_rows`
            gives them; the Gram matrix of training alone if left out.
        mixing: The share :math:`\lambda` of the evaluation; if left out, that at which its
            ``num_common``-th eigenvalue weighs as much as that of training.
        num_common: About how many directions are common to the evaluation and not told apart.
        block_dims: Width of blocks between which the Gram matrix is taken for zero, such as one
            a layer; a single block if left out.
        damping: What is added, as a multiple of the mean eigenvalue.

    Example:
        >>> from projections import MemoryRows
        >>> store = MemoryRows(np.arange(2), np.array([[2.0, 0.0], [2.0, 2.0]]))
        >>> fitted = TrackStar(damping=0.1).fit(store)
        >>> mapped = fitted.map_queries(np.array([[1.0, 0.0]]))
        >>> (mapped @ store.rows.T * fitted.row_scales()).round(2)
        array([[1.  , 0.12]])

    References:
        Chang et al., Scalable influence and fact tracing for large language model pretraining
        (ICLR 2025), arXiv:2410.17413, Sec. 3.
    """

    evaluation: Float[np.ndarray, "e k"] | None = field(default=None, repr=False)
    mixing: float | None = None
    num_common: int = 1000
    block_dims: int | None = None
    damping: float = 0.1

    def __post_init__(self) -> None:
        """Check the arguments."""
        check_at_least("damping", self.damping, 0)
        check_at_least("num_common", self.num_common, 1)
        if self.block_dims is not None:
            check_at_least("block_dims", self.block_dims, 1)
        if self.mixing is not None:
            check_between("mixing", self.mixing, 0, 1)
            if self.evaluation is None:
                raise ValueError(
                    "`evaluation` must be given with `mixing`: there is nothing to mix. Give rows "
                    "of an evaluation set, from `query_rows`."
                )

    def describe(self) -> dict[str, Any]:
        """Return the settings as plain JSON values."""
        rows = self.evaluation
        digest = None if rows is None else sha256(rows.tobytes()).hexdigest()[:16]
        return {
            "kind": "TrackStar",
            "evaluation": digest,
            "mixing": self.mixing,
            "num_common": self.num_common,
            "block_dims": self.block_dims,
            "damping": self.damping,
        }

    def fit(self, store: StoredRows) -> "FittedTrackStar":
        """Compute the mixed Gram matrix and its inverse root, in float64.

        Raises:
            ConvergenceError: The damped matrix is singular.
            ValueError: The evaluation has rows of another width.
        """
        width = store.num_dims
        if self.evaluation is not None and self.evaluation.shape[1:] != (width,):
            raise ValueError(
                f"`evaluation` must have rows of {width} dimensions, as the store. Got "
                f"{self.evaluation.shape}. Compute them with the projection of the store."
            )
        stops = [*range(0, width, self.block_dims or width), width]
        slices = [slice(*pair) for pair in pairwise(stops)]
        train = [gram(store.blocks(), some) for some in slices]
        mixing, mixed = 0.0, train
        if self.evaluation is not None:
            rows = [np.asarray(self.evaluation)]
            asked = [gram(rows, some) for some in slices]
            mixing = self.mixing
            if mixing is None:
                mixing = choose_mixing(train, asked, self.num_common)
            mixed = [mixing * e + (1 - mixing) * t for e, t in zip(asked, train, strict=True)]
        roots = inverse_roots(mixed, self.damping)
        return FittedTrackStar(store, roots, mixing)


@dataclass(frozen=True)
class FittedTrackStar:
    """The whitening on one store.

    Args:
        store: The rows.
        roots: The inverse root of each block of the mixed Gram matrix.
        mixing: The share of the evaluation in it.
    """

    store: StoredRows
    roots: list[Float[np.ndarray, "_ _"]]
    mixing: float

    def whiten(self, rows: Float[np.ndarray, "n k"]) -> Float[np.ndarray, "n k"]:
        """Return rows times the inverse root, in float64."""
        out, start = np.empty(rows.shape), 0
        for root in self.roots:
            some = slice(start, start + len(root))
            out[:, some] = np.asarray(rows[:, some], dtype=np.float64) @ root
            start += len(root)
        return out

    def map_queries(self, queries: Float[np.ndarray, "q k"]) -> Float[np.ndarray, "q k"]:
        """Return whitened queries of length one, whitened once more for the rows.

        Raises:
            ValueError: A query is zero and has no direction.
        """
        return self.whiten(unit_queries(self.whiten(queries))).astype(queries.dtype)

    def row_scales(self) -> Float[np.ndarray, " n"]:
        """Return one over the length of each whitened row; a row of zeros keeps the score 0."""
        return inverse_norms(self._lengths())

    def self_scores(self) -> Float[np.ndarray, " n"]:
        """Return ones, and zero for rows of zeros."""
        return (self._lengths() > 0).astype(np.float64)

    def _lengths(self) -> Float[np.ndarray, " n"]:
        """Return the length of each whitened row."""
        parts = [np.linalg.norm(self.whiten(block), axis=1) for block in self.store.blocks()]
        return np.concatenate(parts)


def gram(blocks: Any, some: slice) -> Float[np.ndarray, "b b"]:
    """Return the mean Gram matrix of some coordinates, in float64."""
    total, count = np.zeros(()), 0
    for block in blocks:
        rows = np.asarray(block[:, some], dtype=np.float64)
        total, count = total + rows.T @ rows, count + len(rows)
    return total / count


def choose_mixing(
    train: list[Float[np.ndarray, "_ _"]], asked: list[Float[np.ndarray, "_ _"]], num_common: int
) -> float:
    """Return the share at which both matrices weigh the same at the given eigenvalue.

    Eigenvalues of all blocks stand in one list; where there are fewer, the last one counts.
    """
    values = [
        np.sort(np.concatenate([np.linalg.eigvalsh(block) for block in blocks]))[::-1].clip(0)
        for blocks in (train, asked)
    ]
    of_train, of_asked = (found[min(num_common, len(found) - 1)] for found in values)
    return float(of_train / (of_train + of_asked)) if of_train + of_asked > 0 else 0.5


def inverse_roots(
    blocks: list[Float[np.ndarray, "_ _"]], damping: float
) -> list[Float[np.ndarray, "_ _"]]:
    """Return the symmetric inverse root of each damped block.

    Raises:
        ConvergenceError: A block is singular.
    """
    roots = []
    mean = sum(np.trace(block) for block in blocks) / sum(map(len, blocks))
    for block in blocks:
        values, vectors = np.linalg.eigh(block)
        damped = values.clip(0) + damping * mean
        if not damped.min() > len(block) * np.finfo(np.float64).eps * max(damped.max(), 1e-300):
            raise ConvergenceError(
                "the damped Gram matrix must be positive definite, and is not: the rows do not "
                f"span their {len(block)} dimensions. Raise `damping`, for instance to 0.1."
            )
        roots.append(vectors / np.sqrt(damped) @ vectors.T)
    return roots
