"""What needs no retraining of ours: the evaluator on others' models, and known classes."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from attribution_setups import read_rows
from measuring import table
from sklearn.feature_extraction.text import TfidfVectorizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from influence import (
    BM25,
    EKFAC,
    TFIDF,
    DataInf,
    GradientCosine,
    HiddenSimilarity,
    LabelSigned,
    ModelCheckpoint,
    RelativeDamping,
    RowInfluence,
    TracIn,
    error_over_subsets,
    linear_datamodeling_score,
    recall_of_members,
    subset_detection,
)
from projections import SJLT, CausalLM, PassSettings

READING = PassSettings(batch_size=128, max_tokens=8192)

PUBLISHED = {"label alone": "0.103", "words and pairs": "0.276"}


def check_evaluator(data: Path | None) -> list[str]:
    """Return LDS on models of BERT that others retrained, for scores that need no model."""
    if data is None:
        return ["## RTE", "Not run: it needs `--data`."]
    file = np.load(data / "lds_ground_truth_kronfluence" / "rte_bert_lds.npz")
    masks, losses = file["masks"], -file["margins"]
    rows = [paired(row) for row in read_rows(data / "rte" / "train.jsonl.gz")][: masks.shape[1]]
    asked = [paired(row) for row in read_rows(data / "rte" / "dev.jsonl.gz")]
    labels, own = (np.array([row["label"] for row in part]) for part in (asked, rows))
    signs = np.where(labels[:, None] == own[None, :], 1.0, -1.0)
    texts = [[row["text"] for row in part] for part in (asked, rows)]
    words = TfidfVectorizer(sublinear_tf=True, ngram_range=(1, 2), min_df=2).fit(texts[1])
    pairs = (words.transform(texts[0]) @ words.transform(texts[1]).T).toarray()
    signed = LabelSigned(method=TFIDF()).fit(None, rows)
    order = np.random.default_rng(0).permutation(len(rows))
    found = {
        "label alone": signs,
        "label-signed TF-IDF, words and pairs in two or more texts": pairs * signs,
        "the same, rows permuted": (pairs * signs)[:, order],
        "`LabelSigned(method=TFIDF())`, words": signed.scores(None, asked, rows).values,
    }
    lines = [
        [
            name,
            linear_datamodeling_score(masks, scores, losses),
            f"± {error_over_subsets(masks, scores, losses):.3f}",
            next((value for key, value in PUBLISHED.items() if key in name), ""),
        ]
        for name, scores in found.items()
    ]
    return [
        "## The evaluator on retraining that others did: BERT on RTE",
        "100 halves of 2,432 examples, 277 queries, models and margins by others. The recipe "
        "of the TF-IDF that gave 0.276 is not known; the label alone leaves nothing to choose.",
        table(["scores", "LDS", "over subsets", "expected"], lines),
    ]


def paired(row: dict[str, Any]) -> dict[str, Any]:
    return {"text": f"{row['text_a']} {row['text_b']}", "label": row["label"]}


TASKS = ("grammars", "math_with_reason", "math_without_reason")


def classes_of_tasks(
    data: Path | None, kept: Path | None, *, tiny: bool, only_kept: bool
) -> list[str]:
    """Return how well methods find the variation of a task that a query is of.

    A pretrained language model is trained further on each task, on the loss of the answer.
    """
    if data is None:
        return ["## DataInf's tasks", "Not run: it needs `--data`."]
    parts = [
        "## DataInf's three tasks, 900 and 100 each: does a query find its own variation?",
        "A pretrained language model of 260,032 parameters, trained on the answers of each task "
        "for 2 epochs. Members are the 90 examples of a query's variation: area under the ROC "
        "curve, and their share among the 90 first. Texts name their variation by template, so "
        "that words alone nearly suffice.",
    ]
    lines = []
    for name in TASKS[:1] if tiny else TASKS:
        path = kept and kept / f"datainf_{name}.json"
        if path is not None and path.exists():
            found = json.loads(path.read_text())
        elif only_kept:
            continue
        else:
            found = list(one_task(data, name, kept, tiny))
        if path is not None:
            path.write_text(json.dumps(found))
        lines += [[name, *line] for line in found]
    return [*parts, table(["task", "method", "class", "recall", "s"], lines)]


def one_task(data: Path, name: str, kept: Path | None, tiny: bool) -> Iterator[list[str]]:
    """Yield the line of each method on one task."""
    folder = data / "datainf_llm_tasks"
    rows, asked = (read_rows(folder / f"{name}_{part}.jsonl.gz") for part in ("train", "test"))
    rows, asked = (rows[::30], asked[::10]) if tiny else (rows, asked)
    tokenizer = AutoTokenizer.from_pretrained(data / "stories260k_hf")
    rows, asked = ([encoded(tokenizer, row) for row in part] for part in (rows, asked))
    task = fine_tuned(data / "stories260k_hf", rows, kept and kept / f"datainf_{name}.pt", tiny)
    members = np.array([[row["variation"] == q["variation"] for row in rows] for q in asked])
    last = ModelCheckpoint(state=task.model.state_dict())
    cosine = RowInfluence(metric=GradientCosine(), projector=SJLT(num_dims=4096, seed=0))
    methods: dict[str, Any] = {
        "TF-IDF": TFIDF(),
        "BM25": BM25(),
        "last hidden state": HiddenSimilarity(),
        "gradient dot product": TracIn(checkpoints=[last]),
        "gradient cosine": cosine,
        "DataInf": DataInf(),
        "DataInf, 10 x mean": DataInf(damping=RelativeDamping(10.0)),
        "EK-FAC": EKFAC(seed=0),
        "EK-FAC, 1 x mean": EKFAC(seed=0, damping=RelativeDamping(1.0)),
    }
    for method, settings in methods.items():
        began = time.process_time()
        fitted = settings.fit(task, rows, settings=READING)
        scores = fitted.scores(task, asked, rows).values
        seconds = time.process_time() - began
        area, recall = subset_detection(scores, members), recall_of_members(scores, members)
        yield [method, str(area), str(recall), f"{seconds:.1f}"]


def encoded(tokenizer: Any, row: dict[str, Any]) -> dict[str, Any]:
    """Return a row whose loss is that of its answer."""
    ids, prompt = tokenizer(row["text"])["input_ids"], tokenizer(row["prompt"])["input_ids"]
    labels = [-100] * len(prompt) + ids[len(prompt) :]
    return {**row, "input_ids": ids, "labels": labels}


def fine_tuned(folder: Path, rows: list[dict[str, Any]], path: Path | None, tiny: bool) -> CausalLM:
    """Return the pretrained model after some epochs on the rows, or as it was kept."""
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    task = CausalLM(model)
    if path is not None and path.exists():
        model.load_state_dict(torch.load(path, weights_only=True))
        return task
    examples = task.encode(rows)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    order = torch.Generator().manual_seed(0)
    for _ in range(1 if tiny else 2):
        for chosen in torch.randperm(len(rows), generator=order).split(30):
            optimizer.zero_grad()
            batch = task.collate([examples[row] for row in chosen.tolist()])
            (task.losses(batch).sum() / len(chosen) / 16).backward()
            optimizer.step()
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(model.state_dict(), path)
    return task
