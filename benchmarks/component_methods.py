"""Ways to tell which text a query came from, each with its scores and its seconds.

Letters: ``p`` pairs of queries and candidates, ``k`` numbers of a row.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from component_choices import SHARE, Choice, choose_heads, choose_in_ways
from component_corpora import Corpus, Model

from influence import (
    EKFAC,
    ChosenComponents,
    ComponentProducts,
    SourceQuestions,
    build_index,
    component_products,
    source_questions,
    split_queries,
)
from projections import (
    SJLT,
    CausalLM,
    HiddenStates,
    PassSettings,
    Projector,
    Sketch,
    find_components,
    find_heads,
    run_pass,
)

READING = PassSettings(batch_size=16, max_tokens=4096)
DIMENSIONS = (256, 1024, 4096, 16_384)
TIMED = 10  # queries
FIT_ROWS = 400  # texts that the curvature is fitted to
EKFAC_DIMENSIONS = 1024


@dataclass(frozen=True)
class Found:
    """What one method found.

    Args:
        method: Its name.
        numbers: Numbers that it keeps of a text.
        scores: One a pair.
        seconds: Processor seconds for a hundred texts, queries or candidates.
    """

    method: str
    numbers: int
    scores: np.ndarray
    seconds: float


@dataclass(frozen=True)
class Trial:
    """One model on one corpus.

    Args:
        model: The model.
        corpus: Texts and queries.
        dimensions: Sizes of random projections.
    """

    model: Model
    corpus: Corpus
    dimensions: Sequence[int] = DIMENSIONS

    @cached_property
    def task(self) -> CausalLM:
        """The model and its loss."""
        return CausalLM(self.model.model)

    @cached_property
    def few(self) -> "Trial":
        """The first queries alone, on which methods are timed."""
        corpus = replace(self.corpus, queries=self.corpus.queries[:TIMED])
        few = Trial(self.model, corpus, self.dimensions)
        few.__dict__["task"] = self.task  # which remembers what was checked
        return few

    @cached_property
    def questions(self) -> SourceQuestions:
        """Five candidates of each query."""
        queries = [query.words for query in self.corpus.queries]
        texts = [text.words for text in self.corpus.texts]
        return source_questions(queries, texts, [query.source for query in self.corpus.queries])

    @cached_property
    def queries(self) -> list[dict[str, Any]]:
        """The queries as tokens."""
        return self.model.rows(self.corpus.queries)

    @cached_property
    def candidates(self) -> list[dict[str, Any]]:
        """The texts that are a candidate of any query, as tokens."""
        used = np.unique(self.questions.candidates)
        return self.model.rows([self.corpus.texts[place] for place in used])

    @cached_property
    def pairs(self) -> np.ndarray:
        """Pairs of queries and of such candidates."""
        queries, texts = self.questions.pairs.T
        where = np.searchsorted(np.unique(self.questions.candidates), texts)
        return np.stack([queries, where], axis=1)

    @property
    def groups(self) -> list[int]:
        """The author or the task of each query."""
        return [query.group for query in self.corpus.queries]

    @cached_property
    def reported(self) -> np.ndarray:
        """Positions of the queries that nothing was chosen on."""
        ids = np.array([row["id"] for row in self.queries])
        return split_queries(ids, seed=0, share=SHARE, groups=self.groups)[1]

    def products(self, settings: PassSettings = READING) -> ComponentProducts:
        """Return what components say of all pairs."""
        return component_products(
            self.task, self.queries, self.candidates, self.pairs, settings=settings
        )

    def compare(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """Return the cosines of pairs of rows."""
        left = left / np.linalg.norm(left, axis=1, keepdims=True).clip(1e-30)
        right = right / np.linalg.norm(right, axis=1, keepdims=True).clip(1e-30)
        return np.einsum("pk,pk->p", left[self.pairs[:, 0]], right[self.pairs[:, 1]])


@dataclass(frozen=True)
class Outcome:
    """All methods of one trial.

    Args:
        methods: What they found, the full gradient first.
        products: What every component says.
        by_head: The same, attention by head.
        choices: What was chosen.
    """

    methods: list[Found]
    products: ComponentProducts
    by_head: ComponentProducts
    choices: list[Choice]


def run_trial(trial: Trial) -> Outcome:
    """Run every method on one model and corpus.

    Cosines of chosen components come from the products of all; their seconds, and those of
    every other method, are taken on a few queries, with only what the method needs.
    """
    products, by_head = trial.products(), trial.products(_headed(trial))
    sizes = [component.size for component in products.components]
    whole = choose_in_ways(products, trial.groups)
    heads = choose_heads(by_head, trial.groups)
    trial.few.products()  # the first pass checks the model, which is not timed
    taken = _per_hundred(trial.few, trial.few.products)
    methods = [
        Found("full gradient, cosine", sum(sizes), products.cosines(), taken),
        Found("full gradient, inner product", sum(sizes), products.dots(), taken),
    ]
    methods += [_timed(trial, choice, READING) for choice in whole]
    methods += [_timed(trial, choice, _headed(trial)) for choice in heads]
    (greedy,) = (c.chosen for c in whole if c.name.startswith("greedy, by accuracy, "))
    methods += _sketches(trial, greedy)
    methods += _ekfac(trial, READING, "EK-FAC index")
    linear = [name for name in greedy.names if name in _linear(trial)]
    if linear:
        some = replace(READING, layers=tuple(linear))
        methods += _ekfac(trial, some, "EK-FAC index of the greedy set")
    methods += [_embeddings(trial), _lexical(trial)]
    return Outcome(methods, products, by_head, [*whole, *heads])


def _timed(trial: Trial, choice: Choice, reading: PassSettings) -> Found:
    """Return what chosen components find, and the seconds of a pass over them alone."""
    settings = choice.chosen.settings(trial.task, reading)
    trial.few.products(settings)
    taken = _per_hundred(trial.few, lambda: trial.few.products(settings))
    names = choice.chosen.names
    count = sum(c.size for c in choice.products.components if c.name in names)
    return Found(choice.name, count, choice.products.cosines(names), taken)


def _headed(trial: Trial) -> PassSettings:
    """Return settings of passes that take attention apart by head."""
    return replace(READING, heads=find_heads(trial.model.model))


def _sketches(trial: Trial, greedy: ChosenComponents) -> list[Found]:
    """Return random projections of the full gradient, in one pass, and one of the greedy set."""
    projectors = [SJLT(num_dims=num_dims, seed=0) for num_dims in trial.dimensions]
    names = [f"random projection, {num_dims:,}" for num_dims in trial.dimensions]
    found = _sketch(trial, projectors, names, READING)
    middle = trial.dimensions[(len(trial.dimensions) - 1) // 2]
    chosen = greedy.projector(SJLT(num_dims=middle, seed=0))
    name = f"greedy set, then projected, {middle:,}"
    return found + _sketch(trial, [chosen], [name], greedy.settings(trial.task, READING))


def _sketch(
    trial: Trial, projectors: Sequence[Projector], names: Sequence[str], settings: PassSettings
) -> list[Found]:
    """Return the cosines of projected gradients."""

    def rows(some: Trial, which: Sequence[Projector]) -> list[dict[str, np.ndarray]]:
        columns = [Sketch(projector, name=str(place)) for place, projector in enumerate(which)]
        sides = (some.queries, some.candidates)
        return [dict(run_pass(some.task, s, columns, settings=settings).columns) for s in sides]

    asked, kept = rows(trial, projectors)
    found = []
    for place, (name, projector) in enumerate(zip(names, projectors, strict=True)):
        scores = trial.compare(asked[str(place)], kept[str(place)])
        taken = _per_hundred(trial.few, lambda p=projector: rows(trial.few, [p]))
        found.append(Found(name, projector.num_dims, scores, taken))
    return found


def _ekfac(trial: Trial, settings: PassSettings, name: str) -> list[Found]:
    """Return scores of an influence index, as they are and divided by both rows' lengths."""
    texts = trial.corpus.texts
    some = np.random.default_rng(0).permutation(len(texts))[:FIT_ROWS]
    rows = trial.model.rows([texts[place] for place in some])
    began = time.process_time()
    fitted = EKFAC(seed=0).fit(trial.task, rows, settings=settings)
    entries = sum(layer.eigenvalues.numel() for layer in fitted.layers.values())
    num_dims = min(EKFAC_DIMENSIONS, entries)
    spent = time.process_time() - began
    with TemporaryDirectory() as folder:
        path = Path(folder)
        index = build_index(
            fitted, trial.task, trial.candidates, num_dims=num_dims, path=path, basis="coordinates"
        )
        kept = np.concatenate([np.array(block) for block in index.store.blocks()])
    whitened = index.whitening.apply(torch.from_numpy(kept).float()).numpy()
    reading = fitted.reading(None)

    def sketch(side: list[dict[str, Any]]) -> np.ndarray:
        found = run_pass(trial.task, side, [Sketch(index.projector)], settings=reading)
        return found.columns["sketch"]

    own = sketch(trial.queries)
    asked = index.whitening.apply(torch.from_numpy(own)).numpy()
    left, right = trial.pairs.T
    dots = np.einsum("pk,pk->p", asked[left], kept[right])
    lengths = np.einsum("qk,qk->q", asked, own)[left]
    lengths = lengths * np.einsum("nk,nk->n", whitened, kept)[right]
    cosines = dots / np.sqrt(lengths.clip(1e-30))
    few = trial.few
    taken = _per_hundred(few, lambda: [sketch(few.queries), sketch(few.candidates)])
    name = f"{name}, {num_dims:,}"
    return [
        Found(f"{name} (fitted in {spent:.0f} s)", num_dims, dots, taken),
        Found(f"{name}, cosine", num_dims, cosines, taken),
    ]


