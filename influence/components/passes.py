"""From a model, queries and candidates to products of every component, in one pass over each.

Letters: ``q`` queries, ``n`` candidates of a batch, ``p`` pairs, ``c`` components.

Gradients of queries are kept, in factors or formed, whichever is less to work with, and
meet those of candidates as these are computed. Queries that do not fit the memory take
another pass over their candidates; no gradient of a candidate is ever kept.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from influence.components.products import ComponentProducts
from projections import (
    Batch,
    Component,
    FolderCheckpoint,
    Formed,
    Gradient,
    OuterProducts,
    PassSettings,
    QueryTask,
    Rows,
    Task,
    as_rows,
    check_at_least,
    check_not_empty,
    compact,
    find_components,
    fingerprint_model,
    pair_products,
    run_pass,
    worth_forming,
)

KEPT_BYTES = 2 << 30  # gradients of queries held at a time unless said otherwise
ROWS, PRODUCTS = "norms|", "products|"


def component_products(
    task: Task,
    queries: Any,
    data: Any,
    pairs: Int[np.ndarray, "p 2"],
    *,
    settings: PassSettings | None = None,
    memory: int = KEPT_BYTES,
    path: str | Path | None = None,
) -> ComponentProducts:
    """Return the inner products of every component, for pairs of queries and candidates.

    Args:
        task: The model; its `measurements` are the queries, its losses the candidates.
        queries: A dataset of queries.
        data: A dataset with the candidates; rows that are in no pair are not looked at.
        pairs: The query and the candidate of each pair, by position.
        settings: Which components, and with ``heads`` which attention heads; and batching.
        memory: Bytes of query gradients held at a time.
        path: Folder in which a pass that was stopped goes on.

    Raises:
        ValueError: There is no pair, or one is outside of the data.

    Example:
        >>> from projections import Classification
        >>> task = Classification(torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.Linear(4, 2)))
        >>> rows = [(torch.ones(2), 0), (-torch.ones(2), 1)]
        >>> found = component_products(task, rows, rows, np.array([[0, 0], [0, 1]]))
        >>> found.names, found.cosines().round(4)[0]
        (['0', '1'], np.float64(1.0))
    """
    settings = settings or PassSettings()
    asked, rows = as_rows(queries), as_rows(data)
    pairs = check_pairs(pairs, len(asked), len(rows))
    check_at_least("memory", memory, 1)
    used, where = np.unique(pairs[:, 1], return_inverse=True)
    local = np.stack([pairs[:, 0], where], axis=1)
    layout = find_components(
        task.model, settings.layers, kinds=settings.kinds, heads=settings.heads
    )
    size = sum(component.size for component in layout.components.values())
    entry = next(task.model.parameters()).element_size()
    height = max(1, memory // max(1, size * entry))
    walk = _Walk(task, asked, rows, used, settings, path)
    parts = [
        walk.block(range(first, min(first + height, len(asked))), local)
        for first in range(0, len(asked), height)
    ]
    return _joined(parts, local, asked.ids, rows.ids[used], walk.provenance)


def check_pairs(
    pairs: Int[np.ndarray, "p 2"], num_queries: int, num_rows: int
) -> Int[np.ndarray, "p 2"]:
    """Refuse pairs that are none, or outside of the data."""
    pairs = np.asarray(pairs, dtype=np.int64)
    check_not_empty("pairs", len(pairs))
    limits = np.array([num_queries, num_rows])
    wrong = ((pairs < 0) | (pairs >= limits)).any(axis=1)
    if wrong.any():
        raise ValueError(
            f"`pairs` must be positions among {num_queries} queries and {num_rows} rows. Got "
            f"{pairs[wrong][0].tolist()}."
        )
    return pairs


@dataclass
class KeptGradients:
    """A column with the squared norm of each row's gradient, which keeps the gradients besides.

    Gradients are kept by component, as parts: which rows, and their gradient.
    """

    name: str = field(default="kept", init=False)
    needs_gradients: bool = field(default=True, init=False)
    parts: dict[str, list[tuple[Tensor, Gradient]]] = field(default_factory=dict, init=False)
    norms: dict[str, list[tuple[Tensor, Tensor]]] = field(default_factory=dict, init=False)

    def begin(self, batch: Batch) -> None:
        """Remember which rows these are; their ids must be their positions."""
        self._places = torch.from_numpy(batch.ids.astype(np.int64))
        self._total = torch.zeros(len(batch), dtype=batch.dtype, device=batch.device)

    def observe(self, gradient: Gradient) -> None:
        """Keep one component, as in the first batch that reached it."""
        name = gradient.component.name
        parts = self.parts.setdefault(name, [])
        form = isinstance(parts[0][1].terms[0], Formed) if parts else _form(gradient)
        parts.append((self._places, compact(gradient, form=form)))
        self.norms.setdefault(name, []).append((self._places, gradient.sq_norms.cpu()))
        self._total += gradient.sq_norms

    def values(self, batch: Batch) -> Float[Tensor, " n"]:
        """Return the squared norms over all components."""
        return self._total

    def finish(self, num_rows: int) -> tuple[dict[str, Tensor], "Kept"]:
        """Return squared norms and gradients by component, what was formed in one part."""
        norms = {name: _scattered(found, num_rows) for name, found in self.norms.items()}
        kept = {}
        for name, parts in self.parts.items():
            places, gradients = zip(*parts, strict=True)
            component = gradients[0].component
            if isinstance(gradients[0].terms[0], Formed):
                blocks = zip(*(gradient.terms[0].blocks() for gradient in gradients), strict=True)
                formed = Formed(component, tuple(map(torch.cat, blocks)))
                parts = [(torch.cat(places), Gradient(component, (formed,)))]
            kept[name] = [(_inverse(places, num_rows), gradient) for places, gradient in parts]
        return norms, kept


Kept = Mapping[str, Sequence[tuple[Tensor, Gradient]]]
"""By component, parts: where each query stands in the part's gradient, -1 if in another."""


