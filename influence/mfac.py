r"""M-FAC: the empirical Fisher matrix of a few hundred gradients, inverted exactly.

Letters: ``q`` queries, ``n`` training examples, ``m`` rows of the estimate, ``d`` parameters,
``k`` dimensions of a row.

Nothing is assumed about layers: the gradients of ``m`` examples are held, and a system of
their size is solved. `MFAC` does it on whole gradients, `MFACRows` on the rows of a store.
Differs from the authors' optimiser: rows are gradients of single examples, not of batches.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from influence.damping import Damping, RelativeDamping
from influence.members import check_fitted_model
from influence.parameter_space import Directions, ParameterSpace, parameter_space
from influence.raw_gradients import VECTOR_BYTES, gradient_blocks, preconditioned_products
from influence.woodbury import DualInverse, GradientWindow, row_products
from projections import (
    GradientNorm,
    PassSettings,
    Rows,
    Scores,
    Sketch,
    StoredRows,
    Task,
    as_rows,
    check_at_least,
    describe,
    fingerprint_model,
    run_pass,
)


@dataclass(frozen=True, kw_only=True)
class MFAC:
    r"""Attribute by :math:`g_q^\top (\lambda I + G^\top G / m)^{-1} g_n` with ``m`` examples.

    Args:
        num_rows: Number ``m`` of examples whose gradients are held, drawn by the seed; all
            where there are fewer.
        damping: :math:`\lambda` from the mean eigenvalue, trace over ``d``, of the estimate.
        seed: Which examples.

    Example:
        >>> from influence import AbsoluteDamping
        >>> from projections import Regression
        >>> task = Regression(torch.nn.Linear(1, 1, bias=False))
        >>> _ = torch.nn.init.zeros_(task.model.weight)
        >>> data = [(torch.ones(1), torch.ones(1))]
        >>> fitted = MFAC(num_rows=1, damping=AbsoluteDamping(1.0), seed=0).fit(task, data)
        >>> fitted.scores(task, data, data).values  # 1 / (1 + 1)
        array([[0.5]], dtype=float32)

    References:
        Frantar, Kurtic and Alistarh, M-FAC: Efficient matrix-free approximations of
        second-order information (NeurIPS 2021), arXiv:2107.03356, Sec. 3.
    """

    num_rows: int = 512
    damping: Damping = field(default_factory=RelativeDamping)
    seed: int

    def __post_init__(self) -> None:
        """Check the arguments."""
        check_at_least("num_rows", self.num_rows, 1)

    def fit(self, task: Task, data: Any, *, settings: PassSettings | None = None) -> "FittedMFAC":
        """Compute the gradients of the drawn examples.

        Args:
            task: The model and its loss.
            data: The training data.
            settings: Layers and batching.

        Raises:
            ValueError: The damping is zero.
        """
        rows, reading = as_rows(data), settings or PassSettings()
        space = parameter_space(task, reading)
        some = drawn(len(rows), self.num_rows, self.seed)
        chosen = Rows(rows.fetch(some))
        held = torch.cat([*gradient_blocks(task, chosen, space, settings=reading)])
        how = {
            "method": describe(self),
            "model": fingerprint_model(task.model),
            "data": rows.fingerprint,
        }
        return FittedMFAC(space, dual_inverse(held, self.damping), reading, how)


@dataclass(frozen=True)
class FittedMFAC:
    """The inverse of an empirical Fisher matrix of a few examples.

    Args:
        space: The parameters, and the layout of vectors.
        inverse: The inverse.
        settings: Layers and batching.
        provenance: How it was fitted, as plain JSON values.
    """

    space: ParameterSpace
    inverse: DualInverse
    settings: PassSettings
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def scores(
        self,
        task: Task,
        queries: Any,
        data: Any,
        *,
        settings: PassSettings | None = None,
        memory: int = VECTOR_BYTES,
    ) -> Scores:
        """Return the influence of every training example on every query, ``q n``.

        Args:
            task: The model; its `measurements` are the queries.
            queries: A dataset of queries.
            data: The training examples to score.
            settings: Batching; the layers are those of the fit.
            memory: Bytes of query gradients held at a time, beside those of the fit.

        Raises:
            StoreMismatchError: The model is not that of the fit.
        """
        check_fitted_model(task, self.provenance)
        rows, asked = as_rows(data), as_rows(queries)
        values = preconditioned_products(
            task,
            asked,
            rows,
            self.space,
            self.inverse.apply,
            settings=self.settings.with_batching(settings),
            memory=memory,
        )
        return Scores(rows.ids, {"influence": values}, asked.ids, self.provenance)

    def self_influence(
        self, task: Task, data: Any, *, settings: PassSettings | None = None
    ) -> Scores:
        """Return the score of each example with itself, ``n``, in one pass.

        Args:
            task: The model and its loss.
            data: The examples.
            settings: Batching; the layers are those of the fit.

        Raises:
            StoreMismatchError: The model is not that of the fit.
        """
        check_fitted_model(task, self.provenance)
        rows, reading = as_rows(data), self.settings.with_batching(settings)
        columns = [Sketch(Directions(self.space, self.inverse.rows)), GradientNorm()]
        table = run_pass(task, rows, columns, settings=reading, description="self-influence")
        device = self.inverse.rows.device
        products, norms = (torch.from_numpy(table.columns[c.name]).to(device) for c in columns)
        values = self.inverse.self_products(products, norms.double().square()).cpu().numpy()
        return Scores(rows.ids, {"self_influence": values}, provenance=self.provenance)


@dataclass(frozen=True, kw_only=True)
class MFACRows:
    """The same as a metric on stored rows, of which the last ``m`` make the estimate.

    With all rows it is the kernel of TRAK, by a system of as many rows instead of dimensions:
    the cheaper way where rows are wide and few.

    Args:
        num_rows: Number ``m`` of rows, a window at the end of the store; all if left out.
        damping: As in `MFAC`.

    Example:
        >>> from influence import AbsoluteDamping
        >>> from projections import MemoryRows
        >>> store = MemoryRows(np.arange(2), np.array([[5.0], [1.0]]))
        >>> fitted = MFACRows(num_rows=1, damping=AbsoluteDamping(1.0)).fit(store)
        >>> fitted.map_queries(np.ones((1, 1)))  # 1 / (1 + 1): the last row only
        array([[0.5]])

    References:
        Frantar, Kurtic and Alistarh, M-FAC (NeurIPS 2021), arXiv:2107.03356, Sec. 3, for the
        window.
    """

    num_rows: int | None = None
    damping: Damping = field(default_factory=RelativeDamping)

    def __post_init__(self) -> None:
        """Check the arguments."""
        if self.num_rows is not None:
            check_at_least("num_rows", self.num_rows, 1)

    def fit(self, store: StoredRows) -> "FittedMFACRows":
        """Slide the window over the rows, and solve for the last.

        Raises:
            ValueError: The damping is zero.
        """
        window = GradientWindow(self.num_rows or len(store))
        skipped = len(store) - window.num_rows
        for block in store.blocks():
            if len(block) > max(skipped, 0):
                window.push(torch.from_numpy(np.asarray(block[max(skipped, 0) :])))
            skipped -= len(block)
        return FittedMFACRows(store, dual_inverse(window.rows, self.damping, window.gram))


@dataclass(frozen=True)
class FittedMFACRows:
    """The inverse on one store.

    Args:
        store: The rows.
        inverse: The inverse of the estimate from some of them.
    """

    store: StoredRows
    inverse: DualInverse

    def map_queries(self, queries: Float[np.ndarray, "q k"]) -> Float[np.ndarray, "q k"]:
        """Return the queries times the inverse."""
        return self.inverse.apply(torch.from_numpy(np.asarray(queries))).numpy()

    def row_scales(self) -> None:
        """Rows are not scaled."""
        return

    def self_scores(self) -> Float[np.ndarray, " n"]:
        """Return the self-influence of each row."""
        parts = []
        for block in self.store.blocks():
            rows = torch.from_numpy(np.asarray(block))
            products = row_products(rows, self.inverse.rows)
            squares = rows.double().square().sum(1)
            parts.append(self.inverse.self_products(products, squares).numpy())
        return np.concatenate(parts)


def dual_inverse(
    rows: Float[Tensor, "m d"], damping: Damping, gram: Float[Tensor, "m m"] | None = None
) -> DualInverse:
    """Return the inverse with the damping that a rule chooses."""
    gram = row_products(rows) if gram is None else gram
    mean = float(gram.trace()) / len(rows) / rows.shape[1]
    return DualInverse(rows, damping.of(mean), gram)


def drawn(count: int, num: int, seed: int) -> list[int]:
    """Return the positions of some rows, in their order, by a seed."""
    if num >= count:
        return list(range(count))
    generator = np.random.Generator(np.random.Philox(seed))
    return sorted(generator.choice(count, num, replace=False).tolist())
