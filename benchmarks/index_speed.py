"""A query against the influence index, beside a pass over the training examples.

A small language model is trained on the text that every Python ships. Exact scores of a few
queries take one pass of EK-FAC over all passages; the index answers the same queries one
at a time, each with the forward and backward of its own gradient. Recall is of the exact
ten best among the first 10, 100 and 300 by a metric: what re-ranking so many can find.
"""

import time
from dataclasses import replace
from tempfile import TemporaryDirectory

import numpy as np
from influence_index import recall
from measuring import options, parse, publish, table

from gradsift.corpus import Corpus, CorpusSettings, build_corpus
from gradsift.language_model import ModelSettings, build_model, train_model
from influence import (
    EKFAC,
    BasisName,
    EigenProjector,
    FittedCurvature,
    InfluenceIndex,
    build_index,
)
from projections import CausalLM, PassSettings, Task

CORPUS = CorpusSettings(
    packages=("distutils", "encodings", "idlelib", "lib2to3", "test", "tkinter", "unittest"),
    length=64,
    num_train=1250,
    num_held_out=4,
)
MODEL = ModelSettings(steps=1000)
READING = PassSettings(batch_size=32, layers=("model.layers.*",))
RERANKED = 300


def trained(corpus: Corpus, settings: ModelSettings) -> Task:
    """Return the task of a model trained on the corpus."""
    model = build_model(settings, corpus, seed=0)
    train_model(model, corpus.train, settings, seed=0)
    return CausalLM(model)


def time_queries(index: InfluenceIndex, task: Task, corpus: Corpus, *, rerank: int) -> list[float]:
    """Return the seconds of each query, answered alone after one that does not count."""
    seconds = []
    for query in [corpus.held_out[0], *corpus.held_out]:
        began = time.perf_counter()
        index.search(task, [query], k=10, rerank=rerank, data=corpus.train)
        seconds.append(time.perf_counter() - began)
    return seconds[1:]


def speed(index: InfluenceIndex, task: Task, corpus: Corpus, one_pass: float) -> list[str]:
    """Return what a query takes alone and with re-ranking, and how often a pass takes that."""
    alone = np.median(time_queries(index, task, corpus, rerank=0))
    deep = min(RERANKED, len(index))
    again = np.median(time_queries(index, task, corpus, rerank=deep)[:4])
    return [
        f"{alone * 1000:.1f} ms",
        f"{one_pass / alone:,.0f}x",
        f"{again:.2f} s",
        f"{one_pass / again:,.0f}x",
    ]


def recalls(
    index: InfluenceIndex, fitted: FittedCurvature, task: Task, corpus: Corpus, exact: np.ndarray
) -> list[list[str]]:
    """Return a row of recall for each metric."""
    rows = index.store.rows(range(len(index)))
    metrics = {"Gram of the rows": index}
    if isinstance(index.projector, EigenProjector):
        mean = float(index.projector.eigenvalues.mean())
        metrics["eigenvalues"] = replace(index, gram=None, damping=mean)
    found = []
    for name, metric in metrics.items():
        scores = metric.query_rows(task, corpus.held_out) @ rows.T
        found.append([name, recall(exact, scores)])
    norms = index.store.column("grad_norm")
    found.append(
        ["gradient norm, blind to the query", recall(exact, np.tile(norms, (len(exact), 1)))]
    )
    return found


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--coordinates", type=int, nargs="*", default=[1024, 4096])
    parser.add_argument("--principal", type=int, nargs="*", default=[256, 1024])
    arguments = parse(parser)
    corpus_settings, model_settings = CORPUS, MODEL
    dims: dict[BasisName, list[int]] = {
        "principal": arguments.principal,
        "coordinates": arguments.coordinates,
    }
    if arguments.quick:
        corpus_settings = replace(CORPUS, packages=("email",), num_train=20, num_held_out=2)
        model_settings = ModelSettings(steps=2, hidden_size=32, num_layers=1)
        dims = {"principal": [16], "coordinates": [64]}
    corpus = build_corpus(corpus_settings, seed=0)
    task = trained(corpus, model_settings)
    fitted = EKFAC(seed=0).fit(task, corpus.train, settings=READING)
    began = time.perf_counter()
    fitted.scores(task, corpus.held_out[:1], corpus.train)
    one_pass = time.perf_counter() - began
    exact = fitted.scores(task, corpus.held_out, corpus.train).values
    speeds, found = [], []
    for basis, numbers in dims.items():
        for num_dims in numbers:
            with TemporaryDirectory() as folder:
                index = build_index(
                    fitted,
                    task,
                    corpus.train,
                    num_dims=num_dims,
                    path=folder,
                    basis=basis,
                    row_dtype="int8",
                )
                speeds.append([basis, f"{num_dims:,}", *speed(index, task, corpus, one_pass)])
                for row in recalls(index, fitted, task, corpus, exact):
                    found.append([basis, f"{num_dims:,}", *row])
    num_params = sum(layer.eigenvalues.numel() for layer in fitted.layers.values())
    again = f"re-ranking {RERANKED} of each end"
    parts = [
        f"{len(corpus.train):,} passages of {corpus_settings.length} tokens, {num_params:,} weights"
        f" in linear maps; one pass of EK-FAC for one query takes {one_pass:.1f} s. int8 rows.",
        table(["basis", "numbers", "a query", "a pass is", again, "a pass is"], speeds),
        f"Recall of the exact ten best among the first 10 / 100 / 300, {len(exact)} queries:",
        table(["basis", "numbers", "metric", "recall"], found),
    ]
    publish("A query against the index, and a pass", parts, arguments.out)


if __name__ == "__main__":
    main()
