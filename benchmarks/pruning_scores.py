"""Every score of every training example, turned so that larger is more suspicious.

Letters: ``n`` training examples, ``m`` models, ``c`` classes.
"""

import subprocess
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from jaxtyping import Float
from pruning_problems import BATCH, RATE, Problem, training
from retraining import train_many
from torch import Tensor
from torch.func import functional_call

from influence import EKFAC, TRAK, Recipe, classification_losses
from projections import (
    SJLT,
    Classification,
    Embeddings,
    GradientNorm,
    GradientStore,
    LayerInputs,
    PassSettings,
    Sketch,
    Statistic,
    StoreWriter,
    WeightAlignment,
    run_pass,
)
from selection import (
    Folds,
    KCenter,
    LearningHistory,
    find_nearest,
    memorisation,
    score_agreement,
    score_cluster_distance,
)

READING = PassSettings(batch_size=256)
Suspicion = dict[str, Float[np.ndarray, " n"]]


def score_all(problem: Problem, seed: int, peer: Path | None) -> Suspicion:
    """Return every score of a problem."""
    history = LearningHistory(np.arange(len(problem)))
    found: Suspicion = {}
    models = training(problem, problem.given, problem.epochs, seed)
    for epoch, model in enumerate(models, 1):
        with torch.no_grad():
            right = model(problem.inputs).argmax(1) == problem.given
        history.update(np.arange(len(problem)), right.numpy())
        if epoch == problem.score_epoch:
            found = one_pass(problem, Classification(model), seed)
    learnt = history.scores()
    found["forgetting"] = learnt["forgetting"].values
    found["first learnt"] = learnt["first_learnt"].values
    found["consistency"] = -learnt["consistency"].values
    found |= held_out(problem, seed, peer)
    found["k-centre"] = k_center_ranks(problem)
    found["random"] = np.random.default_rng((seed, 7)).random(len(problem))
    return found


def one_pass(problem: Problem, task: Classification, seed: int) -> Suspicion:
    """Return what one pass over the data gives, and EK-FAC's own three."""
    rows, model = problem.rows(), task.model
    columns = [
        *map(Statistic, ("loss", "el2n", "margin")),
        GradientNorm(),
        WeightAlignment(model),
        LayerInputs(model),
        Sketch(SJLT(num_dims=512, seed=seed)),
    ]
    with TemporaryDirectory() as folder:
        sink = StoreWriter(Path(folder) / "s", {}, num_rows=len(rows))
        run_pass(task, rows, columns, settings=READING, sink=sink)
        store = GradientStore.open(Path(folder) / "s")
        agreement = score_agreement(store, problem.given.numpy())
        features = Embeddings(store.column("features"), store.ids)
        clusters = score_cluster_distance(features, num_clusters=problem.num_classes, seed=seed)
        found = {
            "loss": store.column("loss"),
            "margin": -store.column("margin"),
            "EL2N": store.column("el2n"),
            "GraNd": store.column("grad_norm"),
            "weight alignment": -store.column("weight_alignment"),
            "agreement": -agreement["agreement"].values,
            "agreement in class": -agreement["group_agreement"].values,
            "self-influence": TRAK().fit(store).self_scores(),
            "near-duplicate": -find_nearest(features).cosines,
            "cluster distance": clusters["cluster_distance"].values,
        }
    ekfac = EKFAC(seed=seed).fit(task, rows, settings=READING)
    found["EK-FAC self-influence"] = ekfac.self_influence(task, rows, settings=READING).values
    return found


def held_out(problem: Problem, seed: int, peer: Path | None) -> Suspicion:
    """Return scores from models that were trained without a quarter of the rows each."""
    included = Folds(num_folds=4, seed=seed).included(np.arange(len(problem)))
    size = int(included.sum(1).min())  # folds differ by a row at most
    subsets = [torch.from_numpy(np.flatnonzero(own)[:size]) for own in included]
    recipe = Recipe(
        learning_rate=RATE, optimizer="adam", batch_size=BATCH, epochs=problem.score_epoch
    )
    data = (problem.inputs, problem.given)
    params = train_many(
        problem.network, classification_losses, data, subsets, recipe, seed=seed + 500
    )
    probabilities = predict(problem, params, problem.inputs).softmax(-1).numpy()
    rows = np.arange(len(problem))
    own = probabilities[:, rows, problem.given.numpy()]
    scores = memorisation(rows, own.astype(np.float64), included)
    found = {
        "memorisation": scores["memorisation"].values,
        "held-out probability": -scores["held_out"].values,
    }
    if peer is not None:
        outside = probabilities[(~included).argmax(0), rows]
        found["cleanlab"] = ask_cleanlab(peer, problem.given.numpy(), outside)
    return found


def predict(
    problem: Problem, params: dict[str, Tensor], inputs: Float[Tensor, "q d"]
) -> Float[Tensor, "m q c"]:
    """Return the logits of every model."""
    template, count = problem.network(), len(next(iter(params.values())))
    with torch.no_grad():
        found = [
            functional_call(template, {name: value[m] for name, value in params.items()}, (inputs,))
            for m in range(count)
        ]
    return torch.stack(found)


def ask_cleanlab(
    python: Path, labels: np.ndarray, probabilities: Float[np.ndarray, "n c"]
) -> Float[np.ndarray, " n"]:
    """Return what cleanlab thinks of each label, in an environment that has it."""
    with TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{name}.npy" for name in ("labels", "probabilities", "out")]
        np.save(paths[0], labels)
        np.save(paths[1], probabilities.astype(np.float64))
        script = Path(__file__).with_name("cleanlab_peer.py")
        subprocess.run([python, script, *paths], check=True)
        return np.load(paths[2])


def k_center_ranks(problem: Problem) -> Float[np.ndarray, " n"]:
    """Return 1 for the first row that k-centre picks, and less for later ones; outliers first."""
    if problem.name not in KNOWN:
        count = round(0.7 * len(problem))
        KNOWN[problem.name] = KCenter().select(problem.embeddings, num_selected=count).ids
    picks, ranks = KNOWN[problem.name], np.full(len(problem), -1.0)
    ranks[picks] = 1 - np.arange(len(picks)) / len(picks)
    # What was not picked has no order of its own.
    rest = np.flatnonzero(ranks < 0)
    ranks[rest] = -np.random.default_rng(0).random(len(rest))
    return ranks


KNOWN: dict[str, np.ndarray] = {}


def recall(
    suspicion: Float[np.ndarray, " n"], wrong: np.ndarray, shares: Sequence[float]
) -> list[float]:
    """Return the share of wrong labels among the most suspicious rows, for each share of rows."""
    hits = wrong[np.argsort(-suspicion, kind="stable")].cumsum() / wrong.sum()
    return [float(hits[max(0, round(share * len(wrong)) - 1)]) for share in shares]
