"""Which score finds wrong labels, and what is left to train on when it prunes?

Two training sets with wrong labels that are known: the first 10,000 images of MNIST, a tenth
of whose labels is flipped, and the questions of TREC as 68 hand-written rules label them.
Images are halved to 14 by 14 pixels, questions are TF-IDF of 500 words and pairs. Small
perceptrons are trained and score their own training set. Each score is judged by the
share of wrong labels among the most suspicious rows, and by the accuracy, on clean test data,
of perceptrons that are trained on what it keeps, all with the same number of steps. Scores on
all of MNIST, unflipped, are compared with published consistency scores. Without `--data`
digits of scikit-learn stand in for both.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
from measuring import options, parse, publish, spread, table
from pruning_consistency import consistency
from pruning_problems import BATCH, RATE, Problem, digits, mnist, trec
from pruning_scores import Suspicion, predict, recall, score_all
from retraining import train_many

from influence import Recipe, classification_losses, mislabel_detection
from projections import Scores
from selection import (
    Selection,
    keep_by_chance,
    keep_covering,
    keep_window,
    prune,
    select_within,
)

PARTS = ("mnist", "trec", "consistency")
INSPECTED = (0.05, 0.1, 0.2, 0.3, 0.5)
KEPT = (0.05, 0.1, 0.2, 0.4, 0.7)
CUT = 0.15  # the hardest rows that windows and coverage leave out
Policy = Callable[[Problem, Suspicion, float, int], np.ndarray]


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--data", type=Path, help="folder with mnist and trec_weak")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--peer-python", type=Path, help="python of an environment with cleanlab")
    parser.add_argument("--cache", type=Path, help="results so far, to go on from")
    chosen = parse(parser)
    chosen.seeds = 2 if chosen.quick else chosen.seeds
    cache = Cache(chosen.cache)
    parts = [(__doc__ or "").partition("\n\n")[2]]
    for make in problems(chosen):
        results = [measure(make(seed), seed, chosen, cache) for seed in range(chosen.seeds)]
        parts += report(make(0), results)
    if chosen.data is not None and not chosen.quick and "consistency" in chosen.parts:
        parts += consistency(chosen.data / "mnist", chosen.seeds, cache.get)
    publish("Pruning", parts, chosen.out)


def problems(chosen: argparse.Namespace) -> list[Callable[[int], Problem]]:
    """Return what is measured, as functions of the seed."""
    if chosen.quick or chosen.data is None:
        size, steps = (200, 20) if chosen.quick else (1400, 400)
        return [lambda seed: digits(num_train=size, steps=steps, seed=seed)]
    found: dict[str, Callable[[int], Problem]] = {
        "mnist": lambda seed: mnist(chosen.data / "mnist", num_train=10_000, seed=seed),
        "trec": lambda seed: trec(chosen.data / "trec_weak"),
    }
    return [make for name, make in found.items() if name in chosen.parts]


class Cache:
    """Results by key, kept in a file if one is given."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.known = json.loads(path.read_text()) if path and path.exists() else {}

    def get(self, key: str, compute: Callable[[], Any]) -> Any:
        if key not in self.known:
            self.known[key] = compute()
            if self.path:
                self.path.write_text(json.dumps(self.known))
        return self.known[key]


def measure(problem: Problem, seed: int, chosen: argparse.Namespace, cache: Cache) -> dict:
    """Return recalls, areas and accuracies of all scores for one seed."""
    return cache.get(f"{problem.name}/{seed}", lambda: _measure(problem, seed, chosen))


def _measure(problem: Problem, seed: int, chosen: argparse.Namespace) -> dict[str, Any]:
    scores = score_all(problem, seed, chosen.peer_python)
    found: dict[str, Any] = {
        "recall": {name: recall(s, problem.wrong, INSPECTED) for name, s in scores.items()},
        "area": {
            name: mislabel_detection(np.asarray(s, np.float64), problem.wrong).mean
            for name, s in scores.items()
        },
    }
    everything = np.arange(len(problem))
    oracle = np.flatnonzero(~problem.wrong)
    found["all"] = accuracies(problem, [everything], seed)[0]
    found["oracle"] = accuracies(problem, [oracle], seed)[0]
    kept: dict[str, list[float | None]] = {}
    policies = {name: p for name, p in POLICIES.items() if name != "cleanlab" or name in scores}
    for share in KEPT:
        picks = {name: policy(problem, scores, share, seed) for name, policy in policies.items()}
        by_size: dict[int, list[str]] = {}
        for name, rows in picks.items():
            by_size.setdefault(len(rows), []).append(name)
        for names in by_size.values():
            values = accuracies(problem, [picks[name] for name in names], seed)
            for name, value in zip(names, values, strict=True):
                kept.setdefault(name, []).append(value)
    found["accuracy"] = kept
    return found