@dataclass
class MetGradients:
    """An accumulator of what candidates say of the queries that were kept.

    The ids of the pass must be the positions of the candidates.

    Args:
        kept: Gradients of the queries.
        pairs: Query and candidate of each pair.
        num_rows: Number of candidates.
    """

    kept: Kept
    pairs: Int[np.ndarray, "p 2"]
    num_rows: int
    name: str = field(default="met", init=False)

    def __post_init__(self) -> None:
        """Start from zero, with the pairs by candidate."""
        self.order = np.argsort(self.pairs[:, 1], kind="stable")
        self.starts = np.searchsorted(self.pairs[self.order, 1], np.arange(self.num_rows + 1))
        self.found: dict[str, Tensor] = {}

    def begin(self, batch: Batch) -> None:
        """Find the pairs of a batch."""
        ids = batch.ids.astype(np.int64)
        self._places = torch.from_numpy(ids)
        spans = [self.order[self.starts[row] : self.starts[row + 1]] for row in ids.tolist()]
        row = np.repeat(np.arange(len(ids)), [len(span) for span in spans])
        where = np.concatenate([*spans, np.empty(0, dtype=np.int64)]).astype(np.int64)
        self._where = torch.from_numpy(where)
        self._query = torch.from_numpy(self.pairs[where, 0])
        self._row = torch.from_numpy(row)

    def observe(self, gradient: Gradient) -> None:
        """Add one component."""
        name = gradient.component.name
        self._entry(ROWS + name, self.num_rows)[self._places] = gradient.sq_norms.double().cpu()
        for inverse, kept in self.kept.get(name, ()):
            place = inverse[self._query]
            here = place >= 0
            if here.any():
                pairs = torch.stack([place[here], self._row[here]], 1)
                products = pair_products(kept, gradient, pairs.to(_device(gradient)))
                out = self._entry(PRODUCTS + name, len(self.pairs))
                out[self._where[here]] = products.double().cpu()

    def end(self, batch: Batch) -> None:
        """Do nothing."""

    def state(self) -> dict[str, Tensor]:
        """Return what was computed, zero for rows that have not come."""
        return dict(self.found)

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a state."""
        self.found = {name: value.clone() for name, value in state.items()}

    def merge(self, state: Mapping[str, Tensor]) -> None:
        """Add rows that were met elsewhere."""
        for name, value in state.items():
            self.found[name] = self.found[name] + value if name in self.found else value

    def _entry(self, name: str, length: int) -> Tensor:
        """Return the tensor of this name, zero at first."""
        return self.found.setdefault(name, torch.zeros(length, dtype=torch.float64))


@dataclass(frozen=True)
class _Part:
    """What one block of queries gave: by component, and which pairs are its."""

    components: Mapping[str, Component]
    query_norms: Mapping[str, Tensor]
    found: Mapping[str, Tensor]
    queries: range
    pairs: Int[np.ndarray, " b"]
    candidates: Int[np.ndarray, " m"]


@dataclass(frozen=True)
class _Walk:
    """What all blocks of queries share."""

    task: Task
    queries: Rows
    rows: Rows
    used: Int[np.ndarray, " u"]
    settings: PassSettings
    path: str | Path | None

    @property
    def provenance(self) -> dict[str, Any]:
        """How products are computed, as plain JSON values."""
        settings = self.settings
        return {
            "model": fingerprint_model(self.task.model),
            "queries": self.queries.fingerprint,
            "data": self.rows.fingerprint,
            "layers": None if settings.layers is None else list(settings.layers),
            **settings.describe_gradients(),
        }

    def block(self, some: range, pairs: Int[np.ndarray, "p 2"]) -> _Part:
        """Keep some queries and meet their candidates."""
        here = np.flatnonzero((pairs[:, 0] >= some.start) & (pairs[:, 0] < some.stop))
        rows, where = np.unique(pairs[here, 1], return_inverse=True)
        keeping = KeptGradients()
        run_pass(
            QueryTask(self.task),
            Rows(self.queries.fetch(some), by_position=True),
            [keeping],
            settings=self.settings,
            description="queries",
        )
        norms, kept = keeping.finish(len(some))
        local = np.stack([pairs[here, 0] - some.start, where], axis=1)
        met = MetGradients(kept, local, len(rows))
        checkpoint = None
        if self.path is not None:
            about = {
                **{key: value for key, value in self.provenance.items() if key != "heads"},
                "heads": _digest(repr(self.settings.heads).encode()),
                "first": some.start,
                "pairs": _digest(local.tobytes()),
            }
            checkpoint = FolderCheckpoint(Path(self.path) / f"from-{some.start}", about)
        if len(rows):
            run_pass(
                self.task,
                Rows(self.rows.fetch(self.used[rows].tolist()), by_position=True),
                accumulators=[met],
                settings=self.settings,
                checkpoint=checkpoint,
                description="candidates",
            )
        components = {name: parts[0][1].component for name, parts in kept.items()}
        return _Part(components, norms, met.found, some, here, rows)


def _joined(
    parts: Sequence[_Part],
    pairs: Int[np.ndarray, "p 2"],
    query_ids: np.ndarray,
    candidate_ids: np.ndarray,
    provenance: Mapping[str, Any],
) -> ComponentProducts:
    """Return what several blocks of queries gave as one."""
    components = {name: part.components[name] for part in parts for name in part.components}
    names = sorted(components)
    products = np.zeros((len(pairs), len(names)))
    own, other = np.zeros((len(query_ids), len(names))), np.zeros((len(candidate_ids), len(names)))
    for part in parts:
        for place, name in enumerate(names):
            if name in part.query_norms:
                own[part.queries, place] = part.query_norms[name].numpy()
            if ROWS + name in part.found:
                other[part.candidates, place] = part.found[ROWS + name].numpy()
            if PRODUCTS + name in part.found:
                products[part.pairs, place] = part.found[PRODUCTS + name].numpy()
    chosen = tuple(components[name] for name in names)
    # A norm that cancels may end a rounding below zero.
    own, other = own.clip(min=0), other.clip(min=0)
    return ComponentProducts(
        chosen, pairs, products, own, other, query_ids, candidate_ids, dict(provenance)
    )


def _form(gradient: Gradient) -> bool:
    """Tell whether the queries of a component are kept formed."""
    outer = [term for term in gradient.terms if isinstance(term, OuterProducts)]
    positions = [term.inputs.shape[-2] for term in outer]
    return worth_forming(gradient.component, max(positions, default=1))


def _scattered(found: Sequence[tuple[Tensor, Tensor]], num_rows: int) -> Float[Tensor, " q"]:
    """Return numbers of batches in the order of the rows."""
    out = torch.zeros(num_rows, dtype=torch.float64)
    for places, values in found:
        out[places] = values.double()
    return out


def _inverse(places: Tensor, num_rows: int) -> Int[Tensor, " q"]:
    """Return where each row stands among some places, -1 if it is not there."""
    out = torch.full((num_rows,), -1)
    out[places] = torch.arange(len(places))
    return out


def _digest(content: bytes) -> str:
    """Return what tells this from other content, in few letters."""
    return sha256(content).hexdigest()[:16]


def _device(gradient: Gradient) -> torch.device:
    """Return where a gradient is."""
    return gradient.sq_norms.device
