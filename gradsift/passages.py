"""Job 2 of the demo: the training passages behind a language model's predictions.

Letters: ``q`` queries, ``n`` training passages, ``k`` passages retrieved.

Held-out passages are the queries. For each, the training passages whose gradients help or
harm its prediction most are retrieved from one index, by several methods, and by the words
they share (TF-IDF), which needs no model. How many come from the query's own domain says
how topical a method is; it does not say how well it predicts the effect of retraining.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int
from sklearn.feature_extraction.text import TfidfVectorizer
from transformers import LlamaForCausalLM

from gradsift.corpus import Corpus, Passage
from influence import TRAK, GradientCosine, GradientDot, Metric, retrieve_rows
from projections import SJLT, CausalLM, PassSettings, TopK, index_gradients, query_rows

BASELINE = "tf-idf"
WORDS = r"[A-Za-z]+|[0-9]+"
Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class PassagesSettings:
    """Sizes of the job."""

    num_queries: int = 8
    """Queries of each domain."""

    k: int = 10
    """Passages retrieved for each query, at each end."""

    num_dims: int = 2048
    """Dimensions of the index."""

    damping: float = 10.0
    """Damping of TRAK, as a multiple of the mean eigenvalue; chosen on another seed, where 0.1
    took 41 % of the top 10 from the query's domain, 1 took 53 % and 10 took 55 %."""

    layers: tuple[str, ...] | None = ("*embed_tokens*",)
    """Patterns of the layers whose gradients are indexed; chosen on another seed, where the cosine
    took 55 % of the top 10 from the query's domain, and 47 % with all layers."""

    num_shown: int = 3
    """Queries that the report shows."""

    shown: str = "trak"
    """Method whose passages the report shows."""


@dataclass(frozen=True)
class PassagesResult:
    """What was retrieved.

    Args:
        num_rows: Number ``n`` of training passages.
        num_queries: Number ``q`` of queries.
        k: Number of passages retrieved for each.
        domain_share: By method: the share of the top ``k`` from the query's domain.
        domain_first: By method: the share of queries whose first passage is from its domain.
        module_share: By method: the share of the top ``k`` from the query's module, over
            queries whose module has at least ``k`` training passages.
        num_module_queries: Number of those queries.
        by_domain: By method: the share of the top ``k``, for the queries of each domain.
        examples: Some queries with their most helpful and most harmful passages.
    """

    num_rows: int
    num_queries: int
    k: int
    domain_share: dict[str, float]
    domain_first: dict[str, float]
    module_share: dict[str, float]
    num_module_queries: int
    by_domain: dict[str, dict[str, float]]
    examples: list[dict[str, Any]]


def run_passages(
    settings: PassagesSettings,
    corpus: Corpus,
    model: LlamaForCausalLM,
    *,
    path: Path,
    seed: int,
    say: Say,
) -> PassagesResult:
    """Index the training passages and retrieve for the queries.

    Args:
        settings: Sizes.
        corpus: The passages.
        model: A model trained on them.
        path: Folder of the index.
        seed: Seed of the projection.
        say: Takes lines about progress.
    """
    task = CausalLM(model)
    reading = PassSettings(batch_size=16, layers=settings.layers)
    projector = SJLT(num_dims=settings.num_dims, seed=seed)
    store = index_gradients(task, corpus.train, projector, path=path, settings=reading)
    say(f"passages: indexed {len(store):,} gradients of {store.num_dims:,} numbers")
    queries = pick_queries(corpus, settings.num_queries)
    metrics: dict[str, Metric] = {
        "trak": TRAK(damping=settings.damping),
        "cosine": GradientCosine(),
        "dot": GradientDot(),
    }
    rows = query_rows(task, queries, projector, settings=reading, store=store)
    ends = {
        name: retrieve_rows(rows, store, metric, k=settings.k) for name, metric in metrics.items()
    }
    positions = {name: top.positions for name, (top, _) in ends.items()}
    positions[BASELINE] = nearest_by_words(queries, corpus.train, k=settings.k)
    result = measure(positions, queries, corpus, ends[settings.shown], settings)
    for name, share in result.domain_share.items():
        say(f"passages: {share:6.1%} of the top {settings.k} from the query's domain, {name}")
    return result


def pick_queries(corpus: Corpus, count: int) -> list[Passage]:
    """Return the first held-out passages of each domain."""
    return [
        passage
        for domain in corpus.domains
        for passage in corpus.of_domain(domain, held_out=True)[:count]
    ]


def nearest_by_words(
    queries: Sequence[Passage], passages: Sequence[Passage], *, k: int
) -> Int[np.ndarray, "q k"]:
    """Return the passages with the largest TF-IDF cosine to each query."""
    vectorizer = TfidfVectorizer(token_pattern=WORDS, sublinear_tf=True)
    rows = vectorizer.fit_transform([passage["text"] for passage in passages])
    wanted = vectorizer.transform([query["text"] for query in queries])
    similarities = np.asarray((wanted @ rows.T).todense())
    return np.argsort(-similarities, axis=1, kind="stable")[:, :k]


def measure(
    positions: dict[str, Int[np.ndarray, "q k"]],
    queries: Sequence[Passage],
    corpus: Corpus,
    shown: tuple[TopK, TopK],
    settings: PassagesSettings,
) -> PassagesResult:
    """Count how much of what was retrieved is from the query's own domain and module."""
    domains, modules = _column(corpus.train, "domain"), _column(corpus.train, "module")
    own, own_module = _column(queries, "domain")[:, None], _column(queries, "module")[:, None]
    sizes = (modules == own_module).sum(axis=1)
    large = sizes >= settings.k
    share, first, module, by_domain = {}, {}, {}, {}
    for name, found in positions.items():
        hits = domains[found] == own
        share[name] = float(hits.mean())
        first[name] = float(hits[:, 0].mean())
        module[name] = float((modules[found] == own_module)[large].mean()) if large.any() else 0.0
        by_domain[name] = {
            domain: float(hits[own[:, 0] == domain].mean()) for domain in corpus.domains
        }
    share["chance"] = first["chance"] = float((domains == own).mean())
    module["chance"] = float(sizes[large].mean() / len(modules)) if large.any() else 0.0
    examples = [
        _example(query, queries[query], corpus.train, shown, positions[BASELINE])
        for query in np.linspace(0, len(queries) - 1, settings.num_shown).round().astype(int)
    ]
    return PassagesResult(
        num_rows=len(corpus.train),
        num_queries=len(queries),
        k=settings.k,
        domain_share=share,
        domain_first=first,
        module_share=module,
        num_module_queries=int(large.sum()),
        by_domain=by_domain,
        examples=examples,
    )


def _example(
    number: int,
    query: Passage,
    passages: Sequence[Passage],
    ends: tuple[TopK, TopK],
    by_words: Int[np.ndarray, "q k"],
) -> dict[str, Any]:
    """Return one query with the passages at both ends."""
    top, bottom = ends
    hits = {
        name: [
            {**_plain(passages[row]), "score": float(score)}
            for row, score in zip(end.positions[number], end.scores[number], strict=True)
        ]
        for name, end in (("helpful", top), ("harmful", bottom))
    }
    return {**_plain(query), **hits, BASELINE: [_plain(passages[row]) for row in by_words[number]]}


def _plain(passage: Passage) -> dict[str, Any]:
    """Return a passage without its tokens."""
    return {name: passage[name] for name in ("id", "domain", "module", "text")}


def _column(passages: Sequence[Passage], name: str) -> np.ndarray:
    """Return one field of all passages."""
    return np.array([passage[name] for passage in passages])
