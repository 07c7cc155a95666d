"""Derivatives of a query's loss after training by what training was told, implicitly.

Letters: ``q`` queries, ``d`` parameters.

At a minimum of the training loss, the parameters depend on its hyper-parameters through one
linear system with its Hessian; the solver is any of `Inverse`.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from influence.inverse import FittedInverse
from projections import PassSettings, Ranks, Task, as_rows

HyperLosses = Callable[[Any], Tensor]
"""From a batch of training data to one loss an example, which depends on hyper-parameters."""


def hypergradients(
    inverse: FittedInverse,
    task: Task,
    queries: Any,
    *,
    losses: HyperLosses,
    hyper: Sequence[Tensor],
    settings: PassSettings | None = None,
) -> list[Tensor]:
    r"""Return the derivative of the mean measurement of queries by hyper-parameters.

    .. math::
        \frac{dL_q}{d\phi} = - g_q^\top (H + \lambda I)^{-1}
        \frac{\partial^2}{\partial \theta\, \partial \phi} \frac1n \sum_n \ell_n(\theta, \phi)

    Args:
        inverse: The damped inverse Hessian of the training loss, fitted to the training data:
            `Inverse` with `Hessian`, whose damping is the l2 regularisation of training.
        task: The model at the minimum; its `measurements` are the queries.
        queries: A dataset of queries.
        losses: The loss of each example of a training batch, with the model of the task and the
            hyper-parameters in its graph.
        hyper: The hyper-parameters, which require gradients.
        settings: Batching of the queries.

    Returns:
        One tensor of the shape of each hyper-parameter; below zero where raising it helps.

    Raises:
        ConvergenceError: The solver did not reach its tolerance.
        ValueError: The losses do not depend on a hyper-parameter.

    Example:
        >>> from influence import ConjugateGradients, Hessian, Inverse
        >>> from projections import Regression
        >>> model = torch.nn.Linear(1, 1, bias=False)  # minimises (w - 2)^2 / 2 + w^2 / 2
        >>> _ = torch.nn.init.ones_(model.weight)
        >>> task, data = Regression(model), [(torch.ones(1), torch.tensor([2.0]))]
        >>> solver = ConjugateGradients(tolerance=1e-6)
        >>> inverse = Inverse(matrix=Hessian(), solver=solver, damping=1.0).fit(task, data)
        >>> scale = torch.ones(1, requires_grad=True)  # of the target
        >>> losses = lambda batch: (model(batch[0]) - scale * batch[1]).square().sum(1) / 2
        >>> hypergradients(inverse, task, data, losses=losses, hyper=[scale])
        [tensor([-1.])]

    References:
        Lorraine, Vicol and Duvenaud, Optimizing millions of hyperparameters by implicit
        differentiation (AISTATS 2020), arXiv:1911.02590, for the implicit function theorem.
    """
    asked = as_rows(queries)
    matrix = inverse.matrix
    gradient = inverse.mean_gradient(task, asked, settings=settings)
    solved = inverse.solve(gradient[None]).vectors
    directions = [block[0] for block in matrix.space.split(solved)]
    totals = [torch.zeros_like(value) for value in hyper]
    for _, batch in matrix.batches(Ranks()):
        with torch.enable_grad():
            slopes = torch.autograd.grad(
                losses(batch).sum(), matrix.space.parameters, create_graph=True, allow_unused=True
            )
            pairs = zip(slopes, directions, strict=True)
            found = [(s * d).sum() for s, d in pairs if s is not None and s.requires_grad]
            parts = torch.autograd.grad(torch.stack(found).sum(), hyper, allow_unused=True)
        for position, (total, part) in enumerate(zip(totals, parts, strict=True)):
            if part is None:
                raise ValueError(
                    f"`losses` must depend on every hyper-parameter through its gradient. They do "
                    f"not on `hyper[{position}]`. Leave it out, or put it into the losses."
                )
            total -= part / matrix.num_rows
    return totals
