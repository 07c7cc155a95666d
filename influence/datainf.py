r"""DataInf: the inverse of a mean of matrices, taken for the mean of their inverses.

Letters: ``q`` vectors, ``n`` training examples, ``d`` parameters of one component.

For each component the damped empirical Fisher matrix is inverted one example at a time, which
Sherman and Morrison do in closed form:

.. math::
    \Big(\frac1n \sum_i g_i g_i^\top + \lambda I\Big)^{-1} v \approx
    \frac1{\lambda} \Big(v - \frac1n \sum_i \frac{g_i^\top v}{\lambda + |g_i|^2}\, g_i\Big).

The approximation is good where the components are small, as adapters are, and exact for one
example. Here the sum is one pass for all queries, and no gradient of a training example is
kept; differs from the authors' code, which keeps them all.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from influence.damping import Damping, RelativeDamping
from influence.gradient_sums import SquaredNorms, SwappedSums
from influence.members import check_fitted_model
from influence.parameter_space import ParameterSpace, parameter_space
from influence.raw_gradients import VECTOR_BYTES, gradient_blocks, preconditioned_products
from projections import (
    ConvergenceError,
    PassSettings,
    Rows,
    Scores,
    Task,
    as_rows,
    describe,
    fingerprint_model,
    run_pass,
)


@dataclass(frozen=True, kw_only=True)
class DataInf:
    r"""Attribute by the mean of one inverse an example, component by component.

    Args:
        damping: :math:`\lambda` of each component, from the mean square of its gradient's
            entries; the authors take a tenth of it.

    Example:
        >>> import torch
        >>> from projections import Regression
        >>> task = Regression(torch.nn.Linear(1, 1, bias=False))
        >>> _ = torch.nn.init.zeros_(task.model.weight)
        >>> data = [(torch.ones(1), torch.ones(1))]
        >>> fitted = DataInf(damping=RelativeDamping(1.0)).fit(task, data)
        >>> fitted.scores(task, data, data).values  # 1 / (1 + 1)
        array([[0.5]], dtype=float32)

    References:
        Kwon et al., DataInf: Efficiently estimating data influence in LoRA-tuned LLMs and
        diffusion models (ICLR 2024), arXiv:2310.00902, Eq. 5.
    """

    damping: Damping = field(default_factory=RelativeDamping)

    def fit(
        self, task: Task, data: Any, *, settings: PassSettings | None = None
    ) -> "FittedDataInf":
        """Choose the damping of each component: one pass over the data.

        Args:
            task: The model and its loss.
            data: The training data.
            settings: Layers and batching.

        Raises:
            ConvergenceError: The damping of a component is zero.
        """
        rows, reading = as_rows(data), settings or PassSettings()
        space = parameter_space(task, reading)
        squares = SquaredNorms()
        run_pass(task, rows, accumulators=[squares], settings=reading, description="norms")
        dampings = {
            name: self.damping.of(float(squares.totals.get(name, 0.0)) / len(rows) / component.size)
            for name, component in space.layout.components.items()
        }
        if zero := [name for name, value in dampings.items() if not value > 0]:
            raise ConvergenceError(
                f"the damping of every component must be above zero. That of {zero[:5]} is not: "
                "the component has no gradient, or `damping` is zero. Leave it out with "
                "`layers=(...)`, or use AbsoluteDamping with a positive value."
            )
        how = {
            "method": "DataInf",
            "damping": describe(self.damping),
            "model": fingerprint_model(task.model),
            "data": rows.fingerprint,
        }
        return FittedDataInf(space, rows, dampings, reading, how)


@dataclass(frozen=True)
class FittedDataInf:
    """The dampings of each component, and the data that the inverse is of.

    Args:
        space: The parameters, and the layout of vectors.
        rows: The training data.
        dampings: By component.
        settings: Layers and batching.
        provenance: How it was fitted, as plain JSON values.
    """

    space: ParameterSpace
    rows: Rows
    dampings: Mapping[str, float]
    settings: PassSettings
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def precondition(
        self, task: Task, vectors: Float[Tensor, "q d"], *, settings: PassSettings | None = None
    ) -> Float[Tensor, "q d"]:
        """Return the approximate inverse times vectors in the layout of `space`: one pass.

        Args:
            task: The model and its loss.
            vectors: The vectors.
            settings: Batching; the layers are those of the fit.
        """
        check_fitted_model(task, self.provenance)
        sums = SwappedSums(self.space, vectors, self.dampings)
        run_pass(
            task,
            self.rows,
            accumulators=[sums],
            settings=self.settings.with_batching(settings),
            description="preconditioning",
        )
        out = vectors - sums.total / len(self.rows)
        for name, component in self.space.layout.components.items():
            for part in component.parameters:
                self.space.block(out, part).div_(self.dampings[name])
        return out

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
            memory: Bytes of query gradients held at a time. More queries than fit take two
                more passes.

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
            lambda vectors: self.precondition(task, vectors),
            settings=self.settings.with_batching(settings),
            memory=memory,
        )
        return Scores(rows.ids, {"influence": values}, asked.ids, self.provenance)

    def self_influence(
        self,
        task: Task,
        data: Any,
        *,
        settings: PassSettings | None = None,
        memory: int = VECTOR_BYTES,
    ) -> Scores:
        """Return the score of each example with itself, ``n``: every example is a query once.

        Args:
            task: The model and its loss.
            data: The examples.
            settings: Batching; the layers are those of the fit.
            memory: Bytes of gradients held at a time; each such block takes another pass.

        Raises:
            StoreMismatchError: The model is not that of the fit.
        """
        rows, reading = as_rows(data), self.settings.with_batching(settings)
        blocks = gradient_blocks(task, rows, self.space, settings=reading, memory=memory)
        parts = [
            (vectors * self.precondition(task, vectors)).sum(1).cpu().numpy() for vectors in blocks
        ]
        values = {"self_influence": np.concatenate(parts)}
        return Scores(rows.ids, values, provenance=self.provenance)
