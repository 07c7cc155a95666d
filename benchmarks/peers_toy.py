"""One toy, its truth written out in float64, and what this and other libraries make of it.

    python benchmarks/peers_toy.py --kronfluence-python PY --dattri-python PY \
        --captum-python PY --pydvl-python PY --out benchmarks/peers_toy.md

Every peer runs `toy_peers.py` with the interpreter of an environment of its own. A library may
divide its scores by what it likes, and call harm positive: the table has the relative error of
the scores as they come, and of the best multiple of them.
"""

import json
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measuring import options, parse, publish, table
from torch import nn

from influence import (
    EKFAC,
    AbsoluteDamping,
    ConjugateGradients,
    DataInf,
    GradientDot,
    Hessian,
    Inverse,
    LastLayerTracIn,
    ModelCheckpoint,
    RowInfluence,
    copy_state,
)
from projections import Classification, Task

DAMPING = 0.5
NUM_ROWS, NUM_QUERIES = 14, 3
PEERS = ("kronfluence", "dattri", "captum", "pydvl")
METHODS = (
    "gradient dot",
    "gradient dot, last layer",
    "the same without its bias",
    "damped Hessian",
    "damped Hessian, conjugate gradients",
    "DataInf",
    "EK-FAC, labels of the data",
    "EK-FAC, expectation over labels",
)


