"""How many products each solver takes, and how near EK-FAC alone comes.

A perceptron with a normalisation layer on the digits of scikit-learn; influence of the
training rows on queries by the exact Gauss-Newton matrix, at several dampings. The truth is
conjugate gradients at a tolerance of 1e-9 in float64.
"""

import time
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from measuring import options, parse, publish, table
from sklearn.datasets import load_digits
from torch import nn

from influence import (
    ASTRA,
    EKFAC,
    AbsoluteDamping,
    Arnoldi,
    ConjugateGradients,
    CurvaturePreconditioner,
    Diagonal,
    GaussNewton,
    Identity,
    Inverse,
    Neumann,
    Nystroem,
    Products,
    Solver,
)
from projections import Classification, ConvergenceError, PassSettings, Task

MOST = 500  # steps after which a solver is said not to converge


@dataclass(frozen=True)
class Counted:
    """The Gauss-Newton matrix, how often the data was walked over, and for how many vectors."""

    walks: list[int] = field(default_factory=list)
    vectors: list[int] = field(default_factory=list)

    def of(self, task: Task, data: Any, *, settings: PassSettings | None = None) -> Products:
        matrix = GaussNewton(seed=0).of(task, data, settings=settings)

        def linearize(*arguments: Any) -> Any:
            multiply = matrix.linearize(*arguments)
            self.walks.append(1)

            def counted(directions: list[torch.Tensor]) -> Any:
                self.vectors.append(1)
                return multiply(directions)

            return counted

        return replace(matrix, linearize=linearize)


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--num", type=int, default=500, help="training rows")
    parser.add_argument("--queries", type=int, default=4)
    chosen = parse(parser)
    dampings = [1e-1, 1e-2, 1e-3]
    if chosen.quick:
        chosen.num, chosen.queries, dampings = 40, 2, [1e-1]
    task, train, queries = problem(chosen.num, chosen.queries)
    lines = [line for value in dampings for line in compare(task, train, queries, value)]
    head = [
        "damping",
        "solver",
        "walks over the data",
        "products",
        "s of processor",
        "residual",
        "correlation",
    ]
    publish(
        "Solvers",
        [
            f"{chosen.num} rows, {chosen.queries} queries, {size(task)} parameters, float64. "
            "Tolerance 1e-4; 1e-2 for ASTRA and Neumann. Correlation with the truth, all pairs.",
            table(head, lines),
        ],
        chosen.out,
    )


def size(task: Task) -> int:
    """Return the number of parameters."""
    return sum(parameter.numel() for parameter in task.model.parameters())


def problem(num: int, num_queries: int) -> tuple[Task, list[Any], list[Any]]:
    """Train the perceptron."""
    torch.manual_seed(0)
    images, labels = load_digits(return_X_y=True)
    inputs, targets = torch.tensor(images / 16), torch.tensor(labels)
    layers = [nn.Linear(64, 32), nn.ReLU(), nn.LayerNorm(32), nn.Linear(32, 10)]
    model = nn.Sequential(*layers).double()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(150):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs[:num]), targets[:num]).backward()
        optimizer.step()
    rows = [(inputs[row], int(targets[row])) for row in range(num + num_queries)]
    return Classification(model.eval()), rows[:num], rows[num:]


def compare(task: Task, train: list[Any], queries: list[Any], damping: float) -> list[list[str]]:
    """Run every solver at one damping."""
    settings = PassSettings(batch_size=len(train), shard_size=len(train))  # a batch a walk
    ekfac = EKFAC(seed=0).fit(task, train, settings=settings)
    diagonal = Diagonal(seed=0).fit(task, train, settings=settings)
    by_ekfac = CurvaturePreconditioner(ekfac)
    solvers: dict[str, Solver] = {
        "conjugate gradients": ConjugateGradients(max_steps=MOST),
        "... Jacobi": ConjugateGradients(
            max_steps=MOST, preconditioner=CurvaturePreconditioner(diagonal)
        ),
        "... EK-FAC": ConjugateGradients(max_steps=MOST, preconditioner=by_ekfac),
        "... Nystroem, rank 50": ConjugateGradients(
            max_steps=MOST, preconditioner=Nystroem(rank=50, seed=0)
        ),
        "ASTRA": ASTRA(preconditioner=by_ekfac, max_steps=MOST, seed=0),
        "Neumann": Neumann(max_steps=MOST),
        "Arnoldi, 50 of 100": Arnoldi(num_steps=100, num_kept=50, seed=0),
    }
    exact = ConjugateGradients(tolerance=1e-9, max_steps=MOST)
    truth = Inverse(matrix=GaussNewton(seed=0), solver=exact, damping=damping)
    wanted = truth.fit(task, train, settings=settings).scores(task, queries, train).values
    lines = [
        run(task, train, queries, settings, name=name, solver=solver, damping=damping, truth=wanted)
        for name, solver in solvers.items()
    ]
    damped = ekfac.with_damping(AbsoluteDamping(damping))
    for name, fitted in {
        "EK-FAC alone": damped,
        "gradient products": Identity().fit(task, settings=settings),
    }.items():
        found = fitted.scores(task, queries, train).values
        lines.append([f"{damping:g}", name, "", "", "", "", agreement(found, wanted)])
    return lines


def run(
    task: Task,
    train: list[Any],
    queries: list[Any],
    settings: PassSettings,
    *,
    name: str,
    solver: Solver,
    damping: float,
    truth: np.ndarray,
) -> list[str]:
    """Run one solver."""
    matrix, began = Counted(), time.process_time()
    try:
        method = Inverse(matrix=matrix, solver=solver, damping=damping)
        scores = method.fit(task, train, settings=settings).scores(task, queries, train)
    except ConvergenceError:
        return [f"{damping:g}", name, f"refused after {len(matrix.walks)}", "", "", "", ""]
    seconds = time.process_time() - began
    residual = max(solve["residual"] for solve in scores.provenance["solves"])
    cells = [str(len(matrix.walks)), str(len(matrix.vectors)), f"{seconds:.1f}", f"{residual:.1e}"]
    return [f"{damping:g}", name, *cells, agreement(scores.values, truth)]


def agreement(found: np.ndarray, truth: np.ndarray) -> str:
    """Return the correlation over all pairs."""
    return f"{np.corrcoef(found.ravel(), truth.ravel())[0, 1]:.4f}"


if __name__ == "__main__":
    main()
