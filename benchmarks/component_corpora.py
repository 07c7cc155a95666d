"""Queries whose source is known, models to judge them with, and how both become tokens.

TOFU's paraphrased questions and answers, the same questions with the model's own answers,
and beginnings of the texts of p3's tasks. Without a folder of data, sentences are made up.
"""

import gzip
import json
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from domain_texts import small_llama
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM
from transformers import PreTrainedTokenizerFast as FastTokenizer

from influence import beginnings

IGNORED = -100


@dataclass(frozen=True)
class Text:
    """One text: what was asked, which is not predicted, and the rest.

    Args:
        id: Its id.
        prompt: What was asked; empty where all of the text is predicted.
        answer: The rest.
        group: What belongs together: an author, a task.
        source: For a query, the position of the text that it came from.
    """

    id: int
    prompt: str
    answer: str
    group: int
    source: int = -1

    @property
    def words(self) -> str:
        """What candidates are chosen by, as in the paper the prompt where there is one."""
        return self.prompt or self.answer


@dataclass(frozen=True)
class Corpus:
    """Training texts, and queries that came from some of them."""

    name: str
    texts: list[Text]
    queries: list[Text]


@dataclass(frozen=True)
class Sizes:
    """How much of everything."""

    num_queries: int = 180
    rows_a_task: int = 60
    words: int = 64
    share: float = 0.25  # of a text that is a query
    vocabulary: int = 2048
    width: int = 128
    layers: int = 4
    epochs: int = 4
    batch_size: int = 16
    max_length: int = 160
    new_tokens: int = 40


QUICK = Sizes(
    num_queries=18,
    rows_a_task=8,
    words=8,
    share=0.5,
    vocabulary=300,
    width=16,
    layers=2,
    epochs=1,
    max_length=24,
    new_tokens=4,
)


@dataclass(frozen=True)
class Model:
    """A language model with its tokenizer."""

    name: str
    model: Any
    tokenizer: Any
    max_length: int

    def row(self, text: Text) -> dict[str, Any]:
        """Return a text as tokens, of which those of the prompt are not predicted."""
        asked = self.tokenizer(text.prompt)["input_ids"] if text.prompt else []
        rest = self.tokenizer(text.answer, add_special_tokens=not asked)["input_ids"]
        ids = (asked + rest)[: self.max_length]
        labels = ([IGNORED] * len(asked) + rest)[: self.max_length]
        if all(label == IGNORED for label in labels[1:]):  # a prompt that fills the model
            labels = ids
        return {
            "id": text.id,
            "input_ids": ids,
            "labels": labels,
            "text": f"{text.prompt} {text.answer}".strip(),
        }

    def rows(self, texts: Sequence[Text]) -> list[dict[str, Any]]:
        """Return texts as tokens."""
        return [self.row(text) for text in texts]


def read_tofu(folder: Path | None, sizes: Sizes) -> Corpus:
    """Return TOFU's questions and answers, and paraphrases of some."""
    if folder is None:
        return _made_up(sizes)
    full = _read(folder / "tofu" / "full.jsonl.gz")
    texts = [Text(r["id"], r["question"], r["answer"], r["author"]) for r in full]
    where = {text.id: place for place, text in enumerate(texts)}
    found = _read(folder / "tofu" / "paraphrased_and_perturbed.jsonl.gz")
    some = random.Random(0).sample(found, sizes.num_queries)
    queries = [
        Text(
            r["id"],
            r["paraphrased_question"],
            r["paraphrased_answer"],
            texts[where[r["id"]]].group,
            where[r["id"]],
        )
        for r in some
    ]
    return Corpus("tofu-paraphrased", texts, queries)


def read_tasks(folder: Path | None, sizes: Sizes) -> Corpus:
    """Return texts of p3's tasks, cut to some words, and the beginnings of some."""
    if folder is None:
        made = _made_up(sizes)
        whole = [f"{text.prompt} {text.answer}" for text in made.texts]
        groups = [text.group for text in made.texts]
    else:
        by_task: dict[str, list[str]] = {}
        for row in _read(folder / "p3_multitask" / "train.jsonl.gz"):
            text = f"{row['prompt']} {row['completion'].replace('<|endoftext|>', '')}"
            by_task.setdefault(row["task"], []).append(text)
        parts = [part[: sizes.rows_a_task] for part in by_task.values()]
        whole = [text for part in parts for text in part]
        groups = [task for task, part in enumerate(parts) for _ in part]
    cut = [" ".join(text.split()[: sizes.words]) for text in whole]
    texts = [Text(p, "", t, g) for p, (t, g) in enumerate(zip(cut, groups, strict=True))]
    texts = [text for text in texts if len(text.answer.split()) >= sizes.words // 4]
    chosen = random.Random(0).sample(range(len(texts)), sizes.num_queries)
    starts = beginnings([texts[p].answer for p in chosen], sizes.share)
    queries = [
        replace(texts[p], answer=start, source=p) for p, start in zip(chosen, starts, strict=True)
    ]
    return Corpus("p3-beginnings", texts, queries)


def with_own_answers(corpus: Corpus, model: Model, sizes: Sizes) -> Corpus:
    """Return the queries with what the model itself answers, most likely token by token."""
    queries = []
    for query in corpus.queries:
        ids = torch.tensor([model.tokenizer(query.prompt)["input_ids"]])
        with torch.no_grad():
            out = model.model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=sizes.new_tokens,
                do_sample=False,
                pad_token_id=0,
            )
        answer = model.tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)
        queries.append(replace(query, answer=answer.strip() or "."))
    return Corpus("tofu-own-answers", corpus.texts, queries)


