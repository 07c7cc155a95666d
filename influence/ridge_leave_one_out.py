"""Ridge regression without each example, in closed form.

Letters: ``n`` examples, ``i`` inputs, ``o`` outputs.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from influence.leave_one_out import FittedLeaveOneOut, linear_problem
from projections import PassSettings, Regression, Task, describe


@dataclass(frozen=True, kw_only=True)
class RidgeLeaveOneOut:
    r"""Fit a linear model with half squared errors without each example, exactly.

    .. math::
        W_{-n} = W + \frac{r_n (A^{-1} x_n)^\top}{N (1 - h_n)}, \qquad
        A = \tfrac1N X^\top X + \gamma I, \quad h_n = \tfrac1N x_n^\top A^{-1} x_n

    with the residual :math:`r_n = W x_n - y_n`. Influence is the same without the leverage
    :math:`h_n`. Computed in float64; a bias is regularised like the rest.

    Args:
        l2: The regularisation :math:`\gamma`, which is also the damping of the same problem.

    Example:
        >>> task = Regression(torch.nn.Linear(1, 1, bias=False))
        >>> data = [(torch.tensor([1.0]), torch.tensor([y])) for y in (0.0, 1.0, 5.0)]
        >>> fitted = RidgeLeaveOneOut(l2=0.0).fit(task, data)
        >>> fitted.without.flatten()  # means of the other two
        tensor([3.0000, 2.5000, 0.5000], dtype=torch.float64)

    References:
        Cook, Detection of influential observation in linear regression (Technometrics 1977).
    """

    l2: float

    def __post_init__(self) -> None:
        """Check the argument."""
        if not self.l2 >= 0:
            raise ValueError(f"`l2` must be at least 0. Got {self.l2}.")

    def fit(
        self, task: Task, data: Any, *, settings: PassSettings | None = None
    ) -> FittedLeaveOneOut:
        """Solve once, and correct for each example.

        Args:
            task: A `Regression` task whose model is one `nn.Linear`.
            data: Pairs of inputs and targets.
            settings: Not used: all rows are held at once.
        """
        problem = linear_problem(task, data, Regression)
        targets = problem.targets.double().flatten(1)
        weights, without = ridge_without_each(problem.inputs, targets, self.l2)
        how = {"method": describe(self), "data": problem.rows.fingerprint}
        return FittedLeaveOneOut(problem, weights, without, how)


def ridge_without_each(
    inputs: Float[Tensor, "n i"], targets: Float[Tensor, "n o"], l2: float
) -> tuple[Float[Tensor, "o i"], Float[Tensor, "n o i"]]:
    """Return the weights with all examples and without each.

    Args:
        inputs: One example a row.
        targets: Likewise.
        l2: The regularisation.

    Raises:
        ValueError: Without some example, the problem has more than one solution.
    """
    count, num_in = inputs.shape
    gram = inputs.mT @ inputs / count + l2 * torch.eye(num_in, dtype=inputs.dtype)
    factor, failed = torch.linalg.cholesky_ex(gram)
    solved = torch.cholesky_solve(inputs.mT, factor).mT if not bool(failed) else inputs * torch.nan
    leverages = (inputs * solved).sum(1) / count
    if not bool((leverages < 1 - 1e-12).all()):
        raise ValueError(
            f"`l2` must be positive where an example alone decides a weight. Got {l2}, and "
            f"{count} examples of {num_in} inputs. Raise it."
        )
    weights = torch.cholesky_solve(inputs.mT @ targets / count, factor).mT
    left = inputs @ weights.mT - targets
    change = torch.einsum("no,ni->noi", left, solved)
    return weights, weights + change / (count * (1 - leverages))[:, None, None]
