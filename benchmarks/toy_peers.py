"""Other libraries on the toy of `peers_toy.py`, each run in an environment of its own.

``python toy_peers.py LIBRARY REQUEST OUT``: reads the toy, writes one matrix of scores, queries
by examples, for each method of the library that can be asked for it, or the reason why not.
"""

import json
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

warnings.filterwarnings("ignore")
torch.set_default_dtype(torch.float64)


class Toy:
    """The model and the data of a request."""

    def __init__(self, path: str) -> None:
        kept = torch.load(path, weights_only=True)
        self.model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).eval()
        self.state, self.damping = kept["state"], kept["damping"]
        self.model.load_state_dict(self.state)
        self.train = TensorDataset(kept["inputs"], kept["labels"])
        self.queries = TensorDataset(kept["asked"], kept["wanted"])

    def loaders(self) -> tuple[DataLoader, DataLoader]:
        return DataLoader(self.train, batch_size=64), DataLoader(self.queries, batch_size=64)


def kronfluence(toy: Toy) -> dict[str, Callable[[], Any]]:
    """Plain products, and EK-FAC with the labels of the data."""
    from kronfluence.analyzer import Analyzer, prepare_model
    from kronfluence.arguments import FactorArguments, ScoreArguments
    from kronfluence.task import Task

    class ToyTask(Task):
        def compute_train_loss(self, batch: Any, model: Any, sample: bool = False) -> Any:
            return functional.cross_entropy(model(batch[0]), batch[1], reduction="sum")

        def compute_measurement(self, batch: Any, model: Any) -> Any:
            return self.compute_train_loss(batch, model)

    task = ToyTask()
    model = prepare_model(toy.model, task)

    def scores(strategy: str, damping: float) -> Any:
        kinds = ("activation_covariance", "gradient_covariance", "per_sample_gradient", "lambda")
        double = {f"{kind}_dtype": torch.float64 for kind in kinds}
        with tempfile.TemporaryDirectory() as work:
            analyzer = Analyzer("toy", model, task, cpu=True, output_dir=work, disable_tqdm=True)
            factors = FactorArguments(strategy=strategy, use_empirical_fisher=True, **double)
            analyzer.fit_all_factors("f", toy.train, factor_args=factors)
            how = ScoreArguments(
                damping_factor=damping,
                score_dtype=torch.float64,
                per_sample_gradient_dtype=torch.float64,
                precondition_dtype=torch.float64,
                query_gradient_svd_dtype=torch.float64,
            )
            analyzer.compute_pairwise_scores(
                "s",
                "f",
                toy.queries,
                toy.train,
                per_device_query_batch_size=3,
                per_device_train_batch_size=5,
                score_args=how,
            )
            return analyzer.load_pairwise_scores("s")["all_modules"]

    return {
        "gradient dot": lambda: scores("identity", 0.0),
        "EK-FAC, labels of the data": lambda: scores("ekfac", toy.damping),
    }


def dattri(toy: Toy) -> dict[str, Callable[[], Any]]:
    """What its attributors return for one checkpoint, examples by queries."""
    from dattri.algorithm import influence_function as functions
    from dattri.algorithm.tracin import TracInAttributor
    from dattri.task import AttributionTask

    def loss(params: Any, batch: Any) -> Any:
        inputs, labels = batch
        outputs = torch.func.functional_call(toy.model, params, (inputs,))
        return functional.cross_entropy(outputs, labels)

    task = AttributionTask(loss_func=loss, model=toy.model, checkpoints=toy.state)
    train, queries = toy.loaders()

    def products() -> Any:
        found = TracInAttributor(
            task=task, weight_list=torch.ones(1), normalized_grad=False, device="cpu"
        )
        found.projector_kwargs = None  # it would project to 512 random dimensions by itself
        return found.attribute(train, queries).T

    def solved(kind: str, **options: Any) -> Any:
        found = getattr(functions, kind)(task=task, device="cpu", **options)
        found.cache(train)
        return found.attribute(train, queries).T

    return {
        "gradient dot": products,
        "damped Hessian": lambda: solved("IFAttributorExplicit", regularization=toy.damping),
        "damped Hessian, conjugate gradients": lambda: solved(
            "IFAttributorCG", regularization=toy.damping, max_iter=20
        ),
        "DataInf": lambda: solved("IFAttributorDataInf", regularization=toy.damping),
        "EK-FAC, labels of the data": lambda: solved("IFAttributorEKFAC", damping=toy.damping),
    }


