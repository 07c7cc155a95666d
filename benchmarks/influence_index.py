"""The influence index against retraining: LDS of EK-FAC, of the index, and of its dampings.

    python benchmarks/influence_index.py                      # digits of scikit-learn, minutes
    python benchmarks/influence_index.py --data mnist.npz     # the set-up of the issue, longer

One perceptron is trained on all examples, and one hundred on random halves (mean of three
seeds, all trained as one batched computation). LDS is the mean over queries of the rank
correlation between summed scores and the retrained models' negative losses; the error is
the standard error over queries. "x floor" is a multiple of the noise floor, the trace of the
Gram matrix over the number of examples, which is the default damping.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from measuring import options, publish, table
from retraining import Recipe, losses_of_many, one_model, train_many
from sklearn.datasets import load_digits
from torch import Tensor

from influence import (
    EKFAC,
    AbsoluteDamping,
    FittedCurvature,
    RelativeDamping,
    build_index,
    linear_datamodeling_score,
    recipe_damping,
)
from projections import Classification, PassSettings

READING = PassSettings(batch_size=256)
MULTIPLES = (0.1, 0.3, 1.0, 3.0, 10.0)


@dataclass(frozen=True)
class Setup:
    """Data, recipe, and what retraining did."""

    train: tuple[Tensor, Tensor]
    queries: tuple[Tensor, Tensor]
    recipe: Recipe
    masks: np.ndarray
    losses: np.ndarray
    task: Classification

    def lds(self, scores: np.ndarray) -> str:
        found = linear_datamodeling_score(self.masks, scores, self.losses)
        return f"{found.mean:.3f} ± {found.standard_error:.3f}"

    def rows(self, part: tuple[Tensor, Tensor]) -> list[tuple[Tensor, int]]:
        return list(zip(part[0], part[1].tolist(), strict=True))


def read_data(path: Path | None) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor], Recipe]:
    """Return training set, queries and recipe."""
    if path is None:
        images, labels = load_digits(return_X_y=True)
        inputs, targets = torch.tensor(images / 16, dtype=torch.float32), torch.tensor(labels)
        order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(5))
        a, b = order[:1200], order[1200:1500]
        recipe = Recipe(widths=(64, 64, 32, 10), learning_rate=0.02, epochs=40)
        return (inputs[a], targets[a]), (inputs[b], targets[b]), recipe
    files = np.load(path)
    parts = []
    for part, count in (("train", 5000), ("test", 500)):
        flat = torch.from_numpy(files[f"x_{part}"][:count].reshape(count, -1)).float() / 255
        parts.append((flat, torch.from_numpy(files[f"y_{part}"][:count]).long()))
    return parts[0], parts[1], Recipe()


def retrain(path: Path | None, num_subsets: int, num_seeds: int, epochs: int | None) -> Setup:
    """Train the model and those on halves."""
    train, queries, recipe = read_data(path)
    if epochs is not None:
        recipe = Recipe(recipe.widths, recipe.learning_rate, epochs=epochs)
    size = len(train[0])
    generator = torch.Generator().manual_seed(123)
    subsets = [torch.randperm(size, generator=generator)[: size // 2] for _ in range(num_subsets)]
    masks = np.zeros((num_subsets, size), dtype=np.int8)
    for row, subset in enumerate(subsets):
        masks[row, subset.numpy()] = 1
    losses = [
        losses_of_many(train_many(*train, subsets, recipe, seed=100 + seed), *queries).numpy()
        for seed in range(num_seeds)
    ]
    model = one_model(train_many(*train, [torch.arange(size)], recipe, seed=0), recipe)
    return Setup(train, queries, recipe, masks, np.mean(losses, 0), Classification(model))


def full_rows(setup: Setup, fitted: FittedCurvature) -> Iterator[list[str]]:
    """Yield a row for each damping of full EK-FAC."""
    steps = len(setup.train[0]) // setup.recipe.batch_size * setup.recipe.epochs
    recipe = recipe_damping(
        learning_rate=setup.recipe.learning_rate, momentum=setup.recipe.momentum, num_steps=steps
    )
    dampings = {f"{m:g} x layer mean": RelativeDamping(m) for m in (0.1, 1.0, 3.0, 10.0)}
    dampings[f"recipe, {recipe.value:.2g}"] = recipe
    train, queries = setup.rows(setup.train), setup.rows(setup.queries)
    for name, damping in dampings.items():
        chosen = fitted.with_damping(damping)
        scores = chosen.scores(setup.task, queries, train, settings=READING).values
        yield ["full EK-FAC", "all", name, setup.lds(scores)]


def index_rows(setup: Setup, fitted: FittedCurvature, num_dims: int) -> Iterator[list[str]]:
    """Yield rows for one number of dimensions."""
    train, queries = setup.rows(setup.train), setup.rows(setup.queries)
    kinds = {"joint Gram, exact labels": "exact", "joint Gram, data's labels": "empirical"}
    for name, gram in {**kinds, "eigenvalues": None}.items():
        for dtype in ("float32", "int8") if gram == "exact" else ("float32",):
            with TemporaryDirectory() as folder:
                index = build_index(
                    fitted,
                    setup.task,
                    train,
                    num_dims=num_dims,
                    path=folder,
                    gram=gram,
                    row_dtype=dtype,
                    settings=READING,
                )
                rows = index.store.rows(range(len(index)))
                chosen = (1.0,) if dtype == "int8" else MULTIPLES
                for multiple in chosen:
                    moved = index.with_damping(index.damping * multiple)
                    asked = moved.query_rows(setup.task, queries, settings=READING)
                    unit = "floor" if gram else "default"
                    label = f"{multiple:g} x {unit}" + (" (default)" if multiple == 1 else "")
                    yield [
                        f"index, {name}, {dtype}",
                        str(num_dims),
                        label,
                        setup.lds(asked @ rows.T),
                    ]


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--data", type=Path, help="an mnist.npz; digits if left out")
    parser.add_argument("--dims", type=int, nargs="+", default=[256, 1024, 4096])
    arguments = parser.parse_args()
    quick = arguments.quick
    setup = retrain(arguments.data, *((8, 1, 2) if quick else (100, 3, None)))
    train = setup.rows(setup.train)
    fitted = EKFAC(seed=0, fisher="exact").fit(setup.task, train, settings=READING)
    plain = fitted.with_damping(AbsoluteDamping(1e6))
    scores = plain.scores(setup.task, setup.rows(setup.queries), train, settings=READING).values
    rows = [["gradient dot product", "all", "", setup.lds(scores)]]
    rows += full_rows(setup, fitted)
    for num_dims in [64] if quick else arguments.dims:
        rows += index_rows(setup, fitted, num_dims)
    what = "MNIST, 5,000 and 500" if arguments.data else "digits, 1,200 and 300"
    head = ["method", "dimensions", "damping", "LDS"]
    publish(f"The influence index against retraining ({what})", [table(head, rows)], arguments.out)


if __name__ == "__main__":
    main()
