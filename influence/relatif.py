r"""RelatIF: influence on a query, relative to what the example does to the model at all.

Letters: ``q`` queries, ``n`` training examples.

Plain influence is often largest for the same few outliers, whatever the query. `RelatIF`
allows each example the same change of all losses, `ParameterRelatIF` the same change of the
parameters. Both can be put around any method that has what they divide by.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from influence.base import FittedInfluence
from influence.members import check_fitted_data
from projections import ConvergenceError, PassSettings, Scores, Task, as_rows


@runtime_checkable
class WithSelfInfluence(FittedInfluence, Protocol):
    """A fitted method that knows ``g^T H^-1 g``."""

    def self_influence(
        self, task: Task, data: Any, *, settings: PassSettings | None = None
    ) -> Scores:
        """Return the influence of each example on itself."""
        ...


@runtime_checkable
class WithResponseNorms(FittedInfluence, Protocol):
    """A fitted method that knows the length of ``H^-1 g``."""

    def response_norms(
        self, task: Task, data: Any, *, settings: PassSettings | None = None
    ) -> Scores:
        """Return how far the parameters move for each example."""
        ...


@dataclass(frozen=True, kw_only=True)
class RelatIF:
    r"""Divide the scores of a method by :math:`\sqrt{g_n^\top H^{-1} g_n}` (l-RelatIF).

    The scores among training examples are then cosines under the curvature.

    Args:
        method: A method whose fit has `self_influence`, such as `EKFAC`, `Inverse`, `DataInf`,
            `MFAC`, `TracIn` or `RowInfluence`.

    Example:
        >>> import torch
        >>> from influence import RowInfluence, GradientDot
        >>> from projections import Regression
        >>> task = Regression(torch.nn.Linear(1, 1, bias=False))
        >>> _ = torch.nn.init.zeros_(task.model.weight)
        >>> data = [(torch.ones(1), torch.ones(1)), (torch.ones(1), 9 * torch.ones(1))]
        >>> fitted = RelatIF(method=RowInfluence(metric=GradientDot())).fit(task, data)
        >>> fitted.scores(task, data[:1], data).values
        array([[1., 1.]], dtype=float32)

    References:
        Barshan, Brunet and Dziugaite, RelatIF: Identifying explanatory training examples via
        relative influence (AISTATS 2020), arXiv:2003.11630, Sec. 3.
    """

    method: Any

    def fit(
        self, task: Task, data: Any, *, settings: PassSettings | None = None
    ) -> "FittedRelatIF":
        """Fit the method, and compute the self-influence of the training examples.

        Args:
            task: The model and its loss.
            data: The training data.
            settings: Layers and batching.

        Raises:
            ConvergenceError: A self-influence is negative.
            TypeError: The method has no self-influence.
        """
        fitted = self.method.fit(task, data, settings=settings)
        if not isinstance(fitted, WithSelfInfluence):
            raise TypeError(
                f"`method` must have `self_influence` once it is fitted. "
                f"{type(fitted).__name__} has none. Use another method, such as EKFAC."
            )
        own = fitted.self_influence(task, data, settings=settings).values
        if (own < 0).any():
            raise ConvergenceError(
                f"every self-influence must be at least zero. The smallest is {own.min():.3g}: the "
                "damped curvature is not positive. Raise the damping of the method."
            )
        return FittedRelatIF("RelatIF", fitted, np.sqrt(own), as_rows(data).fingerprint)


@dataclass(frozen=True, kw_only=True)
class ParameterRelatIF:
    r"""Divide the scores of a method by :math:`|H^{-1} g_n|` (theta-RelatIF).

    Args:
        method: A method whose fit has `response_norms`: `EKFAC`, `KFAC`, `Diagonal`, `Identity`
            or `Inverse`.

    References:
        Barshan, Brunet and Dziugaite, RelatIF: Identifying explanatory training examples via
        relative influence (AISTATS 2020), arXiv:2003.11630, Sec. 3.
    """

    method: Any

    def fit(
        self, task: Task, data: Any, *, settings: PassSettings | None = None
    ) -> "FittedRelatIF":
        """Fit the method, and compute how far each training example moves the parameters.

        Args:
            task: The model and its loss.
            data: The training data.
            settings: Layers and batching.

        Raises:
            TypeError: The method does not know the response of the parameters.
        """
        fitted = self.method.fit(task, data, settings=settings)
        if not isinstance(fitted, WithResponseNorms):
            raise TypeError(
                f"`method` must have `response_norms` once it is fitted. "
                f"{type(fitted).__name__} has none. Use EKFAC or Inverse, or RelatIF."
            )
        norms = fitted.response_norms(task, data, settings=settings).values
        return FittedRelatIF("ParameterRelatIF", fitted, norms, as_rows(data).fingerprint)


@dataclass(frozen=True)
class FittedRelatIF:
    """A fitted method, and what its scores are divided by.

    Args:
        name: Which of the two it is.
        method: The fitted method.
        sizes: What the score of each training example is divided by.
        data: Fingerprint of the training data.
    """

    name: str
    method: FittedInfluence
    sizes: Float[np.ndarray, " n"]
    data: str

    @property
    def provenance(self) -> Mapping[str, Any]:
        """What was divided, as plain JSON values."""
        inner = getattr(self.method, "provenance", {})
        return {"method": self.name, "of": dict(inner), "data": self.data}

    def scores(
        self, task: Task, queries: Any, data: Any, *, settings: PassSettings | None = None
    ) -> Scores:
        """Return the divided scores, ``q n``; an example without a gradient keeps the score 0.

        Args:
            task: The model; its `measurements` are the queries.
            queries: A dataset of queries.
            data: The data of the fit.
            settings: Batching.

        Raises:
            StoreMismatchError: The model or the data is not that of the fit.
        """
        check_fitted_data(as_rows(data), self.provenance)
        found = self.method.scores(task, queries, data, settings=settings)
        sizes = np.where(self.sizes > 0, self.sizes, np.inf)
        columns = {name: values / sizes for name, values in found.columns.items()}
        return replace(found, columns=columns, provenance=self.provenance)
