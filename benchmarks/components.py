"""Which components find the text that a query came from, beside projections and words?

    python benchmarks/components.py --data FOLDER --cache FOLDER

After "Select or Project?" (arXiv:2601.16651): a query is a paraphrase of a training text, or
its beginning, or the model's own answer to a paraphrased question; its candidates are four
texts that share its words and its source. Components are chosen on a third of the queries,
by author or task, among whole weights or with attention apart by head, and every number is
about the other two thirds. Agreement is the cosine of a method's scores with the cosines of
the full gradient. Seconds are of the processor, on one thread, for a hundred texts, from
tokens to what is compared. Outcomes and the trained model stay in the cache, so a run that
was stopped goes on.
"""

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from component_choices import is_head
from component_corpora import (
    QUICK,
    Sizes,
    pretrained_model,
    read_tasks,
    read_tofu,
    trained_model,
    with_own_answers,
)
from component_methods import Outcome, Trial, run_trial
from component_search import search_table
from measuring import options, parse, publish, table

from influence import ComponentProducts

KINDS = (
    "embed_tokens",
    "q_proj",
    "k_proj",
    "v_proj",
    "o_proj",
    "gate_proj",
    "up_proj",
    "down_proj",
)


def summarise(trial: Trial, outcome: Outcome) -> dict[str, Any]:
    """Return what the report shows, as plain JSON values."""
    reported, questions = trial.reported, trial.questions
    full = outcome.methods[0].scores.reshape(questions.candidates.shape)[reported]
    rows = []
    for found in outcome.methods:
        scores = found.scores.reshape(questions.candidates.shape)
        hits = questions.hits(scores)[reported]
        some = scores[reported].ravel()
        agreement = some @ full.ravel() / np.sqrt((some @ some) * (full.ravel() @ full.ravel()))
        error = np.sqrt(hits.mean() * (1 - hits.mean()) / len(hits))
        rows.append(
            [found.method, found.numbers, hits.mean(), error, float(agreement), found.seconds]
        )
    kinds = {}
    for kind in KINDS:
        names = [name for name in outcome.products.names if name.rpartition(".")[2] == kind]
        if names:
            together = questions.hits(outcome.products.cosines(names))[reported].mean()
            alone = [
                float(questions.hits(outcome.products.cosines([n]))[reported].mean()) for n in names
            ]
            sizes = dict(zip(outcome.products.names, outcome.products.components, strict=True))
            count = sum(sizes[name].size for name in names)
            kinds[kind] = [count, float(together), min(alone), max(alone)]
    return {
        "model": trial.model.name,
        "corpus": trial.corpus.name,
        "parameters": sum(c.size for c in outcome.products.components),
        "components": len(outcome.products.names),
        "queries": len(questions.sources),
        "reported": len(reported),
        "candidates": len(trial.candidates),
        "rows": [[*row[:1], *map(float, row[1:])] for row in rows],
        "kinds": kinds,
        "heads": summarise_heads(trial, outcome.by_head),
        "chosen": {c.name: list(c.chosen.names) for c in outcome.choices},
        "selected": {c.name: c.chosen.value for c in outcome.choices},
        "spent": {c.name: c.seconds for c in outcome.choices},
    }


def summarise_heads(trial: Trial, by_head: ComponentProducts) -> dict[str, list[float]]:
    """Return how well one attention head alone finds sources, by the weights that it is part of."""
    found = {}
    for kind in ("q_proj", "k_proj", "v_proj", "o_proj"):
        names = [name for name in by_head.names if is_head(name) and f".{kind}[" in name]
        if names:
            alone = [
                trial.questions.hits(by_head.cosines([n]))[trial.reported].mean() for n in names
            ]
            size = by_head.components[by_head.find(names[:1])[0]].size
            found[kind] = [len(names), size, *map(float, np.quantile(alone, (0, 0.5, 1)))]
    return found


def show(found: dict[str, Any]) -> str:
    """Return one trial as a section."""
    rows = [
        [
            method,
            f"{numbers:,.0f}" if numbers else "",
            f"{accuracy:.3f} ± {error:.3f}",
            f"{agreement:.3f}" if numbers else "",
            f"{seconds:.2f}",
        ]
        for method, numbers, accuracy, error, agreement, seconds in found["rows"]
    ]
    head = ["method", "numbers a text", "accuracy", "agreement", "s for 100 texts"]
    kinds = [
        [kind, f"{int(count):,}", f"{together:.3f}", f"{low:.3f} to {high:.3f}"]
        for kind, (count, together, low, high) in found["kinds"].items()
    ]
    heads = [
        [kind, f"{int(count)}", f"{int(size):,}", *(f"{value:.3f}" for value in spread)]
        for kind, (count, size, *spread) in found["heads"].items()
    ]
    columns = ["heads of", "heads", "parameters of one", "worst alone", "median", "best alone"]
    sizes = "; ".join(
        f"{name}: {len(names)} component(s), {found['selected'][name]:.3f} where they were chosen, "
        f"{found['spent'][name]:.2f} s"
        for name, names in found["chosen"].items()
    )
    return "\n\n".join(
        [
            f"## {found['corpus']}, model {found['model']}",
            f"{found['parameters']:,} parameters in {found['components']} components; "
            f"{found['queries']} queries, {found['reported']} of them reported; "
            f"{found['candidates']:,} candidates; guessing finds 0.2.",
            table(head, rows),
            f"Chosen: {sizes}.",
            table(["weights", "parameters", "together", "one layer alone"], kinds),
            table(columns, heads),
        ]
    )


def trials(data: Path | None, sizes: Sizes, cache: Path, quick: bool) -> Iterator[Trial]:
    """Yield every model on every corpus, each when it is asked for."""
    tofu, tasks = read_tofu(data, sizes), read_tasks(data, sizes)
    model = trained_model([tofu, tasks], sizes, cache)
    dimensions: Sequence[int] = (16, 64) if quick else Trial.dimensions
    models = [model]
    if data is not None:
        models.append(pretrained_model(data / "stories260k_hf", 2 * sizes.max_length))
    for corpus in (tofu, tasks):
        for each in models:
            yield Trial(each, corpus, dimensions)
    yield Trial(model, with_own_answers(tofu, model, sizes), dimensions)


def main() -> None:
    """Run what is not in the cache, and print the report."""
    parser = options(__doc__)
    parser.add_argument("--data", type=Path, help="folder with tofu, p3_multitask, stories260k_hf")
    parser.add_argument("--cache", type=Path, help="folder of the trained model and of outcomes")
    parser.add_argument("--kept", action="store_true", help="report what the cache holds")
    chosen = parse(parser)
    with TemporaryDirectory() as temporary:
        cache = chosen.cache or Path(temporary)
        sizes = QUICK if chosen.quick else Sizes()
        parts = []
        for trial in trials(chosen.data, sizes, cache, chosen.quick):
            file = cache / f"{trial.model.name}-{trial.corpus.name}.json"
            if chosen.kept and not file.exists():
                continue
            if not file.exists():
                file.write_text(json.dumps(summarise(trial, run_trial(trial))))
                print(f"finished {file.stem}", file=sys.stderr, flush=True)
            parts.append(show(json.loads(file.read_text())))
        parts.append(search_table(20 if chosen.quick else 113, 40 if chosen.quick else 988))
    publish("Which components find the source of a query", parts, chosen.out)


if __name__ == "__main__":
    main()
