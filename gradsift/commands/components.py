"""The command that finds the components of a model that tell where a query came from."""

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro
from torch import nn

from gradsift.commands.options import CONFIG, READING, Reading, pass_settings, write_config
from gradsift.models import ModelSource, load_task
from influence import (
    Accuracy,
    Agreement,
    Budget,
    ChosenComponents,
    ComponentProducts,
    SourceQuestions,
    beginnings,
    choose_components,
    component_products,
    search_backward,
    search_beam,
    search_forward,
    source_questions,
    split_queries,
)
from projections import (
    DataError,
    PassSettings,
    Rows,
    check_at_least,
    current_ranks,
    find_components,
    read_dataset,
    texts_of,
    write_json,
)

SHOWN = 8  # names that a line shows


@dataclass(frozen=True, kw_only=True)
class Asking:
    """Queries whose source is known."""

    queries: str | None = None
    """Queries, in the format of the data, each with the id of the row that it came from."""

    source_column: str = "source"
    """The column of the queries with that id."""

    beginning: float = 0.25
    """Without `--queries`: the share of a text's words that is asked for the rest."""

    num_queries: int = 200
    """Without `--queries`: how many texts are asked for."""

    group_column: str | None = None
    """A column of the data; queries whose sources share its value stay on one side."""

    num_candidates: int = 5
    """Candidates of each query: its source, and the others that share most words with it."""


ASKING = Asking()


