"""DataInf's language tasks: does a query find the examples of its own variation?"""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from attribution_scores import slug
from attribution_setups import read_rows
from code_behind import code_behind
from measuring import table
from transformers import AutoModelForCausalLM, AutoTokenizer

from influence import (
    BM25,
    EKFAC,
    TFIDF,
    DataInf,
    EmbeddingSimilarity,
    GradientCosine,
    HiddenSimilarity,
    ModelCheckpoint,
    RelativeDamping,
    RowInfluence,
    TracIn,
    copy_state,
    recall_of_members,
    subset_detection,
)
from projections import SJLT, CausalLM, PassSettings, SentenceEncoder, require

READING = PassSettings(batch_size=128, max_tokens=8192)
TASKS = ("grammars", "math_with_reason", "math_without_reason")
EPOCHS = 2
WITHOUT_TASK = ("TF-IDF", "BM25", "embeddings")
METHODS: dict[str, Callable[["LanguageTask"], Any]] = {
    "TF-IDF": lambda one: TFIDF(),
    "BM25": lambda one: BM25(),
    "embeddings": lambda one: EmbeddingSimilarity(encoder=sentence_encoder(one.data)),
    "last hidden state": lambda one: HiddenSimilarity(),
    "gradient dot product": lambda one: TracIn(
        checkpoints=[ModelCheckpoint(state=copy_state(one.task.model))]
    ),
    "gradient cosine": lambda one: RowInfluence(
        metric=GradientCosine(), projector=SJLT(num_dims=4096, seed=0)
    ),
    "DataInf": lambda one: DataInf(),
    "DataInf, 10 x mean": lambda one: DataInf(damping=RelativeDamping(10.0)),
    "EK-FAC": lambda one: EKFAC(seed=0),
    "EK-FAC, 1 x mean": lambda one: EKFAC(seed=0, damping=RelativeDamping(1.0)),
}


@dataclass(frozen=True)
class LanguageTask:
    """One of the tasks, with a pretrained model that was trained further on its answers.

    Args:
        name: One of `TASKS`.
        data: Folder of the data.
        kept: Folder that keeps what was found.
        tiny: Whether this is a test.
    """

    name: str
    data: Path
    kept: Path | None
    tiny: bool

    def path(self, what: str, *roots: str, ending: str) -> Path | None:
        """Return where something is kept, by the code behind it."""
        code = code_behind(*(f"attribution_tasks:{root}" for root in roots), "projections.layers")
        size = "-tiny" if self.tiny else ""
        name = f"{slug(what)}-{code}{size}{ending}"
        return self.kept and self.kept / f"datainf_{self.name}" / name

    def line(self, method: str, *, only_kept: bool) -> list[str] | None:
        """Return what a method found, from what is kept if it is there."""
        roots = (f"METHODS[{method}]", "LanguageTask", "fine_tuned", "encoded")
        path = self.path(method, *roots, ending=".json")
        if path is not None and path.exists():
            return json.loads(path.read_text())
        if only_kept:
            return None
        task: Any = None if method in WITHOUT_TASK else self.task
        settings, began = METHODS[method](self), time.process_time()
        fitted = settings.fit(task, self.rows, settings=READING)
        scores = fitted.scores(task, self.asked, self.rows).values
        seconds = time.process_time() - began
        area = subset_detection(scores, self.members)
        found = [str(area), str(recall_of_members(scores, self.members)), f"{seconds:.1f}"]
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(found))
        return found

    def read(self, part: str, step: int) -> list[dict[str, Any]]:
        """Return examples of a part with their tokens."""
        found = read_rows(self.data / "datainf_llm_tasks" / f"{self.name}_{part}.jsonl.gz")
        tokenizer = AutoTokenizer.from_pretrained(self.data / "stories260k_hf")
        return [encoded(tokenizer, row) for row in found[:: step if self.tiny else 1]]

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        return self.read("train", 30)

    @cached_property
    def asked(self) -> list[dict[str, Any]]:
        return self.read("test", 10)

    @cached_property
    def members(self) -> np.ndarray:
        """Which examples are of the variation of each query."""
        own = np.array([str(row["variation"]) for row in self.rows])
        return np.array([str(row["variation"]) for row in self.asked])[:, None] == own[None, :]

    @cached_property
    def task(self) -> CausalLM:
        """The model after its further training, or as it was kept."""
        model = AutoModelForCausalLM.from_pretrained(self.data / "stories260k_hf").eval()
        path = self.path("model", "fine_tuned", "encoded", ending=".pt")
        if path is not None and path.exists():
            model.load_state_dict(torch.load(path, weights_only=True))
            return CausalLM(model)
        task = fine_tuned(CausalLM(model), self.rows, epochs=1 if self.tiny else EPOCHS)
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.save(model.state_dict(), path)
        return task


def classes_of_tasks(
    data: Path | None, kept: Path | None, *, tiny: bool, only_kept: bool
) -> list[str]:
    """Return how well methods find the variation of a task that a query is of.

    A pretrained language model is trained further on each task, on the loss of the answer.
    """
    if data is None:
        return ["## DataInf's tasks", "Not run: it needs `--data`."]
    lines = []
    for name in TASKS[:1] if tiny else TASKS:
        task = LanguageTask(name, data, kept, tiny)
        for method in METHODS:
            found = task.line(method, only_kept=only_kept)
            if found is not None:
                lines.append([name, method, *found])
    return [
        "## DataInf's three tasks, 900 and 100 each: does a query find its own variation?",
        "A pretrained language model of 260,032 parameters, trained on the answers of each task "
        f"for {EPOCHS} epochs. Members are the 90 examples of a query's variation: area under the "
        "ROC curve, and their share among the 90 first. Texts name their variation by template, "
        "so that words alone nearly suffice. Embeddings are those of the pretrained model as it "
        "is, its hidden states averaged by sentence-transformers: it was trained to go on with "
        "stories, not to tell sentences apart.",
        table(["task", "method", "class", "recall", "s"], lines),
    ]


def sentence_encoder(data: Path) -> SentenceEncoder:
    """Return the pretrained model's hidden states, averaged over tokens."""
    sentences = require("sentence_transformers", "pip install sentence-transformers")
    model = sentences.SentenceTransformer(str(data / "stories260k_hf"), device="cpu")
    model.tokenizer.pad_token = model.tokenizer.eos_token
    return SentenceEncoder(model=model)


def encoded(tokenizer: Any, row: dict[str, Any]) -> dict[str, Any]:
    """Return a row whose loss is that of its answer."""
    ids, prompt = tokenizer(row["text"])["input_ids"], tokenizer(row["prompt"])["input_ids"]
    labels = [-100] * len(prompt) + ids[len(prompt) :]
    return {**row, "input_ids": ids, "labels": labels}


def fine_tuned(task: CausalLM, rows: list[dict[str, Any]], *, epochs: int) -> CausalLM:
    """Train a model further on the answers of rows, in place."""
    examples = task.encode(rows)
    optimizer = torch.optim.Adam(task.model.parameters(), 1e-3)
    order = torch.Generator().manual_seed(0)
    for _ in range(epochs):
        for chosen in torch.randperm(len(rows), generator=order).split(30):
            optimizer.zero_grad()
            batch = task.collate([examples[row] for row in chosen.tolist()])
            (task.losses(batch).sum() / len(chosen) / 16).backward()
            optimizer.step()
    return task