def captum(toy: Toy) -> dict[str, Callable[[], Any]]:
    """TracIn with one checkpoint, and the influence function with the Hessian written out."""
    from captum.influence import TracInCP, TracInCPFast
    from captum.influence._core.influence_function import NaiveInfluenceFunction

    def load(model: Any, path: str) -> float:
        model.load_state_dict(torch.load(path, weights_only=True))
        return 1.0

    folder = tempfile.mkdtemp()
    path = f"{folder}/state.pt"
    torch.save(toy.state, path)
    inputs, labels = toy.queries.tensors
    shared = {"checkpoints_load_func": load, "batch_size": 4}
    each = nn.CrossEntropyLoss(reduction="none")

    def products() -> Any:
        kind = TracInCP(toy.model, toy.train, [path], loss_fn=each, **shared)
        return kind.influence((inputs, labels))

    def fast() -> Any:
        total = nn.CrossEntropyLoss(reduction="sum")
        kind = TracInCPFast(toy.model, toy.model[2], toy.train, [path], loss_fn=total, **shared)
        return kind.influence((inputs, labels))

    def solved() -> Any:
        kind = NaiveInfluenceFunction(
            toy.model,
            toy.train,
            path,
            loss_fn=each,
            projection_dim=31,
            hessian_reg=toy.damping * len(toy.train),
            hessian_inverse_tol=-1.0,
            **shared,
        )
        return kind.influence((inputs, labels))

    return {
        "gradient dot": products,
        "the same without its bias": fast,
        "damped Hessian": solved,
    }


def pydvl(toy: Toy) -> dict[str, Callable[[], Any]]:
    """Its models of the inverse, fitted with one damping."""
    from pydvl.influence import torch as models
    from pydvl.influence.torch.util import BlockMode

    train, _ = toy.loaders()
    loss = functional.cross_entropy

    def found(model: Any) -> Any:
        fitted = model.fit(train)
        return fitted.influences(*toy.queries.tensors, *toy.train.tensors)

    return {
        "damped Hessian": lambda: found(
            models.DirectInfluence(toy.model, loss, regularization=toy.damping)
        ),
        "damped Hessian, conjugate gradients": lambda: found(
            models.CgInfluence(
                toy.model, loss, regularization=toy.damping, rtol=1e-10, atol=1e-12, maxiter=500
            )
        ),
        "DataInf": lambda: found(
            models.InverseHarmonicMeanInfluence(
                toy.model,
                loss,
                regularization=toy.damping,
                block_structure=BlockMode.LAYER_WISE,
            )
        ),
        "EK-FAC, expectation over labels": lambda: found(
            models.EkfacInfluence(
                toy.model, update_diagonal=True, hessian_regularization=toy.damping
            )
        ),
    }


LIBRARIES = {"kronfluence": kronfluence, "dattri": dattri, "captum": captum, "pydvl": pydvl}


def main() -> None:
    """Ask one library for all it can say."""
    name, request, out = sys.argv[1:]
    scores, reasons = {}, {}
    for method, ask in LIBRARIES[name](Toy(request)).items():
        try:
            scores[method] = np.asarray(torch.as_tensor(ask()).detach().double())
        except Exception as error:
            reasons[method] = f"{type(error).__name__}: {error}".split("\n")[0][:100]
    np.savez(out, **scores)
    Path(out + ".json").write_text(json.dumps(reasons))


if __name__ == "__main__":
    main()
