"""Logistic regression without each example, by Newton's method on all of them at once.

Letters: ``n`` examples, ``m`` examples left out at a time, ``i`` inputs, ``o`` classes.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from influence.leave_one_out import FittedLeaveOneOut, linear_problem
from influence.solver import check_damping
from projections import (
    Classification,
    ConvergenceError,
    PassSettings,
    Task,
    check_at_least,
    describe,
)

GROUP_ENTRIES = 1 << 24  # logits held at a time


@dataclass(frozen=True, kw_only=True)
class LogisticLeaveOneOut:
    r"""Fit multinomial logistic regression without each example, to a tolerance.

    The optimum with all examples comes by Newton's method with halved steps. From there, each
    optimum without an example comes by steps with one factored Hessian, that of all examples:
    they converge since the Hessian without an example is the smaller one. Computed in float64;
    a bias is regularised like the rest. For up to some hundreds of weights and thousands of
    examples: a step takes ``n n i o`` operations.

    Args:
        l2: The regularisation, which is also the damping of the same problem.
        tolerance: Length of the gradient of every objective at the end, relative to the mean
            length of the gradients of examples.
        max_steps: Most steps.

    Example:
        >>> task = Classification(torch.nn.Linear(1, 2, bias=False))
        >>> data = [(torch.tensor([x]), int(x > 0)) for x in (-2.0, -1.0, 1.0, 2.0)]
        >>> fitted = LogisticLeaveOneOut(l2=0.1).fit(task, data)
        >>> fitted.without.shape, bool((fitted.without[0] == fitted.weights).all())
        (torch.Size([4, 2, 1]), False)

    References:
        Koh and Liang (ICML 2017), arXiv:1703.04730, Sec. 4.1, for the comparison with influence.
    """

    l2: float
    tolerance: float = 1e-10
    max_steps: int = 200

    def __post_init__(self) -> None:
        """Check the arguments."""
        check_damping(self.l2)
        check_at_least("tolerance", self.tolerance, 0)
        check_at_least("max_steps", self.max_steps, 1)

    def fit(
        self, task: Task, data: Any, *, settings: PassSettings | None = None
    ) -> FittedLeaveOneOut:
        """Solve with all examples and without each.

        Args:
            task: A `Classification` task whose model is one `nn.Linear`.
            data: Pairs of inputs and labels.
            settings: Not used: all rows are held at once.

        Raises:
            ConvergenceError: A gradient is above the tolerance after the last step.
        """
        problem = linear_problem(task, data, Classification)
        model = problem.space.model
        assert isinstance(model, torch.nn.Linear)
        target = functional.one_hot(problem.targets, model.out_features).double()
        weights = self._optimum(problem.inputs, target)
        without = self._without_each(problem.inputs, target, weights)
        how = {"method": describe(self), "data": problem.rows.fingerprint}
        return FittedLeaveOneOut(problem, weights, without, how)

    def _optimum(
        self, inputs: Float[Tensor, "n i"], target: Float[Tensor, "n o"]
    ) -> Float[Tensor, "o i"]:
        """Return the weights with all examples."""
        weights = inputs.new_zeros(target.shape[1], inputs.shape[1])
        enough = self.tolerance * typical_length(inputs, target, weights)
        for _ in range(self.max_steps):
            slope = gradient(inputs, target, weights, self.l2)
            if slope.norm() <= enough:
                return weights
            factor = torch.linalg.cholesky(hessian(inputs, weights, self.l2))
            step = torch.cholesky_solve(slope.reshape(-1, 1), factor).view_as(weights)
            weights = self._halved(inputs, target, weights, step)
        raise self._refusal(float(gradient(inputs, target, weights, self.l2).norm() / enough))

    def _halved(self, inputs: Tensor, target: Tensor, weights: Tensor, step: Tensor) -> Tensor:
        """Return the weights after the longest half of a half of a step that does not climb."""
        before = objective(inputs, target, weights, self.l2)
        for _ in range(30):
            # Near the optimum the objective is flat to rounding, and the whole step is right.
            if objective(inputs, target, weights - step, self.l2) <= before * (1 + 1e-14):
                break
            step = step / 2
        return weights - step

    def _without_each(
        self, inputs: Float[Tensor, "n i"], target: Float[Tensor, "n o"], weights: Tensor
    ) -> Float[Tensor, "n o i"]:
        """Return the weights without each example."""
        count = len(inputs)
        factor = torch.linalg.cholesky(hessian(inputs, weights, self.l2))
        enough = self.tolerance * typical_length(inputs, target, torch.zeros_like(weights))
        groups = torch.arange(count).split(max(1, GROUP_ENTRIES // target.numel()))
        found = []
        for out in groups:
            places = weights.expand(len(out), *weights.shape).clone()
            for step in range(self.max_steps + 1):
                slopes = gradients_without(inputs, target, places, out, self.l2)
                longest = float(slopes.flatten(1).norm(dim=1).max() / enough)
                if longest <= 1:
                    break
                if step == self.max_steps:
                    raise self._refusal(longest)
                places -= torch.cholesky_solve(slopes.flatten(1).mT, factor).mT.view_as(places)
            found.append(places)
        return torch.cat(found)

    def _refusal(self, times: float) -> ConvergenceError:
        """Return the error of a gradient that is too long."""
        return ConvergenceError(
            f"the gradient of every objective must be at most {self.tolerance:.3g} of that of an "
            f"example. After {self.max_steps} steps one is at {times * self.tolerance:.3g}. Raise "
            "`max_steps`, `tolerance` or `l2`."
        )


def objective(inputs: Tensor, target: Tensor, weights: Tensor, l2: float) -> float:
    """Return the mean loss plus the regularisation."""
    losses = -(target * (inputs @ weights.mT).log_softmax(-1)).sum(1)
    return float(losses.mean() + l2 / 2 * weights.square().sum())


def gradient(inputs: Tensor, target: Tensor, weights: Tensor, l2: float) -> Float[Tensor, "o i"]:
    """Return its gradient."""
    errors = (inputs @ weights.mT).softmax(-1) - target
    return errors.mT @ inputs / len(inputs) + l2 * weights


def gradients_without(
    inputs: Tensor,
    target: Tensor,
    weights: Float[Tensor, "m o i"],
    out: Int[Tensor, " m"],
    l2: float,
) -> Float[Tensor, "m o i"]:
    """Return the gradient of each objective without one example, each at weights of its own."""
    errors = torch.einsum("ni,moi->mno", inputs, weights).softmax(-1) - target
    errors[torch.arange(len(out)), out] = 0
    return torch.einsum("mno,ni->moi", errors, inputs) / len(inputs) + l2 * weights


def hessian(inputs: Tensor, weights: Tensor, l2: float) -> Float[Tensor, "d d"]:
    """Return the Hessian over the flattened weights."""
    p = (inputs @ weights.mT).softmax(-1)
    middle = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    whole = torch.einsum("ni,nop,nj->oipj", inputs, middle, inputs) / len(inputs)
    size = weights.numel()
    return whole.reshape(size, size) + l2 * torch.eye(size, dtype=weights.dtype)


def typical_length(inputs: Tensor, target: Tensor, weights: Tensor) -> float:
    """Return the mean length of the gradients of examples."""
    errors = (inputs @ weights.mT).softmax(-1) - target
    return float((errors.norm(dim=1) * inputs.norm(dim=1)).mean())
