"""Coherence of each layer by itself, exact, as an accumulator of a pass.

Letters: ``n`` examples of a batch.

It keeps one gradient of the model's size for each group, so for many groups measure rows of a
store instead.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from projections import Batch, DataError, Gradient, GradientSum, examples_of
from selection.diagnostics.coherence import EVERYTHING, Coherence

COUNT, SQUARES, SUM = "count", "squares", "sum"
BETWEEN = "\t"  # stands in no name of a layer


class CoherenceByLayer:
    """An accumulator of mean gradients and squared norms by layer, and by group.

    Args:
        groups: The class or domain of each row by its id; without, all rows are one group.

    Example:
        >>> from projections import Regression, run_pass
        >>> coherence = CoherenceByLayer()
        >>> rows = [(torch.ones(2), torch.zeros(1)), (torch.ones(2), torch.zeros(1))]
        >>> _ = run_pass(Regression(torch.nn.Linear(2, 1)), rows, accumulators=[coherence])
        >>> [(one.layer, round(one.coherence, 3)) for one in coherence.results()]
        [('all', 2.0), ('', 2.0)]
    """

    name = "coherence"

    def __init__(self, groups: Mapping[Any, Any] | None = None) -> None:
        """Start with nothing."""
        self._groups = None if groups is None else {k: str(v) for k, v in groups.items()}
        self._state: dict[str, Tensor] = {}
        self._members: dict[str, list[int]] = {}

    def begin(self, batch: Batch) -> None:
        """Sort the rows of a batch by group.

        Raises:
            DataError: A row has no group.
        """
        self._members = {EVERYTHING: list(range(len(batch)))}
        for place, row_id in enumerate(batch.ids.tolist()):
            if self._groups is None:
                break
            if row_id not in self._groups:
                raise DataError(f"`groups` must name the group of every row. It lacks {row_id!r}.")
            self._members.setdefault(f"={self._groups[row_id]}", []).append(place)

    def observe(self, gradient: Gradient) -> None:
        """Add a component, to each group its own rows."""
        layer, squares = gradient.component.name, gradient.sq_norms.double()
        for group, members in self._members.items():
            whole = len(members) == len(squares)
            part = gradient if whole else examples_of(gradient, torch.tensor(members))
            total = GradientSum()
            for term in part.terms:
                total.add(term)
            self._add(SQUARES, group, layer, "", squares[members].sum())
            for name, value in total.parts.items():
                wide = torch.promote_types(value.dtype, torch.float32)
                self._add(SUM, group, layer, name, value.to(wide))

    def end(self, batch: Batch) -> None:
        """Count the rows."""
        for group, members in self._members.items():
            self._add(COUNT, group, "", "", torch.tensor(len(members)))

    def state(self) -> dict[str, Tensor]:
        """Return sums and counts."""
        return dict(self._state)

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a state."""
        self._state = {}
        self.merge(state)

    def merge(self, state: Mapping[str, Tensor]) -> None:
        """Add the sums over other examples."""
        for key, value in state.items():
            kept = self._state.get(key)
            # What was loaded is on the CPU until it is added to.
            self._state[key] = value if kept is None else kept.to(value.device) + value

    def is_sum(self, key: str) -> bool:
        """Say that every entry is a sum over examples."""
        return True

    def results(self) -> list[Coherence]:
        """Return the coherence of all rows and of each group; of each all layers, then each."""
        counts = {key.split(BETWEEN)[1]: int(value) for key, value in self._of(COUNT)}
        found = []
        for group in sorted(counts):  # "all" stands behind "=..."; it is moved to the front
            means: dict[str, float] = {}
            squares: dict[str, float] = {}
            for key, value in self._of(SUM, group):
                layer = key.split(BETWEEN)[2]
                mean = float((value.double() / counts[group]).square().sum())
                means[layer] = means.get(layer, 0.0) + mean
            for key, value in self._of(SQUARES, group):
                squares[key.split(BETWEEN)[2]] = float(value) / counts[group]
            whole = (EVERYTHING, sum(means.values()), sum(squares.values()))
            parts: Sequence[tuple[str, float, float]] = [
                whole,
                *((layer, means[layer], squares[layer]) for layer in sorted(means)),
            ]
            name = group.removeprefix("=")
            found.append([Coherence(name, layer, counts[group], m, s) for layer, m, s in parts])
        return [one for part in [*found[-1:], *found[:-1]] for one in part]

    def _of(self, kind: str, group: str | None = None) -> list[tuple[str, Tensor]]:
        """Return the entries of one kind, of one group."""
        start = kind + BETWEEN + ("" if group is None else group + BETWEEN)
        return [(key, value) for key, value in self._state.items() if key.startswith(start)]

    def _add(self, kind: str, group: str, layer: str, name: str, value: Tensor) -> None:
        """Add to an entry."""
        self.merge({BETWEEN.join((kind, group, layer, name)): value})
