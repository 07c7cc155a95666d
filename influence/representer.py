r"""Representer points: the logits of an l2-regularised last layer as a sum over its examples.

Letters: ``q`` queries, ``n`` training examples, ``i`` features (with a trailing one for a
bias), ``o`` classes.

At the minimum of :math:`\frac1n \sum_i \ell_i(W f_i) + \frac{\lambda}{2} |W|^2`,

.. math::
    W f = \sum_i \alpha_i\, (f_i \cdot f), \qquad
    \alpha_i = - \frac{1}{\lambda n} \frac{\partial \ell_i}{\partial (W f_i)},

exactly, so the layer is fitted anew to the minimum; the features are taken as they are. The
papers' :math:`\lambda |W|^2` is twice the regularisation here.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.optimize import minimize
from torch import Tensor, nn

from influence.hidden_similarity import last_linear, walk_layer
from influence.logistic_leave_one_out import gradient, objective, typical_length
from influence.members import check_fitted_to
from influence.solver import check_damping
from projections import (
    Classification,
    ConvergenceError,
    PassSettings,
    Rows,
    Scores,
    Task,
    as_rows,
    check_at_least,
    describe,
    fingerprint_model,
)


@dataclass(frozen=True, kw_only=True)
class RepresenterPoints:
    """Attribute by what each example adds to the logit of the query's label.

    Args:
        l2: The regularisation of the layer.
        layer: Name of the layer whose outputs are the logits; the last linear one if left out.
        tolerance: Length of the gradient of the objective at the end, relative to the mean
            length of the gradients of examples.
        max_steps: Most steps of L-BFGS.

    Example:
        >>> from projections import Classification
        >>> task = Classification(nn.Linear(1, 2, bias=False))
        >>> data = [(torch.tensor([x]), int(x > 0)) for x in (-2.0, -1.0, 1.0, 2.0)]
        >>> fitted = RepresenterPoints(l2=0.1).fit(task, data)
        >>> fitted.scores(task, data[:1], data).values.round(2)
        array([[0.24, 0.68, 0.68, 0.24]])

    References:
        Yeh et al., Representer point selection for explaining deep neural networks (NeurIPS
        2018), arXiv:1811.09720, Theorem 3.1.
    """

    l2: float
    layer: str | None = None
    tolerance: float = 1e-6
    max_steps: int = 1000

    def __post_init__(self) -> None:
        """Check the arguments."""
        check_damping(self.l2)
        check_at_least("tolerance", self.tolerance, 0)
        check_at_least("max_steps", self.max_steps, 1)

    def fit(
        self, task: Task, data: Any, *, settings: PassSettings | None = None
    ) -> "FittedRepresenterPoints":
        """Compute the features, and fit the layer on them; the model itself stays.

        Args:
            task: A task with one label an example.
            data: The training data.
            settings: Batching; its layers are not looked at.

        Raises:
            ConvergenceError: The gradient is above the tolerance after the last step.
            TypeError: The task is no `Classification`, or the layer is not linear.
            ValueError: The outputs of the layer are not the logits.
        """
        rows, reading = as_rows(data), settings or PassSettings()
        layer = last_linear(task.model) if self.layer is None else self.layer
        features, labels = features_and_labels(task, rows, layer, settings=reading)
        head = task.model.get_submodule(layer)
        assert isinstance(head, nn.Linear)
        target = nn.functional.one_hot(labels, head.out_features).double()
        weights = self._minimum(features, target)
        errors = (features @ weights.mT).softmax(-1) - target
        how = {
            "method": describe(self),
            "layer": layer,
            "model": fingerprint_model(task.model),
            "data": rows.fingerprint,
        }
        alphas = -errors / (self.l2 * len(rows))
        return FittedRepresenterPoints(layer, features, alphas, weights, reading, how)

    def _minimum(
        self, features: Float[Tensor, "n i"], target: Float[Tensor, "n o"]
    ) -> Float[Tensor, "o i"]:
        """Return the weights at the minimum, in float64."""
        shape = (target.shape[1], features.shape[1])
        enough = self.tolerance * typical_length(features, target, features.new_zeros(shape))

        def both(flat: np.ndarray) -> tuple[float, np.ndarray]:
            weights = torch.from_numpy(flat).view(shape)
            slope = gradient(features, target, weights, self.l2)
            return objective(features, target, weights, self.l2), slope.flatten().numpy()

        limits = {"maxiter": self.max_steps, "maxfun": 4 * self.max_steps, "maxcor": 30}
        found = minimize(
            both,
            np.zeros(shape[0] * shape[1]),
            jac=True,
            method="L-BFGS-B",
            options={**limits, "ftol": 0.0, "gtol": enough / np.sqrt(shape[0] * shape[1])},
        )
        length = float(np.linalg.norm(found.jac))
        if not length <= enough:
            raise ConvergenceError(
                f"the gradient of the regularised loss must be at most {self.tolerance:.3g} of "
                f"that of an example. After {found.nit} steps it is at "
                f"{length / enough * self.tolerance:.3g}. Raise `max_steps`, `tolerance` or `l2`."
            )
        return torch.from_numpy(found.x).view(shape)


@dataclass(frozen=True)
class FittedRepresenterPoints:
    """The last layer at its minimum, as a sum over training examples.

    Args:
        layer: Name of the layer.
        features: What goes into it for each example.
        alphas: The weight of each example for each class.
        weights: The weights at the minimum.
        settings: Batching of the fit.
        provenance: How it was fitted, as plain JSON values.
    """

    layer: str
    features: Float[Tensor, "n i"]
    alphas: Float[Tensor, "n o"]
    weights: Float[Tensor, "o i"]
    settings: PassSettings
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def scores(
        self, task: Task, queries: Any, data: Any, *, settings: PassSettings | None = None
    ) -> Scores:
        """Return what every training example adds to the logit of each query's label, ``q n``.

        The scores of a query add up to that logit under the fitted layer.

        Args:
            task: The model.
            queries: Queries with labels.
            data: The data of the fit.
            settings: Batching.

        Raises:
            StoreMismatchError: The model or the data is not that of the fit.
        """
        rows, asked = as_rows(data), as_rows(queries)
        check_fitted_to(task, rows, self.provenance)
        reading = settings or self.settings
        features, labels = features_and_labels(task, asked, self.layer, settings=reading)
        values = (features @ self.features.mT) * self.alphas.mT[labels]
        return Scores(rows.ids, {"influence": values.numpy()}, asked.ids, self.provenance)

    def self_influence(
        self, task: Task, data: Any, *, settings: PassSettings | None = None
    ) -> Scores:
        """Return what each example adds to the logit of its own label, ``n``.

        Args:
            task: The model.
            data: The data of the fit.
            settings: Batching.

        Raises:
            StoreMismatchError: The model or the data is not that of the fit.
        """
        rows = as_rows(data)
        check_fitted_to(task, rows, self.provenance)
        reading = settings or self.settings
        features, labels = features_and_labels(task, rows, self.layer, settings=reading)
        own = self.alphas.gather(1, labels[:, None]).squeeze(1) * features.square().sum(1)
        return Scores(rows.ids, {"self_influence": own.numpy()}, provenance=self.provenance)


def features_and_labels(
    task: Task, rows: Rows, layer: str, *, settings: PassSettings
) -> tuple[Float[Tensor, "n i"], Int[Tensor, " n"]]:
    """Return what goes into a layer, with a trailing one for its bias, and the labels.

    Args:
        task: A task with one label an example.
        rows: The examples.
        layer: Name of the layer.
        settings: Batching.

    Raises:
        TypeError: The task is no `Classification`, or the layer is not linear.
        ValueError: The outputs of the layer are not the logits.
    """
    module = dict(task.model.named_modules()).get(layer)
    if not isinstance(task, Classification) or not isinstance(module, nn.Linear):
        raise TypeError(
            "representer points need a Classification task and a linear layer that puts out its "
            f"logits. Got {type(task).__name__} and "
            f"{type(module).__name__} at {layer!r}. Name the head with `layer`."
        )
    features: dict[int, Tensor] = {}
    labels: dict[int, Tensor] = {}
    walked = walk_layer(task, rows, layer, run=task.logits_and_labels, settings=settings)
    for positions, inputs, (logits, own), _ in walked:
        bias = None if module.bias is None else module.bias.detach()
        wanted = nn.functional.linear(inputs, module.weight.detach(), bias)
        near = wanted.shape == logits.shape and torch.allclose(wanted, logits, atol=1e-4, rtol=1e-3)
        if own.dim() != 1 or not near:
            raise ValueError(
                f"the outputs of `layer` must be the logits, one row an example. Those of "
                f"{layer!r} are not. Name the head with `layer`."
            )
        features.update(zip(positions, inputs.double().cpu(), strict=True))
        labels.update(zip(positions, own.cpu(), strict=True))
    whole = torch.stack([features[position] for position in range(len(rows))])
    if module.bias is not None:
        whole = torch.cat([whole, whole.new_ones(len(whole), 1)], 1)
    return whole, torch.stack([labels[position] for position in range(len(rows))])
