"""What the alignments of domains cost, and how well each way to them agrees with the exact one.

Ways: a batch for each domain; the same for chosen components; the training batch itself, with
the target's gradient whole or cut to a low rank. Cost is the time of a training step with it
over one without, in turns. Agreement is with the exact alignments of much larger batches.
"""

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measuring import Times, interleave, options, parse, publish, table
from mixture_corpus import build_corpus, mean_loss, read_sources
from mixtures import QUICK, REGIMES, Size, Training

from selection import DGA, ODM, DomainGradients, InBatchDGA, MirrorDescent

RULE = MirrorDescent(step_size=0.0)  # the mixture stays, so that all see the same batches
RANKS = (None, 8, 4, 2, 1)
PARTS = {"the last block": "model.layers.{last}.*", "MLPs": "*.mlp.*"}
CHOSEN_RANK = 4  # of the ways with chosen components
SIZES = {  # the model and its passages
    "small": (Size(batch_size=16, steps=120), 64),
    "large": (Size(batch_size=16, steps=120, width=256, depth=6), 128),
}
EVERY = 100
DRAWS = 3  # of the target's batch
MOVES = 6  # with batches for each domain


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
    runs: dict[str, Callable[[], Any]] = {"step": step}
    aims: dict[str, float] = {}
    for name, settings in _ways(size).items():
        mixture = InBatchDGA(
            training.task, training.names, corpus.target, every=10**9, **settings, **target
        )

        def watched(mixture: InBatchDGA = mixture) -> None:
            with mixture.watching():
                step()
                mixture.update(0, domains=domains)

        runs[name] = watched
        aims[name] = _seconds(mixture._aim)
    odm = ODM(training.names)
    losses = np.ones(len(domains))

    def with_losses() -> None:
        step()
        odm.update(0, domains=domains, losses=losses)

    runs["ODM (losses only)"] = with_losses
    times: Times = interleave(runs, rounds, repeats=repeats)
    for name in runs:
        if name != "step":
            move = aims.get(name, 0.0) / times.typical("step")
            share = times.ratio(name, "step") - 1 + move / EVERY
            rows.append([name, _share(share), f"{move:.1f}"])
    return rows


def agreement(training: Training, num_batches: int, large: int) -> list[list[str]]:
    """Return the correlation over domains of each way with the exact alignments."""
    exact = _gradients(training, None, large, seed=1).products(0)
    truth = exact.dots / exact.target_sq_norm
    return separate_batches(training, truth) + watched_batches(training, num_batches, truth)


def separate_batches(training: Training, truth: np.ndarray) -> list[list[str]]:
    """Return the correlation of batches drawn for each domain."""
    rows, size = [], training.size
    few = max(1, size.batch_size // 4)
    separate: dict[str, tuple[str | None, int]] = {
        "a batch for each domain, all components": (None, size.batch_size),
        "a quarter of a batch for each domain, all components": (None, few),
    }
    for name, layers in _patterns(size).items():
        separate[f"a quarter of a batch for each domain, {name}"] = (layers, few)
    for name, (layers, count) in separate.items():
        batches = _gradients(training, layers, count, seed=2)
        found = [batches.products(number).dots for number in range(MOVES)]
        averaged = _mean([np.mean(found, 0)], [truth])
        seen = str(count * (len(training.names) + 1))
        rows.append([name, seen, _mean(found, [truth]), averaged, ""])
    return rows


def watched_batches(training: Training, num_batches: int, truth: np.ndarray) -> list[list[str]]:
    """Return the correlation of each way to read alignments off the same training batches."""
    task, size, target = training.task, training.size, training.corpus.target
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
    signals = {
        name: [mixture.history.columns["signal"][-1] for mixture in group]
        for name, group in watching.items()
    }
    exact = signals["training batch, exact"]
    return [
        [name, seen, _mean(found, [truth]), "", _mean(found, exact)]
        for name, found in signals.items()
    ]


def _gradients(training: Training, layers: str | None, rows: int, *, seed: int) -> DomainGradients:
    """Return gradients of some layers on so many rows of each domain."""
    corpus = training.corpus
    return DomainGradients(
        training.task, corpus.domains, corpus.target, batch_size=rows, layers=layers, seed=seed
    )


def _ways(size: Size) -> dict[str, dict[str, Any]]:
    """Return the settings of each way to read alignments off the training batch."""
    ways: dict[str, dict[str, Any]] = {
        f"training batch, {_rank(rank)}": {"rank": rank} for rank in RANKS
    }
    for name, layers in _patterns(size).items():
        ways[f"training batch, rank {CHOSEN_RANK}, {name}"] = {
            "rank": CHOSEN_RANK,
            "layers": layers,
        }
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


def _mean(found: list[np.ndarray], truths: list[np.ndarray]) -> str:
    """Return mean and range of the correlation with the truth, over domains known to both."""
    values = []
    for signal, truth in zip(found, truths * (len(found) // len(truths)), strict=True):
        known = np.isfinite(signal)
        values.append(np.corrcoef(signal[known], truth[known])[0, 1])
    if len(values) == 1:
        return f"{values[0]:.3f}"
    return f"{np.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})"


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--data", type=Path, help="folder of sources, `*.jsonl.gz` with `text`")
    parser.add_argument("--target", default="cs_abstracts", help="the source to specialise to")
    parser.add_argument("--size", choices=tuple(SIZES), default="small", help="of the model")
    parser.add_argument("--steps", type=int, help="steps of training before; default: 60")
    parser.add_argument("--only", choices=("cost", "agreement"), help="one of the two tables")
    parser.add_argument("--repeats", type=int, default=5, help="steps that are timed at a time")
    chosen = parse(parser)
    quick = chosen.quick or chosen.data is None
    size, length = (QUICK, 32) if quick else SIZES[chosen.size]
    sources = read_sources(None if chosen.quick else chosen.data, 0)
    target = chosen.target if chosen.target in sources else next(iter(sources))
    numbers = REGIMES["little generic text"]
    corpus = build_corpus(
        sources, target, num_domains=size.num_domains, seed=0, length=length, **numbers
    )
    size = replace(size, steps=2 * chosen.steps) if chosen.steps else size
    training = Training(corpus, size, 0, proxy=True)
    weights = np.full(len(training.names), 1 / len(training.names))
    for _ in range(training.steps):
        step_of(training, training.batch(weights)[0])()
    rounds, repeats = (1, 1) if chosen.quick else (chosen.rounds, chosen.repeats)
    num_batches, large = (4, 16) if chosen.quick else (20, 128)
    number = sum(parameter.numel() for parameter in training.model.parameters())
    parts = [
        f"A model of {number:,} parameters, steps of {size.batch_size} passages of {length} "
        f"tokens, {len(training.names)} domains, after {training.steps} steps of training."
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
        head = ["way", "passages seen for a move", "correlation", f"mean of {MOVES} moves"]
        head.append("with exact products of the same steps")
        agreed = table(head, agreement(training, num_batches, large))
        parts.append(
            f"## Agreement\n\nCorrelation over domains with the products of the domains' gradients "
            f"on {large} passages each: mean and range over {DRAWS} draws of the target's batch of "
            f"{size.batch_size}; for separate batches, over {MOVES} draws of all.\n\n{agreed}"
        )
    publish("What alignments of domains cost, and how well they agree", parts, chosen.out)


if __name__ == "__main__":
    main()
