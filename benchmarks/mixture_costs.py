"""What the alignments of domains cost, and how well each way to them agrees with the exact one.

Ways: a batch for each domain; the same for chosen components; the training batch itself, with
the target's gradient whole or cut to a low rank. Cost is the time of a training step with it
over one without, in turns. Agreement is with the exact alignments of much larger batches.
"""

import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measuring import Times, interleave, options, parse, publish, table
from mixture_corpus import build_corpus, mean_loss, read_sources
from mixtures import QUICK, REGIMES, Size, Training

from selection import DGA, ODM, DomainGradients, InBatchDGA, MirrorDescent

RULE = MirrorDescent(step_size=0.0)  # the mixture stays, so that all see the same batches
RANKS = (None, 32, 8, 2)
PARTS = {"the last block": "model.layers.{last}.*", "MLPs": "*.mlp.*"}
WEIGHTS = ["*proj", "*embed*", "*head*"]  # all but norms
EVERY = 100
DRAWS = 3  # of the target's batch


def step_of(training: Training, batch: torch.Tensor) -> Callable[[], None]:
    """Return one step of training on a batch."""

    def step() -> None:
        training.optimizer.zero_grad()
        mean_loss(training.model, batch).backward()
        training.optimizer.step()

    return step


def costs(training: Training, rounds: int, repeats: int) -> list[list[str]]:
    """Return the time of each way over that of a plain step."""
    corpus, size = training.corpus, training.size
    tokens, domains = training.batch(np.full(len(training.names), 1 / len(training.names)))
    training.model.train()
    step = step_of(training, tokens)
    target = {"batch_size": size.batch_size, "rule": RULE, "seed": 0}
    rows = []
    few = {**target, "batch_size": max(1, size.batch_size // 4)}
    moves: dict[str, tuple[str | None, dict[str, Any]]] = {
        "a batch for each domain, all components": (None, target)
    }
    moves["a quarter of a batch for each domain, all components"] = (None, few)
    for name, layers in _patterns(size).items():
        moves[f"a quarter of a batch for each domain, {name}"] = (layers, few)
    for name, (layers, settings) in moves.items():
        dga = DGA(training.task, corpus.domains, corpus.target, layers=layers, **settings)
        times = interleave({"step": step, "move": lambda m=dga: m.update(0)}, rounds)
        ratio = times.ratio("move", "step")
        rows.append([name, _share(ratio / EVERY), f"{ratio:.1f}"])
    for name, settings in _ways(size).items():
        mixture = InBatchDGA(
            training.task, training.names, corpus.target, every=10**9, **settings, **target
        )

        def watched(mixture: InBatchDGA = mixture) -> None:
            with mixture.watching():
                step()
                mixture.update(0, domains=domains)

        times = interleave({"step": step, "watched": watched}, rounds, repeats=repeats)
        move = _seconds(lambda m=mixture: m._aim()) / times.typical("step")
        share = times.ratio("watched", "step") - 1 + move / EVERY
        rows.append([name, _share(share), f"{move:.1f}"])
    odm = ODM(training.names)
    losses = np.ones(len(domains))

    def with_losses() -> None:
        step()
        odm.update(0, domains=domains, losses=losses)

    times: Times = interleave({"step": step, "odm": with_losses}, rounds, repeats=repeats)
    rows.append(["ODM (losses only)", _share(times.ratio("odm", "step") - 1), "0"])
    return rows


def agreement(training: Training, num_batches: int, large: int) -> list[list[str]]:
    """Return the correlation over domains of each way with the exact alignments."""
    corpus, size = training.corpus, training.size
    task, domains, target = training.task, corpus.domains, corpus.target

    def gradients(layers: str | None, rows: int, seed: int) -> DomainGradients:
        return DomainGradients(task, domains, target, batch_size=rows, layers=layers, seed=seed)

    exact = gradients(None, large, 1).products(0)
    truth = exact.dots / exact.target_sq_norm
    rows = []
    for name, layers in {"all components": None, **_patterns(size)}.items():
        found = [gradients(layers, size.batch_size, 2).products(n).dots for n in range(DRAWS)]
        seen = size.batch_size * (len(training.names) + 1)
        rows.append([f"a batch for each domain, {name}", str(seen), _mean(found, truth)])
    settings = {"every": num_batches, "batch_size": size.batch_size, "rule": RULE}
    watching = {
        name: [
            InBatchDGA(task, training.names, target, seed=2 + draw, **settings, **chosen)
            for draw in range(DRAWS)
        ]
        for name, chosen in _ways(size).items()
    }
    weights = np.full(len(training.names), 1 / len(training.names))
    training.model.train()
    with ExitStack() as stack:  # all of them watch the same steps
        mixtures = [mixture for group in watching.values() for mixture in group]
        for mixture in mixtures:
            stack.enter_context(mixture.watching())
        for number in range(num_batches):
            tokens, places = training.batch(weights)
            mean_loss(training.model, tokens).backward()
            for mixture in mixtures:
                mixture.update(number, domains=places)
    seen = f"{size.batch_size} (+ {num_batches * size.batch_size} trained on)"
    for name, group in watching.items():
        found = [mixture.history.columns["signal"][-1] for mixture in group]
        rows.append([name, seen, _mean(found, truth)])
    return rows


def _ways(size: Size) -> dict[str, dict[str, Any]]:
    """Return the settings of each way to read alignments off the training batch."""
    ways: dict[str, dict[str, Any]] = {
        f"training batch, {_rank(rank)}": {"rank": rank} for rank in RANKS
    }
    for name, layers in {"without norms": WEIGHTS, **_patterns(size)}.items():
        ways[f"training batch, rank 8, {name}"] = {"rank": 8, "layers": layers}
    return ways


def _patterns(size: Size) -> dict[str, str]:
    """Return the chosen components."""
    return {name: pattern.format(last=size.depth - 1) for name, pattern in PARTS.items()}


def _rank(rank: int | None) -> str:
    """Return a rank in words."""
    return "exact" if rank is None else f"rank {rank}"


def _share(ratio: float) -> str:
    """Return a share of a step in per cent."""
    return f"{100 * ratio:+.1f} %"


def _seconds(run: Callable[[], Any]) -> float:
    """Return the time of the fastest of a few runs."""
    found = []
    for _ in range(3):
        began = time.perf_counter()
        run()
        found.append(time.perf_counter() - began)
    return min(found)


def _mean(found: list[np.ndarray], truth: np.ndarray) -> str:
    """Return mean and range of the correlation with the truth, over domains known to both."""
    values = []
    for signal in found:
        known = np.isfinite(signal)
        values.append(np.corrcoef(signal[known], truth[known])[0, 1])
    return f"{np.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})"


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--data", type=Path, help="folder of sources, `*.jsonl.gz` with `text`")
    parser.add_argument("--target", default="cs_abstracts", help="the source to specialise to")
    parser.add_argument("--only", choices=("cost", "agreement"), help="one of the two tables")
    parser.add_argument("--repeats", type=int, default=5, help="steps that are timed at a time")
    chosen = parse(parser)
    size = QUICK if chosen.quick or chosen.data is None else Size(batch_size=16, steps=120)
    sources = read_sources(None if chosen.quick else chosen.data, 0)
    target = chosen.target if chosen.target in sources else next(iter(sources))
    numbers = REGIMES["little generic text"]
    corpus = build_corpus(sources, target, num_domains=size.num_domains, seed=0, **numbers)
    training = Training(corpus, size, 0, proxy=True)
    weights = np.full(len(training.names), 1 / len(training.names))
    for _ in range(training.steps):
        step_of(training, training.batch(weights)[0])()
    rounds, repeats = (1, 1) if chosen.quick else (chosen.rounds, chosen.repeats)
    num_batches, large = (4, 16) if chosen.quick else (20, 128)
    number = sum(parameter.numel() for parameter in training.model.parameters())
    parts = [
        f"A model of {number:,} parameters, steps of {size.batch_size} passages of 64 tokens, "
        f"{len(training.names)} domains, after {training.steps} steps of training."
    ]
    if chosen.only != "agreement":
        timed = table(
            ["way", "on top of a step", "a move, in steps"], costs(training, rounds, repeats)
        )
        parts.append(
            f"## Cost\n\nShare of a step's time that comes on top of it, with a move every {EVERY} "
            f"steps, and the time of a move in steps.\n\n{timed}"
        )
    if chosen.only != "cost":
        head = ["way", "passages seen for it", "correlation"]
        agreed = table(head, agreement(training, num_batches, large))
        parts.append(
            f"## Agreement\n\nCorrelation over domains with the products of the domains' gradients "
            f"on {large} passages each: mean and range over {DRAWS} draws of the target's batch of "
            f"{size.batch_size} (and, for the first three, of the domains' batches).\n\n{agreed}"
        )
    publish("What alignments of domains cost, and how well they agree", parts, chosen.out)


if __name__ == "__main__":
    main()
