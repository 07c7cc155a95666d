"""Which method finds the texts that a language model should be trained on?

Documents of one domain are hidden among those of others. Each method sees the mixture and
other documents of the domain, and chooses as many tokens as are hidden. Measured are the
share of what it chose that was hidden, how much nearer the chosen n-grams are to held-out
text of the domain than the mixture is, and the perplexity of that text under a small language
model that is trained on what was chosen, on equal tokens for all. The hidden documents
themselves are the last row: no choice can be expected to do better.
"""

import gzip
import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from domain_texts import byte_pairs, small_llama
from measuring import options, parse, publish, table
from text_selectors import METHODS, Question
from torch import Tensor
from torch.nn import functional

from selection import HashedNgrams

LENGTH = 128  # tokens of a training sequence
BATCH = 8
SMOOTHING = 1e-8
CEILING = "the hidden documents themselves"
ROWS = (*METHODS, CEILING)


@dataclass(frozen=True)
class Sizes:
    """Sizes of a run."""

    hidden: int = 500
    target: int = 300
    held_out: int = 200
    others: int = 1000
    vocabulary: int = 2048
    steps: int = 300
    width: int = 96
    layers: int = 2


QUICK = Sizes(
    hidden=8, target=12, held_out=4, others=10, vocabulary=300, steps=2, width=16, layers=1
)


SMALL = Sizes(hidden=100, target=100, held_out=60, others=150, steps=150)


@dataclass(frozen=True)
class Hidden:
    """Documents of a domain, hidden among others."""

    raw: list[dict[str, Any]]
    target: list[str]
    held_out: list[str]
    wanted: set[str]
    tokens: dict[str, list[int]]
    held_out_tokens: list[list[int]]
    vocabulary: int

    @property
    def budget(self) -> int:
        """Number of hidden tokens."""
        return sum(len(self.tokens[row]) for row in self.wanted)


def read_domains(folder: Path | None) -> dict[str, list[str]]:
    """Return documents by domain: those of a folder, or made up."""
    if folder is None:
        return {f"base {base}": _counting(base) for base in range(2, 6)}
    found = {}
    for path in sorted(folder.glob("*.jsonl.gz")):
        with gzip.open(path, "rt") as lines:
            found[path.name.removesuffix(".jsonl.gz")] = [
                json.loads(line)["text"] for line in lines
            ]
    if not found:
        raise FileNotFoundError(f"{folder} must hold domains as *.jsonl.gz. It has none.")
    return found


def hide(domains: dict[str, list[str]], name: str, sizes: Sizes, seed: int) -> Hidden:
    """Hide documents of a domain among those of the others."""
    random = np.random.default_rng(seed)
    own = [domains[name][n] for n in random.permutation(len(domains[name]))]
    hidden, rest = own[: sizes.hidden], own[sizes.hidden :]
    target, held_out = rest[: sizes.target], rest[sizes.target :][: sizes.held_out]
    raw = [{"id": f"{name}-{n}", "text": text} for n, text in enumerate(hidden)]
    wanted = {row["id"] for row in raw}
    for other, texts in domains.items():
        if other != name:
            picked = random.permutation(len(texts))[: sizes.others].tolist()
            raw += [{"id": f"{other}-{n}", "text": texts[n]} for n in picked]
    raw = [raw[n] for n in random.permutation(len(raw))]
    encoder = byte_pairs([row["text"] for row in raw][:4000], sizes.vocabulary)
    tokens = encoder.encode_batch([row["text"] for row in raw])
    return Hidden(
        raw,
        target,
        held_out,
        wanted,
        {row["id"]: one.ids for row, one in zip(raw, tokens, strict=True)},
        [encoder.encode(text).ids for text in held_out],
        encoder.get_vocab_size(),
    )


def cut(hidden: Hidden, ids: np.ndarray) -> list[str]:
    """Return the first of the ids that fill the budget."""
    chosen, left = [], hidden.budget
    for row in ids.tolist():
        if left <= 0:
            break
        chosen.append(row)
        left -= len(hidden.tokens[row])
    return chosen


def precision(hidden: Hidden, chosen: Sequence[str]) -> float:
    """Return the share of the chosen tokens that was hidden."""
    right = sum(len(hidden.tokens[row]) for row in chosen if row in hidden.wanted)
    return right / max(sum(len(hidden.tokens[row]) for row in chosen), 1)


def divergence(held_out: Sequence[str], texts: Sequence[str]) -> float:
    """Return the KL divergence from held-out text to some texts, over hashed words and pairs."""
    parts = []
    for some in (held_out, texts):
        found = HashedNgrams()(pa.array(list(some), pa.large_string()))
        counts = np.bincount(found.buckets, minlength=10_000) + 0.1
        parts.append(counts / counts.sum())
    return float((parts[0] * np.log((parts[0] + SMOOTHING) / (parts[1] + SMOOTHING))).sum())