def trained_model(corpora: Sequence[Corpus], sizes: Sizes, cache: Path) -> Model:
    """Return a language model trained on the texts, from the cache if it was before."""
    folder = cache / f"model-{sizes.width}-{sizes.layers}-{sizes.epochs}"
    if not (folder / "config.json").exists():
        texts = [text for corpus in corpora for text in corpus.texts]
        tokenizer = _tokenizer([f"{t.prompt} {t.answer}" for t in texts], sizes.vocabulary)
        model = small_llama(
            len(tokenizer), 2 * sizes.max_length, width=sizes.width, layers=sizes.layers, seed=0
        )
        found = Model("trained", model, tokenizer, sizes.max_length)
        _train(found, texts, sizes)
        tokenizer.save_pretrained(folder)
        model.save_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return Model("trained", model, tokenizer, sizes.max_length)


def pretrained_model(folder: Path, max_length: int) -> Model:
    """Return the pretrained model of the folder."""
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    return Model("stories260k", model, AutoTokenizer.from_pretrained(folder), max_length)


def _train(model: Model, texts: Sequence[Text], sizes: Sizes) -> None:
    """Train on every token of every text, in batches of similar length."""
    rows = sorted(
        (torch.tensor(model.row(text)["input_ids"]) for text in texts), key=len, reverse=True
    )
    batches = [rows[p : p + sizes.batch_size] for p in range(0, len(rows), sizes.batch_size)]
    optimizer = torch.optim.AdamW(model.model.parameters(), lr=3e-3, betas=(0.9, 0.95))
    steps = sizes.epochs * len(batches)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 3e-3, total_steps=steps, pct_start=0.1
    )
    order = random.Random(0)
    model.model.train()
    for step in range(steps):
        if step % len(batches) == 0:
            order.shuffle(batches)
            print(f"training: step {step} of {steps}", file=sys.stderr, flush=True)
        batch = batches[step % len(batches)]
        ids = torch.nn.utils.rnn.pad_sequence(batch, batch_first=True, padding_value=IGNORED)
        loss = _loss(model.model, ids)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    print(
        f"training: {loss.item():.2f} nats a token in the last batch", file=sys.stderr, flush=True
    )
    model.model.eval()


def _loss(model: LlamaForCausalLM, ids: torch.Tensor) -> torch.Tensor:
    """Return the mean loss over tokens that are no padding, which is on the right."""
    logits = model(input_ids=ids.clamp(min=0), use_cache=False).logits[:, :-1]
    return functional.cross_entropy(
        logits.flatten(0, 1), ids[:, 1:].flatten(), ignore_index=IGNORED
    )


def _tokenizer(texts: Sequence[str], vocabulary: int) -> FastTokenizer:
    """Return a byte-level tokenizer fitted to texts."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return FastTokenizer(tokenizer_object=tokenizer)


def _read(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a compressed file."""
    with gzip.open(path, "rt") as file:
        return [json.loads(line) for line in file]


def _made_up(sizes: Sizes) -> Corpus:
    """Return questions and answers of made-up words, and the same in another order."""
    draw = random.Random(0)
    words = [f"{a}{b}" for a in ("ba", "do", "ki", "lu", "me") for b in ("n", "r", "s", "t")]
    texts, queries = [], []
    for place in range(4 * sizes.num_queries):
        asked, said = draw.choices(words, k=6), draw.choices(words, k=6)
        group = place // 4
        texts.append(Text(place, " ".join(asked), " ".join(said), group))
        if place % 4 == 0:
            draw.shuffle(asked)
            queries.append(Text(place, " ".join(asked), " ".join(said[1:]), group, place))
    return Corpus("tofu-paraphrased", texts, queries)