def _embeddings(trial: Trial) -> Found:
    """Return the cosines of mean hidden states."""
    model = trial.model
    encode = HiddenStates(model=model.model, tokenizer=model.tokenizer, max_length=model.max_length)

    def rows(some: Trial) -> list[np.ndarray]:
        return [
            np.concatenate([encode(side[p : p + 16]) for p in range(0, len(side), 16)])
            for side in (some.queries, some.candidates)
        ]

    taken = _per_hundred(trial.few, lambda: rows(trial.few))
    width = int(model.model.config.hidden_size)
    name = "embeddings (mean of last hidden states)"
    return Found(name, width, trial.compare(*rows(trial)), taken)


def _lexical(trial: Trial) -> Found:
    """Return BM25, by which the candidates were chosen."""
    again = Trial(trial.model, trial.corpus)
    began = time.process_time()
    scores = again.questions.lexical.ravel()
    taken = time.process_time() - began
    return Found("BM25", 0, scores, 100 * taken / len(trial.corpus.queries))


def _linear(trial: Trial) -> set[str]:
    """Return the components that have a Kronecker-factored curvature."""
    return set(find_components(trial.task.model, kinds=("linear",)).components)


def _per_hundred(few: Trial, compute: Callable[[], Any]) -> float:
    """Return the processor seconds for a hundred texts, by those of a few."""
    began = time.process_time()
    compute()
    taken = time.process_time() - began
    return 100 * taken / (len(few.queries) + len(few.candidates))
