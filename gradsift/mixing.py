"""Job 3 of the demo: a mixture of domains that follows the gradients of a target.

The model is trained on with passages drawn from all domains. Every few steps, the gradients
of one small batch of each domain are compared with that of the target in sketches of a few
hundred numbers, and the mixture moves to the domains that point where the target points.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from transformers import LlamaForCausalLM

from gradsift.corpus import Corpus, Passage
from gradsift.language_model import make_optimizer, mean_loss, stack, train_step
from projections import SJLT, CausalLM, PassSettings, Sketch, run_pass
from selection import AlignmentStep, cosine_alignments

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

    num_dims: int = 1024
    """Dimensions of the sketches."""

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
    move = AlignmentStep(step_size=settings.step_size, floor=settings.floor)
    optimizer = make_optimizer(model, settings.learning_rate)
    random = np.random.default_rng((seed, 0))
    decks = {
        d: _deal(corpus.of_domain(d), np.random.default_rng((seed, 1))) for d in corpus.domains
    }
    samples = {
        d: _deal(corpus.of_domain(d), np.random.default_rng((seed, 2))) for d in corpus.domains
    }
    weights = np.full(len(corpus.domains), 1 / len(corpus.domains))
    history = []
    for step in range(settings.steps):
        if step > 0 and step % settings.every == 0 and guide is not None:
            compared = {
                d: [next(deck) for _ in range(settings.num_compared)] for d, deck in samples.items()
            }
            weights = move(weights, align(model, compared, guide, settings.num_dims, seed))
        if step % settings.every == 0:
            history.append(weights)
        drawn = random.choice(len(weights), settings.batch_size, p=weights)
        batch = [next(decks[corpus.domains[domain]]) for domain in drawn]
        model.train()
        train_step(model, stack(batch), optimizer)
        model.eval()
    return np.array(history)


def align(
    model: LlamaForCausalLM,
    compared: Mapping[str, Sequence[Passage]],
    guide: Sequence[Passage],
    num_dims: int,
    seed: int,
) -> Float[np.ndarray, " k"]:
    """Return the cosine of each domain's mean gradient with the target's, from one pass."""
    model.eval()
    rows = [passage["input_ids"] for group in (*compared.values(), guide) for passage in group]
    table = run_pass(
        CausalLM(model),
        [{"input_ids": tokens} for tokens in rows],
        [Sketch(SJLT(num_dims=num_dims, seed=seed))],
        settings=PassSettings(batch_size=16),
    )
    ends = np.cumsum([len(group) for group in compared.values()])
    *domains, target = np.split(table.columns["sketch"], ends)
    return cosine_alignments(
        np.array([sketches.mean(axis=0) for sketches in domains]), target.mean(axis=0)
    )


def _deal(passages: Sequence[Passage], random: np.random.Generator) -> Iterator[Passage]:
    """Yield passages in random order, for ever, each once before any comes again."""
    while True:
        for position in random.permutation(len(passages)):
            yield passages[position]
