"""Specialise a small language model to one source, by mixtures over clusters of all text.

Compared at equal numbers of steps: uniform, importance sampling, DoReMi, DoGE, and DGA with
averaged weights, without averaging, and read off the training batch. Two regimes: little
generic text in each domain, and very little text of the target. A run's result is kept in
``--runs``, so that a benchmark that was stopped goes on with the next run.
"""

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measuring import options, parse, publish, table
from mixture_corpus import (
    Corpus,
    build_corpus,
    build_model,
    mean_loss,
    perplexity,
    read_sources,
    stack,
)
from torch import nn

from projections import CausalLM, write_json
from selection import (
    DGA,
    DoGE,
    DoReMi,
    FixedMixture,
    InBatchDGA,
    MirrorDescent,
    OnlineMixture,
    RowDeck,
    importance_mixture,
)

EVERY = 20  # steps between two moves
STEP_SIZE = 8.0
AVERAGED = MirrorDescent(step_size=STEP_SIZE, average=0.1, floor=1e-2)
RAW = MirrorDescent(step_size=STEP_SIZE, floor=1e-2)


@dataclass(frozen=True)
class Size:
    """How large everything is."""

    steps: int = 240
    batch_size: int = 8
    width: int = 160
    depth: int = 4
    num_domains: int = 12
    learning_rate: float = 2e-3
    measured: int = 4


QUICK = Size(steps=4, batch_size=4, width=16, depth=1, num_domains=3, measured=2)
REGIMES = {  # generic documents a source, documents of the target
    "little generic text": {"num_generic": 40, "num_target": 50},
    "very little target text": {"num_generic": 600, "num_target": 5},
}