def accuracies(problem: Problem, subsets: list[np.ndarray], seed: int) -> list[float]:
    """Return the test accuracies of perceptrons trained on subsets of one size."""
    size = len(subsets[0])
    batch = min(BATCH, size)
    recipe = Recipe(
        learning_rate=RATE,
        optimizer="adam",
        batch_size=batch,
        epochs=max(1, round(problem.steps / (size // batch))),
        at_once=8,
    )
    rows = [torch.from_numpy(np.sort(subset)) for subset in subsets]
    data = (problem.inputs, problem.given)
    params = train_many(problem.network, classification_losses, data, rows, recipe, seed=seed)
    found = predict(problem, params, problem.test_inputs).argmax(-1) == problem.test_labels
    return found.float().mean(1).tolist()


def dropping(name: str) -> Policy:
    """Return the policy that drops what is most suspicious."""
    return lambda problem, scores, keep, seed: (
        prune(table_of(scores, name), keep=keep, drop="highest").ids
    )


def table_of(scores: Suspicion, name: str) -> Scores:
    """Return one score as a table."""
    values = np.asarray(scores[name], np.float64)
    return Scores(np.arange(len(values)), {name: values})


def on_el2n(select: Callable[[Scores, float, int], Selection]) -> Policy:
    """Return a policy on EL2N."""
    return lambda problem, scores, keep, seed: select(table_of(scores, "EL2N"), keep, seed).ids


def in_each_class(name: str) -> Policy:
    """Return the policy that drops what is most suspicious in each class by itself."""
    return lambda problem, scores, keep, seed: (
        select_within(
            table_of(scores, name),
            problem.given.numpy(),
            lambda part: prune(part, keep=keep, drop="highest"),
        ).ids
    )


POLICIES: dict[str, Policy] = {
    "random": dropping("random"),
    "k-centre": lambda problem, scores, keep, seed: (
        prune(table_of(scores, "k-centre"), keep=keep).ids
    ),
    **{
        name: dropping(name)
        for name in (
            "cleanlab",
            "loss",
            "EL2N",
            "GraNd",
            "weight alignment",
            "agreement in class",
            "self-influence",
            "EK-FAC self-influence",
            "forgetting",
            "memorisation",
            "held-out probability",
            "cluster distance",
        )
    },
    "EL2N, in each class": in_each_class("EL2N"),
    "held-out probability, in each class": in_each_class("held-out probability"),
    "EL2N, hardest kept": on_el2n(lambda s, keep, seed: prune(s, keep=keep)),
    "EL2N, window": on_el2n(lambda s, keep, seed: keep_window(s, keep=keep, offset=CUT)),
    "EL2N, coverage": on_el2n(
        lambda s, keep, seed: keep_covering(s, keep=keep, cut=CUT, num_strata=50, seed=seed)
    ),
    "EL2N, Gumbel": on_el2n(
        lambda s, keep, seed: keep_by_chance(
            s, keep=keep, temperature=0.25, drop="highest", seed=seed
        )
    ),
}


def report(problem: Problem, results: list[dict[str, Any]]) -> list[str]:
    """Return the two tables of a problem."""
    names = sorted(results[0]["area"], key=lambda n: -mean(r["area"][n] for r in results))
    inspected = [
        [name, spread([r["area"][name] for r in results])]
        + [spread([100 * r["recall"][name][k] for r in results], 1) for k in range(len(INSPECTED))]
        for name in names
    ]
    kept = [
        [name]
        + [spread([100 * r["accuracy"][name][k] for r in results], 1) for k in range(len(KEPT))]
        for name in results[0]["accuracy"]
    ]
    whole, oracle = ([100 * r[name] for r in results] for name in ("all", "oracle"))
    head = (
        f"## {problem.name}\n\n{len(problem):,} examples, {problem.wrong.mean():.1%} of them with "
        f"a wrong label; {len(results)} seeds, mean and standard error. One network, scored after "
        f"epoch {problem.score_epoch} of {problem.epochs}; held-out scores and cleanlab from four "
        "folds with as many epochs."
    )
    first = "Wrong labels found, in %, among the most suspicious part of the data:"
    columns = ["score", "area under ROC", *(f"{share:.0%} inspected" for share in INSPECTED)]
    second = (
        f"Test accuracy, in %, after {problem.steps} steps on the part that is kept. On all of the "
        f"data {spread(whole, 1)}; on all rows with a right label {spread(oracle, 1)}. Scores drop "
        "what is most suspicious unless the name says otherwise; k-centre keeps its first picks; "
        f"window and coverage leave out the hardest {CUT:.0%}."
    )
    more = ["kept by", *(f"{share:.0%}" for share in KEPT)]
    return [head, first, table(columns, inspected), second, table(more, kept)]


if __name__ == "__main__":
    main()
