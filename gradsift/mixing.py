"""Job 3 of the demo: a mixture of domains that follows the gradients of a target.

The model is trained on with passages drawn from all domains. Every few steps, the gradient
of one small batch of each domain is compared with that of the target, and the mixture
moves to the domains that point where the target points.
"""

from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from transformers import LlamaForCausalLM

from gradsift.corpus import Corpus, Passage
from gradsift.language_model import make_optimizer, mean_loss, stack, train_step
from projections import CausalLM
from selection import DGA, MirrorDescent

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class MixingSettings:
    """Sizes of the job."""

    target: str = "logging"
    """The domain that the mixture should serve; the last one if this Python has none such."""

    steps: int = 40
    """Steps of training."""

    every: int = 4
    """Steps between two moves of the mixture."""

    batch_size: int = 8
    """Passages in a step."""

    learning_rate: float = 1e-3
    """Of AdamW."""

    num_compared: int = 3
    """Passages of each domain whose gradients are compared at a move."""

    step_size: float = 8.0
    """How far a move goes, for an alignment of one."""

    floor: float = 0.1
    """Share of the mixture that stays uniform."""


@dataclass(frozen=True)
class MixingResult:
    """What happened to the mixture, and to the losses.

    Args:
        target: The target domain.
        domains: All domains.
        seeds: The seeds; lists of losses have one entry for each.
        every: Steps between two moves.
        weights: Mixture at first and after each move, mean over seeds, ``move domain``.
        start: Losses of held-out text before, of the target and on average of the others.
        losses: By mixture (``uniform``, ``aligned``): losses after.
    """

    target: str
    domains: list[str]
    seeds: list[int]
    every: int
    weights: list[list[float]]
    start: dict[str, float]
    losses: dict[str, dict[str, list[float]]]


@dataclass(frozen=True)
class TargetText:
    """Held-out text of the target: a part that guides the mixture, a part that tests it.

    Args:
        guide: Compared with the domains.
        test: Never seen by training nor by the mixture.
        others: Held-out text of the other domains.
    """

    guide: list[Passage]
    test: list[Passage]
    others: list[Passage]

    def losses(self, model: LlamaForCausalLM) -> dict[str, float]:
        """Return the losses in nats a token."""
        return {"target": mean_loss(model, self.test), "others": mean_loss(model, self.others)}


def run_mixing(
    settings: MixingSettings,
    corpus: Corpus,
    model: LlamaForCausalLM,
    *,
    seeds: Sequence[int],
    say: Say,
) -> MixingResult:
    """Train on with a uniform and with an aligned mixture, for the same number of steps.

    Args:
        settings: Sizes.
        corpus: The passages.
        model: The model to start from, which is not changed.
        seeds: Each decides which passages are drawn.
        say: Takes lines about progress.
    """
    target = settings.target if settings.target in corpus.domains else corpus.domains[-1]
    held = corpus.of_domain(target, held_out=True)
    text = TargetText(
        held[: len(held) // 2],
        held[len(held) // 2 :],
        [passage for passage in corpus.held_out if passage["domain"] != target],
    )
    losses: dict[str, dict[str, list[float]]] = {
        name: {"target": [], "others": []} for name in ("uniform", "aligned")
    }
    histories = []
    for seed in seeds:
        for name, found in losses.items():
            trained = deepcopy(model)
            guide = text.guide if name == "aligned" else None
            history = train_on_mixture(trained, corpus, guide, settings, seed)
            for part, value in text.losses(trained).items():
                found[part].append(value)
            if name == "aligned":
                histories.append(history)
        say(
            f"mixing, seed {seed}: loss of held-out {target} {losses['aligned']['target'][-1]:.3f} "
            f"with the aligned mixture, {losses['uniform']['target'][-1]:.3f} with the uniform one"
        )
    return MixingResult(
        target=target,
        domains=corpus.domains,
        seeds=list(seeds),
        every=settings.every,
        weights=np.mean(histories, axis=0).tolist(),
        start=text.losses(model),
        losses=losses,
    )


def train_on_mixture(
    model: LlamaForCausalLM,
    corpus: Corpus,
    guide: Sequence[Passage] | None,
    settings: MixingSettings,
    seed: int,
) -> Float[np.ndarray, "moves k"]:
    """Train in place on a mixture of the domains that starts uniform.

    Args:
        model: The model.
        corpus: The passages.
        guide: Text of the target that the mixture follows; without it, it stays uniform.
        settings: Sizes.
        seed: Decides which passages are drawn.

    Returns:
        The mixture at first and after each move.
    """
    mixture = DGA(
        CausalLM(model),
        {domain: _rows(corpus.of_domain(domain)) for domain in corpus.domains},
        _rows(guide or corpus.held_out),
        every=settings.every,
        batch_size=settings.num_compared,
        rule=MirrorDescent(step_size=settings.step_size, floor=settings.floor),
        seed=seed,
    )
    optimizer = make_optimizer(model, settings.learning_rate)
    random = np.random.default_rng((seed, 0))
    decks = {
        d: _deal(corpus.of_domain(d), np.random.default_rng((seed, 1))) for d in corpus.domains
    }
    for step in range(settings.steps):
        drawn = random.choice(len(decks), settings.batch_size, p=mixture.weights)
        batch = [next(decks[corpus.domains[domain]]) for domain in drawn]
        model.train()
        train_step(model, stack(batch), optimizer)
        model.eval()
        if guide is not None and mixture.due(step):
            mixture.update(step)
    return mixture.history.columns["weights"]


def _rows(passages: Sequence[Passage]) -> list[dict[str, Any]]:
    """Return what a task takes of passages."""
    return [{"input_ids": passage["input_ids"]} for passage in passages]


def _deal(passages: Sequence[Passage], random: np.random.Generator) -> Iterator[Passage]:
    """Yield passages in random order, for ever, each once before any comes again."""
    while True:
        for position in random.permutation(len(passages)):
            yield passages[position]