def perplexity(hidden: Hidden, chosen: Sequence[str], sizes: Sizes, seed: int) -> float:
    """Return the perplexity a token of held-out text after training on what was chosen."""
    random = np.random.default_rng(seed)
    order: list[int] = random.permutation(len(chosen)).tolist()
    train = sequences([hidden.tokens[chosen[n]] for n in order])
    train = train[: max(hidden.budget // LENGTH - 1, 1)]
    held_out = sequences(hidden.held_out_tokens)
    model = small_llama(
        hidden.vocabulary, LENGTH, width=sizes.width, layers=sizes.layers, seed=seed
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.95), fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 3e-3, total_steps=sizes.steps + 1, pct_start=0.1
    )
    for _ in range(sizes.steps):
        batch = train[torch.from_numpy(random.integers(len(train), size=BATCH))]
        loss(model, batch).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    with torch.no_grad():
        losses = [float(loss(model, part)) * len(part) for part in held_out.split(BATCH)]
    return math.exp(sum(losses) / len(held_out))


def loss(model: Any, batch: Tensor) -> Tensor:
    """Return the mean loss a token."""
    logits = model(input_ids=batch, use_cache=False).logits[:, :-1]
    return functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())


def sequences(documents: Sequence[list[int]]) -> Tensor:
    """Return documents put together and cut into sequences."""
    ids = [token for document in documents for token in document]
    return torch.tensor(ids[: len(ids) // LENGTH * LENGTH]).view(-1, LENGTH)


def run(
    hidden: Hidden, asked: Question, name: str, sizes: Sizes, *, train: bool
) -> dict[str, float]:
    """Return what is measured of one method."""
    began = time.process_time()
    ids = np.array(sorted(hidden.wanted)) if name == CEILING else METHODS[name](asked)
    seconds = time.process_time() - began
    chosen = cut(hidden, ids)
    texts = {row["id"]: row["text"] for row in hidden.raw}
    before = divergence(hidden.held_out, list(texts.values()))
    after = divergence(hidden.held_out, [texts[row] for row in chosen])
    filled = sum(len(hidden.tokens[row]) for row in chosen) / hidden.budget
    found = {"precision": precision(hidden, chosen), "kl": before - after, "seconds": seconds}
    found["filled"] = min(filled, 1.0)
    if train:
        found["perplexity"] = perplexity(hidden, chosen, sizes, asked.seed)
    return found


def report(results: dict[str, dict[str, list[dict[str, float]]]]) -> str:
    """Return one table of all domains: means over seeds, and spreads of the perplexity."""
    head = ["method"]
    for domain in results:
        head += [f"{domain}: precision", "budget filled", "KL reduction", "perplexity"]
    head.append("CPU seconds to choose")
    rows = []
    for name in ROWS:
        row: list[object] = [name]
        for found in results.values():
            row += [f"{mean(one['precision'] for one in found[name]):.3f}"]
            row += [f"{mean(one['filled'] for one in found[name]):.2f}"]
            row += [f"{mean(one['kl'] for one in found[name]):.3f}", _spread(found[name])]
        every = [one["seconds"] for found in results.values() for one in found[name]]
        rows.append([*row, f"{mean(every):.1f}"])
    return table(head, rows)


def main() -> None:
    """Measure every method on every domain."""
    parser = options(__doc__)
    parser.add_argument("--data", type=Path, help="folder with domains as *.jsonl.gz")
    parser.add_argument("--domains", nargs="+", help="domains that are hidden in turn")
    parser.add_argument("--small", action="store_true", help="100 hidden documents, not 500")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--train-seeds", type=int, default=2, help="seeds with a training")
    parser.add_argument("--cache", type=Path, help="results so far, to go on from")
    chosen = parse(parser)
    sizes = QUICK if chosen.quick else SMALL if chosen.small else Sizes()
    domains = read_domains(chosen.data)
    names = chosen.domains or list(domains)[:1]
    results: dict[str, dict[str, list[dict[str, float]]]] = {}
    known = json.loads(chosen.cache.read_text()) if chosen.cache and chosen.cache.exists() else {}
    for seed in range(1 if chosen.quick else chosen.seeds):
        for domain in names:
            hidden = hide(domains, domain, sizes, seed)
            asked = Question(hidden.raw, hidden.target, seed)
            for method in ROWS:
                key = f"{domain}/{seed}/{method}"
                if key not in known:
                    train = seed < chosen.train_seeds
                    known[key] = run(hidden, asked, method, sizes, train=train)
                    if chosen.cache:
                        chosen.cache.write_text(json.dumps(known))
                results.setdefault(domain, {}).setdefault(method, []).append(known[key])
    publish(
        "Texts chosen for a target",
        [str(__doc__).partition("\n\n")[2], report(results)],
        chosen.out,
    )


def _spread(found: list[dict[str, float]]) -> str:
    """Return mean and spread of the perplexity."""
    values = [one["perplexity"] for one in found if "perplexity" in one]
    if not values:
        return ""
    spread = f" ± {stdev(values):.1f}" if len(values) > 1 else ""
    return f"{mean(values):.1f}{spread}"


def _counting(base: int) -> list[str]:
    """Return texts that count in some base, for a run without data."""
    random = np.random.default_rng(base)
    return [
        " ".join(f"{n % base}x{base} w{n // base}" for n in random.integers(0, 500, 80))
        for _ in range(40)
    ]


if __name__ == "__main__":
    main()
