"""A query against the influence index, beside a pass over the training examples.

A small language model is trained on the text that every Python ships. Exact scores of a few
queries take one pass of EK-FAC over all passages, timed before and after the queries of each
index. The index answers the same queries one at a time, each with the forward and backward of
its own gradient, and again with candidates re-ranked. Recall is of the exact ten best: among
the ten after re-ranking, and among the first 10, 100 and 300 by the index's own metric.
"""

import time
from dataclasses import replace
from tempfile import TemporaryDirectory

import numpy as np
from influence_index import recall
from measuring import options, parse, publish, table

from gradsift.corpus import Corpus, CorpusSettings, build_corpus
from gradsift.language_model import ModelSettings, build_model, train_model
from influence import EKFAC, BasisName, FittedCurvature, InfluenceIndex, build_index
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


def answer(
    index: InfluenceIndex, task: Task, corpus: Corpus, *, rerank: int
) -> tuple[float, np.ndarray]:
    """Return the median seconds of a query alone, and the positions of the ten best of each.

    The first query is answered once before, which does not count.
    """
    seconds, best = [], []
    for query in [corpus.held_out[0], *corpus.held_out]:
        began = time.perf_counter()
        top, _ = index.search(task, [query], k=10, rerank=rerank, data=corpus.train)
        seconds.append(time.perf_counter() - began)
        best.append(top.positions[0])
    return float(np.median(seconds[1:])), np.stack(best[1:])


def time_pass(fitted: FittedCurvature, task: Task, corpus: Corpus) -> float:
    """Return the seconds of a pass that scores all passages for one query."""
    began = time.perf_counter()
    fitted.scores(task, corpus.held_out[:1], corpus.train)
    return time.perf_counter() - began


def speed(index: InfluenceIndex, task: Task, corpus: Corpus, exact: np.ndarray) -> list[str]:
    """Return what a pass and a query take, alone and with re-ranking, and what that finds.

    The machine has faster and slower minutes: a pass is timed before the queries and after.
    """
    before = time_pass(index.curvature, task, corpus)
    alone, _ = answer(index, task, corpus, rerank=0)
    one_pass = (before + time_pass(index.curvature, task, corpus)) / 2
    again, best = answer(index, task, corpus, rerank=min(RERANKED, len(index)))
    wanted = np.argsort(-exact, axis=1)[:, :10]
    shares = [np.isin(some, found).mean() for some, found in zip(wanted, best, strict=True)]
    return [
        f"{one_pass:.1f} s",
        f"{alone * 1000:.1f} ms",
        f"{one_pass / alone:,.0f}x",
        f"{again:.2f} s",
        f"{one_pass / again:,.0f}x",
        f"{np.mean(shares):.2f}",
    ]


def recalls(
    index: InfluenceIndex, task: Task, corpus: Corpus, exact: np.ndarray
) -> list[list[str]]:
    """Return the recall of the index's own metric, and that of a list without a query."""
    rows = index.store.rows(range(len(index)))
    norms = np.tile(index.store.column("grad_norm"), (len(exact), 1))
    return [
        ["Gram of the rows", recall(exact, index.query_rows(task, corpus.held_out) @ rows.T)],
        ["gradient norm, blind to the query", recall(exact, norms)],
    ]


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
                found_by = speed(index, task, corpus, exact)
                speeds.append([basis, f"{num_dims:,}", *found_by])
                for row in recalls(index, task, corpus, exact):
                    found.append([basis, f"{num_dims:,}", *row])
    num_params = sum(layer.eigenvalues.numel() for layer in fitted.layers.values())
    again = f"re-ranking {RERANKED} of each end"
    parts = [
        f"{len(corpus.train):,} passages of {corpus_settings.length} tokens, {num_params:,} weights"
        f" in linear maps. int8 rows. A pass is of EK-FAC, for one query.",
        table(["basis", "numbers", "a pass", "a query", "ratio", again, "ratio", "recall"], speeds),
        f"Recall of the exact ten best among the first 10 / 100 / 300, {len(exact)} queries:",
        table(["basis", "numbers", "metric", "recall"], found),
    ]
    publish("A query against the index, and a pass", parts, arguments.out)


if __name__ == "__main__":
    main()
