"""Every projection beside exact gradients: errors, recall, time and bytes.

Rows of all projections are compared with the full gradients of the same model on the same
texts. Without `--model` a small language model is trained here on the text of Python's
standard library; `--model DIR --data FOLDER` take a saved one and jsonl files with texts.
Times are a pass from token lists to rows, without norms, over a plain forward and backward
of the same batches in the same rounds.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from measuring import interleave, options, parse, publish, table
from small_llama import build_model, train_batches
from transformers import AutoModelForCausalLM, AutoTokenizer

from gradsift.corpus import CorpusSettings, build_corpus
from gradsift.language_model import ModelSettings, train_model
from gradsift.language_model import build_model as build_small_model
from projections import (
    SJLT,
    SRHT,
    CausalLM,
    Gaussian,
    Layout,
    Masked,
    PassSettings,
    Projector,
    Rademacher,
    Sketch,
    Task,
    TensorSketch,
    coordinates,
    find_components,
    random_kronecker,
    read_dataset,
    run_pass,
)

PLAIN = "plain forward and backward"
TOP = 10
KEPT = 32  # inputs and outputs of each layer that a mask keeps
DENSE = ("Rademacher", "Gaussian")
HEAD = [
    "projection",
    "dimensions",
    "bytes a row",
    "error of inner products",
    "error of norms",
    f"top-{TOP} recall, dot",
    f"top-{TOP} recall, cosine",
    "time",
]

Maker = Callable[[Layout, int], Projector]
PROJECTIONS: dict[str, Maker] = {
    "SJLT, 1 sign": lambda layout, k: SJLT(num_dims=k, seed=0),
    "SJLT, 4 signs": lambda layout, k: SJLT(num_dims=k, num_signs=4, seed=0),
    "SRHT": lambda layout, k: SRHT(num_dims=k, seed=0),
    "TensorSketch": lambda layout, k: TensorSketch(num_dims=k, seed=0),
    "two-sided": lambda layout, k: random_kronecker(layout.components.values(), num_dims=k, seed=0),
    f"mask of {KEPT}, then SJLT": lambda layout, k: Masked(
        projector=SJLT(num_dims=k, seed=0), kept=KEPT, seed=0
    ),
    "Rademacher": lambda layout, k: Rademacher(num_dims=k, seed=0),
    "Gaussian": lambda layout, k: Gaussian(num_dims=k, seed=0),
}


@dataclass(frozen=True)
class Truth:
    """Exact products of queries and candidates.

    Args:
        products: Inner products of gradients, ``q n``.
        queries: Norms of the queries.
        candidates: Norms of the candidates.
    """

    products: np.ndarray
    queries: np.ndarray
    candidates: np.ndarray


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--model", help="a saved causal language model and its tokenizer")
    parser.add_argument("--data", type=Path, help="a folder of jsonl files with a column text")
    parser.add_argument("--num-dims", type=int, nargs="+", default=[256, 1024, 4096, 16384])
    parser.add_argument("--projections", nargs="+", choices=PROJECTIONS, default=[*PROJECTIONS])
    parser.add_argument("--dense-dims", type=int, default=4096, help="most of dense matrices")
    parser.add_argument("--candidates", type=int, default=256)
    parser.add_argument("--queries", type=int, default=64)
    parser.add_argument("--length", type=int, default=128, help="tokens in an example")
    parser.add_argument("--batch-size", type=int, default=32, help="of the runs that are timed")
    parser.add_argument("--timed", type=int, default=64, help="examples of the timed runs")
    parser.add_argument("--wide", action="store_true", help="time a model of 10 million, too")
    chosen = parse(parser)
    if chosen.quick:
        chosen.num_dims, chosen.dense_dims, chosen.rounds, chosen.timed = [64, 256], 64, 1, 4
        chosen.candidates, chosen.queries, chosen.length, chosen.batch_size = 12, 3, 16, 4
    task, rows = load(chosen)
    layout = find_components(task.model)
    truth = exact(task, rows, layout, chosen.queries)
    runs = {
        (name, k): make(layout, k)
        for k in chosen.num_dims
        for name, make in PROJECTIONS.items()
        if name in chosen.projections and not (name in DENSE and k > chosen.dense_dims)
    }
    quality = {
        key: compare(task, rows, projector, truth, chosen.queries)
        for key, projector in runs.items()
    }
    ratios = time_runs(task, rows[: chosen.timed], runs, chosen)
    lines = [
        ["exact", layout.num_parameters, f"{4 * layout.num_parameters:,}", 0, 0, 1, 1, ""],
        *(
            [key[0], *size_of(projector), *quality[key], f"{ratios[key]:.2f}"]
            for key, projector in runs.items()
        ),
    ]
    parts = [
        f"A language model of {layout.num_parameters:,} parameters, {chosen.candidates} candidates "
        f"and {chosen.queries} queries of {chosen.length} tokens; timed on {chosen.timed} in "
        f"batches of {chosen.batch_size}, {chosen.rounds} rounds. Error of inner products: root "
        "mean square of the difference over the product of the exact norms. Error of norms: root "
        "mean square of the ratio less 1. The cosine divides by exact norms. Time: a pass over "
        "a plain forward and backward. Rows are float32.",
        table(HEAD, lines),
    ]
    if chosen.wide:
        parts.append(wide_times(chosen))
    publish("Choosing a projection", parts, chosen.out)


def size_of(projector: Projector) -> tuple[int, str]:
    """Return the number of dimensions and the bytes of a row in float32."""
    return projector.num_dims, f"{4 * projector.num_dims:,}"


def load(chosen: argparse.Namespace) -> tuple[Task, list[Any]]:
    """Return the model and rows of equally many tokens, candidates first."""
    count = chosen.candidates + chosen.queries
    if chosen.model is None:
        corpus = build_corpus(CorpusSettings(length=chosen.length), seed=0)
        settings = ModelSettings(steps=5 if chosen.quick else 300)
        model = build_small_model(settings, corpus, seed=0)
        train_model(model, corpus.train, settings, seed=0)
        order = np.random.default_rng(0).permutation(len(corpus.train))[:count]
        return CausalLM(model), [{"input_ids": corpus.train[i]["input_ids"]} for i in order]
    model = AutoModelForCausalLM.from_pretrained(chosen.model).eval()
    tokenizer = AutoTokenizer.from_pretrained(chosen.model)
    rows: list[Any] = []
    files = sorted(chosen.data.glob("*.jsonl*"))
    share = -(-count // len(files))
    for path in files:
        texts = read_dataset(str(path))["text"]
        tokens = (tokenizer(text)["input_ids"][: chosen.length] for text in texts)
        whole = (ids for ids in tokens if len(ids) == chosen.length)
        rows.extend({"input_ids": ids} for ids, _ in zip(whole, range(share), strict=False))
    order = np.random.default_rng(0).permutation(len(rows))[:count]
    return CausalLM(model), [rows[i] for i in order]


def project(task: Task, rows: Sequence[Any], projector: Projector, batch_size: int) -> np.ndarray:
    """Return the projected gradients of rows."""
    settings = PassSettings(batch_size=batch_size)
    return run_pass(task, rows, [Sketch(projector)], settings=settings).columns["sketch"]


def exact(task: Task, rows: Sequence[Any], layout: Layout, num_queries: int) -> Truth:
    """Compare full gradients."""
    whole = project(task, rows, coordinates(layout.components.values()), len(rows))
    norms = np.linalg.norm(whole.astype(np.float64), axis=1)
    candidates, queries = whole[:-num_queries], whole[-num_queries:]
    return Truth(
        (queries @ candidates.T).astype(np.float64), norms[-num_queries:], norms[:-num_queries]
    )


def compare(
    task: Task, rows: Sequence[Any], projector: Projector, truth: Truth, num_queries: int
) -> list[str]:
    """Return errors and recalls of one projection."""
    # One batch for all, so that a dense matrix is drawn once.
    found = project(task, rows, projector, len(rows)).astype(np.float64)
    candidates, queries = found[:-num_queries], found[-num_queries:]
    products = queries @ candidates.T
    scale = np.outer(truth.queries, truth.candidates)
    norms = np.linalg.norm(found, axis=1) / np.concatenate([truth.candidates, truth.queries])
    return [
        f"{root_mean_square((products - truth.products) / scale):.4f}",
        f"{root_mean_square(norms - 1):.4f}",
        f"{recall(products, truth.products):.2f}",
        f"{recall(products / truth.candidates, truth.products / truth.candidates):.2f}",
    ]


def root_mean_square(values: np.ndarray) -> float:
    """Return the root of the mean square."""
    return float(np.sqrt(np.square(values).mean()))


def recall(found: np.ndarray, expected: np.ndarray) -> float:
    """Return the share of the true top that is in the top that was found."""
    tops = [np.argsort(-scores, axis=1)[:, :TOP] for scores in (found, expected)]
    return float(np.mean([len(np.intersect1d(*pair)) / TOP for pair in zip(*tops, strict=True)]))


Runs = dict[tuple[str, int], Projector]


def time_runs(
    task: Task, rows: Sequence[Any], runs: Runs, chosen: argparse.Namespace
) -> dict[tuple[str, int], float]:
    """Return the time of each pass over that of a plain forward and backward."""
    tokens = torch.tensor([row["input_ids"] for row in rows])
    calls: dict[str, Callable[[], object]] = {
        PLAIN: lambda: train_batches(cast(Any, task.model), tokens, chosen.batch_size)
    }
    for key, projector in runs.items():
        calls[str(key)] = lambda projector=projector: project(
            task, rows, projector, chosen.batch_size
        )
    times = interleave(calls, chosen.rounds)
    return {key: times.ratio(str(key), PLAIN) for key in runs}


def wide_times(chosen: argparse.Namespace) -> str:
    """Time the sparse projections on a wider model with random weights."""
    model = build_model(chosen.quick)
    layout = find_components(model)
    generator = torch.Generator().manual_seed(0)
    shape = (chosen.batch_size, chosen.length)
    tokens = torch.randint(model.config.vocab_size, shape, generator=generator)
    rows = [{"input_ids": row} for row in tokens.tolist()]
    runs = {
        (name, k): make(layout, k)
        for k in chosen.num_dims
        for name, make in PROJECTIONS.items()
        if name not in DENSE
    }
    ratios = time_runs(CausalLM(model), rows, runs, chosen)
    names = [name for name in PROJECTIONS if name not in DENSE]
    lines = [[name, *(f"{ratios[name, k]:.2f}" for k in chosen.num_dims)] for name in names]
    return (
        f"Times for a wider model of {layout.num_parameters:,} parameters, one batch of "
        f"{chosen.batch_size}:\n\n" + table(["projection", *chosen.num_dims], lines)
    )


if __name__ == "__main__":
    main()