class Training:
    """One training run on a mixture.

    Args:
        corpus: The text.
        size: How much.
        seed: Decides the model's start and what is drawn.
        proxy: Whether it only serves to find a mixture, for which half the steps do.
    """

    def __init__(self, corpus: Corpus, size: Size, seed: int, *, proxy: bool = False) -> None:
        """Build the model."""
        self.corpus, self.size = corpus, size
        self.steps = size.steps // 2 if proxy else size.steps
        self.measured = 0 if proxy else size.measured
        length = len(corpus.target[0]["input_ids"])
        self.model = build_model(width=size.width, depth=size.depth, seed=seed, length=length)
        self.task = CausalLM(self.model)
        self.random = np.random.default_rng(seed)
        self.names = tuple(corpus.domains)
        self.decks = [RowDeck(r, name=n, seed=seed + 1000) for n, r in corpus.domains.items()]
        self.drawn = np.zeros(len(self.names), dtype=int)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=size.learning_rate)
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.optimizer, size.learning_rate, total_steps=self.steps, pct_start=0.1
        )

    def batch(self, weights: np.ndarray) -> tuple[torch.Tensor, np.ndarray]:
        """Draw examples, and return their tokens and their domains."""
        domains = self.random.choice(len(weights), self.size.batch_size, p=weights)
        rows = []
        for domain in domains.tolist():
            rows += self.decks[domain].draw(int(self.drawn[domain]), 1)
            self.drawn[domain] += 1
        return stack(rows), domains

    def run(
        self,
        mixture: Any,
        loss: Callable[[int, torch.Tensor, np.ndarray], torch.Tensor] | None = None,
        sample: np.ndarray | None = None,
    ) -> dict[str, Any]:
        """Train, and return what was measured.

        Args:
            mixture: What examples are drawn by.
            loss: Of a step, its tokens and domains; default: the mean over tokens.
            sample: Weights to draw by, where they are not those of the mixture.
        """
        path = []
        self.model.train()
        for step in range(self.steps):
            tokens, domains = self.batch(mixture.weights if sample is None else sample)
            value = loss(step, tokens, domains) if loss else mean_loss(self.model, tokens)
            self.optimizer.zero_grad()
            value.backward()
            nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()
            self.schedule.step()
            if isinstance(mixture, OnlineMixture) and mixture.due(step):
                mixture.update(step, domains=domains)
            if self.measured and (step + 1) % (self.steps // self.measured) == 0:
                path.append(perplexity(self.model, self.corpus.test))
        others = perplexity(self.model, self.corpus.others)
        return {"path": path, "others": others, "weights": mixture.weights.tolist()}


def fixed(training: Training, weights: Any) -> dict[str, Any]:
    return training.run(FixedMixture(training.names, weights))


def run_uniform(corpus: Corpus, size: Size, seed: int, every: int) -> dict[str, Any]:
    return fixed(Training(corpus, size, seed), None)


def run_importance(corpus: Corpus, size: Size, seed: int, every: int) -> dict[str, Any]:
    mixture = importance_mixture(corpus.centers, corpus.target_vectors)
    return fixed(Training(corpus, size, seed), mixture.weights)


def run_doremi(corpus: Corpus, size: Size, seed: int, every: int) -> dict[str, Any]:
    """Train a reference and a proxy, then the model on the result."""
    reference, proxy = (Training(corpus, size, seed + extra, proxy=True) for extra in (100, 200))
    fixed(reference, None)
    doremi = DoReMi(proxy.task, reference.task, proxy.names)

    def loss(step: int, tokens: torch.Tensor, domains: np.ndarray) -> torch.Tensor:
        batch = proxy.task.collate(proxy.task.encode([{"input_ids": t} for t in tokens.tolist()]))
        return doremi.loss(step, batch, domains)

    uniform = np.full(len(proxy.names), 1 / len(proxy.names))
    proxy.run(doremi, loss, uniform)
    return fixed(Training(corpus, size, seed), doremi.result.weights)


def run_doge(corpus: Corpus, size: Size, seed: int, every: int) -> dict[str, Any]:
    """Train a proxy, then the model on the result."""
    proxy = Training(corpus, size, seed + 200, proxy=True)
    rule = MirrorDescent(step_size=STEP_SIZE, clip=(0.0, 5.0), floor=1e-2)
    settings = {"every": every, "batch_size": size.batch_size, "rule": rule, "seed": seed}
    doge = DoGE(proxy.task, corpus.domains, corpus.target, **settings)
    proxy.run(doge)
    return fixed(Training(corpus, size, seed), doge.result.weights)


def run_dga(rule: MirrorDescent) -> Callable[[Corpus, Size, int, int], dict[str, Any]]:
    def run(corpus: Corpus, size: Size, seed: int, every: int) -> dict[str, Any]:
        training = Training(corpus, size, seed)
        settings = {"every": every, "batch_size": size.batch_size, "rule": rule, "seed": seed}
        return training.run(DGA(training.task, corpus.domains, corpus.target, **settings))

    return run


def run_in_batch(corpus: Corpus, size: Size, seed: int, every: int) -> dict[str, Any]:
    training = Training(corpus, size, seed)
    settings = {"every": every, "batch_size": size.batch_size, "rule": AVERAGED, "seed": seed}
    mixture = InBatchDGA(training.task, training.names, corpus.target, **settings)
    with mixture.watching():
        return training.run(mixture)


METHODS = {
    "uniform": run_uniform,
    "importance sampling": run_importance,
    "DoReMi": run_doremi,
    "DoGE, towards the target": run_doge,
    "DGA, averaged (0.1)": run_dga(AVERAGED),
    "DGA, not averaged": run_dga(RAW),
    "DGA of the training batch, averaged": run_in_batch,
}


Results = dict[str, dict[str, list[dict[str, Any]]]]


def results(chosen: Any, size: Size, every: int) -> Results:
    """Return what every run measured, and run what has not been run yet."""
    found: Results = {regime: {name: [] for name in METHODS} for regime in REGIMES}
    for seed in range(chosen.seeds):
        sources = lru_cache(lambda seed=seed: read_sources(chosen.data, seed))
        for regime, numbers in REGIMES.items():
            corpus = lru_cache(
                lambda numbers=numbers, seed=seed, sources=sources: build_corpus(
                    sources(),
                    chosen.target if chosen.data else next(iter(sources())),
                    num_domains=size.num_domains,
                    seed=seed,
                    **numbers,
                )
            )
            for name, run in METHODS.items():
                path = chosen.runs / regime / f"{name}, seed {seed}.json"
                asked = {**asdict(size), "every": every, "target": chosen.target, **numbers}
                if not (path.exists() and json.loads(path.read_text())["settings"] == asked):
                    began = time.process_time()
                    result = run(corpus(), size, seed, every)
                    path.parent.mkdir(parents=True, exist_ok=True)
                    seconds = time.process_time() - began
                    write_json(path, {"settings": asked, "seconds": seconds, **result})
                found[regime][name].append(json.loads(path.read_text()))
    return found


def report(runs: dict[str, list[dict[str, Any]]], size: Size) -> str:
    """Return the perplexities of a regime."""
    steps = [(at + 1) * (size.steps // size.measured) for at in range(size.measured)]
    head = ["mixture", *(f"step {step}" for step in steps), "other sources", "heaviest share"]
    rows = []
    for name, found in runs.items():
        paths = np.array([run["path"] for run in found])
        others = np.array([run["others"] for run in found])
        heaviest = np.mean([max(run["weights"]) for run in found])
        cells = [_cell(column) for column in (*paths.T, others)]
        rows.append([name, *cells, f"{heaviest:.2f}"])
    return table(head, rows)


def _cell(values: np.ndarray) -> str:
    """Return a mean with its standard error, if there are several values."""
    if len(values) == 1:
        return f"{values[0]:.1f}"
    return f"{values.mean():.1f} ± {values.std(ddof=1) / len(values) ** 0.5:.1f}"


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--data", type=Path, help="folder of sources, `*.jsonl.gz` with `text`")
    parser.add_argument("--target", default="cs_abstracts", help="the source to specialise to")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds")
    parser.add_argument("--runs", type=Path, default=Path("runs/mixtures"), help="kept results")
    chosen = parse(parser)
    size, every = (QUICK, 2) if chosen.quick else (Size(), EVERY)
    if chosen.quick:
        chosen.seeds, chosen.data, chosen.runs = 1, None, chosen.runs / "quick"
    found = results(chosen, size, every)
    seeds = "one seed" if chosen.seeds == 1 else f"mean ± standard error over {chosen.seeds} seeds"
    parts = [
        f"Perplexity of held-out text of `{chosen.target}` over {size.steps} steps of "
        f"{size.batch_size} passages of 64 tokens, {seeds}. {size.num_domains} domains: k-means "
        f"clusters of all sources. Moves every {every} steps, step size {STEP_SIZE:g}. DoReMi and "
        "DoGE train proxies first, of the same size for half the steps, which are not counted here."
    ]
    for regime, runs in found.items():
        numbers = REGIMES[regime]
        parts.append(
            f"## {regime.capitalize()}\n\nAt most {numbers['num_generic']} documents a source to "
            f"train on, {numbers['num_target']} documents of the target.\n\n{report(runs, size)}"
        )
    publish("Mixtures that specialise a language model", parts, chosen.out)


if __name__ == "__main__":
    main()