@dataclass(frozen=True, kw_only=True)
class Components:
    """Choose the components of a model whose gradients find the source of a query."""

    source: tyro.conf.OmitArgPrefixes[ModelSource]

    data: str
    """The training data: jsonl, parquet or csv (also .gz, .zst), a datasets folder or name."""

    out: Path
    """Folder for the products of every component and for what was chosen."""

    asking: tyro.conf.OmitArgPrefixes[Asking] = ASKING

    objective: Literal["accuracy", "agreement"] = "accuracy"
    """What is to be large: how often the source has the largest cosine, or the agreement of all
    cosines with those of the full gradient."""

    search: Literal["forward", "backward", "beam"] = "forward"
    """How sets of components are gone through."""

    beam_width: int = 4
    """Sets that go on, in a beam."""

    budget: float | None = None
    """What the chosen components may cost; no limit if left out."""

    budget_unit: Literal["parameters", "bytes", "operations"] = "parameters"
    """What is counted (docs/components.md)."""

    budget_positions: int = 128
    """Tokens of a text for which bytes and operations are counted."""

    share: float = 0.5
    """Share of the queries to choose on; what is shown is of the others."""

    seed: int = 0
    """Seed of the split, and of the texts that are asked for."""

    reading: tyro.conf.OmitArgPrefixes[Reading] = READING

    def run(self) -> Iterator[str]:
        """Compute the products, choose and report."""
        rows = Rows(read_dataset(self.data))
        queries, sources = self._queries(rows)
        texts = texts_of(rows.fetch(range(len(rows))), self.source.text_column)
        questions = source_questions(
            [query["text"] for query in queries], texts, sources, k=self.asking.num_candidates
        )
        task = load_task(self.source)
        settings = pass_settings(self.reading, task.model)
        asked = [{self.source.text_column: q["text"], "id": p} for p, q in enumerate(queries)]
        groups, budget = self._groups(rows, sources), self._budget(task.model, settings)
        split_queries(np.arange(len(asked)), seed=self.seed, share=self.share, groups=groups)
        products = component_products(
            task, asked, rows, questions.pairs, settings=settings, path=self.out / "pass"
        )
        if not current_ranks().is_first:
            return
        products.save(self.out / "products.npz")
        own = dict(enumerate(rows.ids[sources].tolist()))
        chosen = self._choose(products, own, groups, budget)
        write_json(self.out / "chosen.json", _as_json(chosen))
        write_config(self, self.out / CONFIG)
        yield from self._lines(products, questions, chosen, groups)

    def _queries(self, rows: Rows) -> tuple[list[dict[str, Any]], np.ndarray]:
        """Return queries, and the positions of the rows that they came from."""
        column, asking = self.source.text_column, self.asking
        if asking.queries is None:
            check_at_least("num_queries", asking.num_queries, 1)
            order = np.random.default_rng(self.seed).permutation(len(rows))
            sources = np.sort(order[: asking.num_queries])
            texts = texts_of(rows.fetch(sources.tolist()), column)
            return [{"text": text} for text in beginnings(texts, asking.beginning)], sources
        found = Rows(read_dataset(asking.queries), by_position=True)
        each = found.fetch(range(len(found)))
        if each and asking.source_column not in each[0]:
            raise DataError(
                f"queries must have the column {asking.source_column!r}, with the id of the row "
                f"that each came from. They have {sorted(each[0])}. Name one with "
                "`--source-column`, or leave out `--queries` to ask with beginnings of texts."
            )
        ids = [row[asking.source_column] for row in each]
        return [{"text": text} for text in texts_of(each, column)], np.array(rows.find(ids))

    def _groups(self, rows: Rows, sources: np.ndarray) -> list[Hashable] | None:
        """Return the label of each query's source, if there are any."""
        column = self.asking.group_column
        if column is None:
            return None
        found = rows.fetch(sources.tolist())
        if column not in found[0]:
            raise DataError(
                f"the data must have the column {column!r} of `--group-column`. It has "
                f"{sorted(found[0])}."
            )
        return [row[column] for row in found]

    def _budget(self, model: nn.Module, settings: PassSettings) -> Budget | None:
        """Return the budget, in which at least one component must fit."""
        if self.budget is None:
            return None
        budget = Budget(most=self.budget, unit=self.budget_unit, positions=self.budget_positions)
        layout = find_components(model, settings.layers, heads=settings.heads)
        budget.costs(list(layout.components.values()))
        return budget

    def _choose(
        self,
        products: ComponentProducts,
        sources: dict[int, Any],
        groups: Sequence[Hashable] | None,
        budget: Budget | None,
    ) -> ChosenComponents:
        """Return what the search chooses on its side of the queries."""
        searches = {
            "forward": search_forward,
            "backward": search_backward,
            "beam": partial(search_beam, width=self.beam_width),
        }
        return choose_components(
            products,
            Accuracy(sources) if self.objective == "accuracy" else Agreement(),
            seed=self.seed,
            share=self.share,
            groups=groups,
            budget=budget,
            search=searches[self.search],
        )

    def _lines(
        self,
        products: ComponentProducts,
        questions: SourceQuestions,
        chosen: ChosenComponents,
        groups: Sequence[Hashable] | None,
    ) -> Iterator[str]:
        """Say what was found."""
        sizes = {component.name: component.size for component in products.components}
        ours, others = split_queries(
            products.query_ids, seed=self.seed, share=self.share, groups=groups
        )
        yield (
            f"{len(questions.sources):,} queries, {questions.candidates.shape[1]} candidates each; "
            f"{len(sizes)} components with {sum(sizes.values()):,} parameters: {self.out}"
        )
        yield f"  sources found among the {len(others):,} queries that nothing was chosen on:"

        def shown(what: str, scores: np.ndarray) -> str:
            return f"  {what:34} {questions.hits(scores)[others].mean():7.1%}"

        yield f"  {'guessing':34} {questions.chance:7.1%}"
        yield shown("words in common (BM25)", questions.lexical)
        yield shown("full gradient", products.cosines())
        cosines = {name: products.cosines([name]) for name in products.names}
        best = max(products.names, key=lambda name: questions.hits(cosines[name])[ours].mean())
        yield shown("best single component", cosines[best]) + f"  {best}"
        count = sum(sizes[name] for name in chosen.names)
        share = count / sum(sizes.values())
        yield shown(f"{len(chosen.names)} chosen component(s)", products.cosines(chosen.names)) + (
            f"  {count:,} parameters, {share:.1%} of all"
        )
        more = "" if len(chosen.names) <= SHOWN else f" and {len(chosen.names) - SHOWN} more"
        yield f"chosen: {', '.join(chosen.names[:SHOWN])}{more}"
        heads = " --by-head" if self.reading.by_head else ""
        yield f"next: gradsift index ...{heads} --layers with the names in {self.out}/chosen.json"


def _as_json(chosen: ChosenComponents) -> dict[str, Any]:
    """Return a choice as plain JSON values."""
    path = chosen.path
    return {
        "names": list(chosen.names),
        "value": chosen.value,
        "reported": chosen.reported,
        "reported_full": chosen.reported_full,
        "cost": chosen.cost,
        "path": [
            {"names": list(names), "value": float(value), "cost": float(cost)}
            for names, value, cost in zip(path.sets, path.values, path.costs, strict=True)
        ],
    }