def toy() -> tuple[Task, list[Any], list[Any]]:
    """A perceptron of 31 parameters, training rows and queries."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double().eval()
    rows = [(torch.randn(3).double(), row % 3) for row in range(NUM_ROWS + NUM_QUERIES)]
    return Classification(model), rows[:NUM_ROWS], rows[NUM_ROWS:]


def written_out(task: Task, train: list[Any], queries: list[Any]) -> dict[str, np.ndarray]:
    """The scores of every method by dense algebra, with autograd for the only tool."""
    model: Any = task.model
    named = dict(model.named_parameters())
    sizes = [value.numel() for value in named.values()]
    flat = torch.cat([value.detach().flatten() for value in named.values()])

    def losses(vector: torch.Tensor, rows: list[Any]) -> torch.Tensor:
        parts = zip(named, vector.split(sizes), strict=True)
        state = {name: part.view_as(named[name]) for name, part in parts}
        inputs, labels = torch.stack([r[0] for r in rows]), torch.tensor([r[1] for r in rows])
        outputs = torch.func.functional_call(model, state, (inputs,))
        return nn.functional.cross_entropy(outputs, labels, reduction="none")

    G, Q = (
        torch.func.jacrev(lambda v, rows=rows: losses(v, rows))(flat).detach()
        for rows in (train, queries)
    )
    H = torch.func.hessian(lambda v: losses(v, train).mean())(flat).detach()
    eye = DAMPING * torch.eye(len(flat), dtype=torch.float64)
    exact = Q @ torch.linalg.solve(H + eye, G.T)
    with torch.no_grad():
        inputs = torch.stack([row[0] for row in train])
        p = model(inputs).softmax(-1)
    # The loss under every label, times the root of its probability.
    each = [
        torch.func.jacrev(lambda v, c=c: losses(v, [(row[0], c) for row in train]))(flat).detach()
        * p[:, c : c + 1].sqrt()
        for c in range(3)
    ]
    swapped, empirical, expected = (torch.zeros_like(exact) for _ in range(3))
    for some, shape in ((slice(0, 16), (4, 3)), (slice(16, 31), (3, 4))):
        g, q = G[:, some], Q[:, some]
        own = DAMPING * torch.eye(g.shape[1], dtype=torch.float64)
        inverse = torch.stack([torch.linalg.inv(torch.outer(x, x) + own) for x in g]).mean(0)
        swapped += q @ inverse @ g.T
        with torch.no_grad():
            a = inputs if some.start == 0 else model[1](model[0](inputs))
        a = torch.cat([a, torch.ones(len(a), 1, dtype=torch.float64)], 1)
        empirical += ek_fac(a, [g], g, q, shape)
        expected += ek_fac(a, [one[:, some] for one in each], g, q, shape)
    found = {
        "gradient dot": Q @ G.T,
        "gradient dot, last layer": Q[:, 16:] @ G[:, 16:].T,
        "the same without its bias": Q[:, 16:28] @ G[:, 16:28].T,
        "damped Hessian": exact,
        "damped Hessian, conjugate gradients": exact,
        "DataInf": swapped,
        "EK-FAC, labels of the data": empirical,
        "EK-FAC, expectation over labels": expected,
    }
    return {name: value.numpy() for name, value in found.items()}


def ek_fac(
    a: torch.Tensor,
    fisher: list[torch.Tensor],
    g: torch.Tensor,
    q: torch.Tensor,
    shape: tuple[int, int],
) -> torch.Tensor:
    """EK-FAC of one layer with its basis multiplied out.

    Inputs with a one, gradients that make the Fisher matrix (their outer products are summed),
    those of examples and of queries, and the shape of the weight.
    """

    def matrix(rows: torch.Tensor) -> torch.Tensor:
        weight, bias = rows.split([shape[0] * shape[1], shape[0]], 1)
        return torch.cat([weight.view(-1, *shape), bias[..., None]], 2)

    # With a one among the inputs, the gradient of the bias is that of the outputs.
    outputs = [matrix(rows)[..., -1] for rows in fisher]
    left = torch.linalg.eigh(sum(x.T @ x for x in outputs) / len(a)).eigenvectors
    right = torch.linalg.eigh(a.T @ a / len(a)).eigenvectors
    basis = torch.kron(left, right)
    squares = sum((matrix(rows).flatten(1) @ basis).square().mean(0) for rows in fisher)
    return (matrix(q).flatten(1) @ basis) / (squares + DAMPING) @ (matrix(g).flatten(1) @ basis).T


def ours(task: Task, train: list[Any], queries: list[Any]) -> dict[str, np.ndarray]:
    """What this library returns for the same."""
    here = ModelCheckpoint(state=copy_state(task.model))
    solver = ConjugateGradients(tolerance=1e-10)
    damping = AbsoluteDamping(DAMPING)
    methods: dict[str, Any] = {
        "gradient dot": RowInfluence(metric=GradientDot()),
        "gradient dot, last layer": LastLayerTracIn(checkpoints=[here]),
        "damped Hessian, conjugate gradients": Inverse(
            matrix=Hessian(), solver=solver, damping=DAMPING
        ),
        "DataInf": DataInf(damping=damping),
        "EK-FAC, labels of the data": EKFAC(seed=0, fisher="empirical", damping=damping),
        "EK-FAC, expectation over labels": EKFAC(seed=0, fisher="exact", damping=damping),
    }
    found = {
        name: method.fit(task, train).scores(task, queries, train).values
        for name, method in methods.items()
    }
    model: Any = task.model
    model[2].bias.requires_grad_(False)
    last = methods["gradient dot, last layer"].fit(task, train)
    found["the same without its bias"] = last.scores(task, queries, train).values
    model[2].bias.requires_grad_(True)
    return found


def theirs(name: str, python: str, request: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """What a peer returns, and why it returns nothing."""
    script, out = Path(__file__).parent / "toy_peers.py", request.parent / f"{name}.npz"
    done = subprocess.run(
        [python, str(script), name, str(request), str(out)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        reason = done.stderr.strip().split("\n")[-1][:100]
        return {}, dict.fromkeys(METHODS, reason)
    reasons = json.loads(Path(f"{out}.json").read_text())
    return dict(np.load(out)), reasons


def compared(found: np.ndarray, wanted: np.ndarray) -> str:
    """The relative error of scores as they come, and of the best multiple of them."""
    if found.shape != wanted.shape:
        return f"shape {found.shape}"
    size = np.linalg.norm(wanted)
    plain = np.linalg.norm(found - wanted) / size
    if plain < 1e-6:
        return f"{plain:.0e}"
    multiple = float((found * wanted).sum() / max((found**2).sum(), 1e-300))
    return (
        f"{plain:.1e}; times {multiple:.4g}: {np.linalg.norm(multiple * found - wanted) / size:.0e}"
    )


def rows_of(
    truth: Mapping[str, np.ndarray],
    answers: Mapping[str, tuple[Mapping[str, np.ndarray], Mapping[str, str]]],
) -> list[list[str]]:
    """One row a method, one column a library."""
    table = []
    for method in METHODS:
        row = [method]
        for scores, reasons in answers.values():
            if method in scores:
                row.append(compared(scores[method], truth[method]))
            else:
                row.append(reasons.get(method, "-"))
        table.append(row)
    return table


def main() -> None:
    """Publish the table."""
    parser = options(__doc__)
    for name in PEERS:
        parser.add_argument(f"--{name}-python", help=f"interpreter that has {name}")
    chosen = parse(parser)
    task, train, queries = toy()
    truth = written_out(task, train, queries)
    answers: dict[str, Any] = {"gradsift": (ours(task, train, queries), {})}
    with tempfile.TemporaryDirectory() as folder:
        request = Path(folder) / "toy.pt"
        torch.save(as_tensors(task, train, queries), request)
        for name in PEERS:
            if python := getattr(chosen, f"{name}_python"):
                answers[name] = theirs(name, python, request)
    text = table(["scores", *answers], rows_of(truth, answers))
    publish("One toy, several libraries", [text], chosen.out)


def as_tensors(task: Task, train: list[Any], queries: list[Any]) -> dict[str, Any]:
    """The toy as tensors that other interpreters read."""
    kept: dict[str, Any] = {"state": copy_state(task.model), "damping": DAMPING}
    for names, rows in ((("inputs", "labels"), train), (("asked", "wanted"), queries)):
        kept[names[0]] = torch.stack([row[0] for row in rows])
        kept[names[1]] = torch.tensor([row[1] for row in rows])
    return kept


if __name__ == "__main__":
    main()
