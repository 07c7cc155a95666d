"""Influence scores of training examples on queries, under any fitted curvature.

Letters: ``n`` training examples, ``q`` queries, ``k`` neighbours, ``i`` inputs, ``o`` outputs.

The score of a pair is ``g_q^T (H + damping)^-1 g_n``, divided by nothing. Training gradients
are formed a few at a time and never kept.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from influence.eigenvalues import SharedRotations
from influence.kfac_math import LayerCurvature, choose_way, rotated_gradients
from influence.linear_layers import linear_uses
from influence.queries import Preconditioned
from projections import Batch, BestRows, Gradient, TopK


@dataclass
class PairwiseScores:
    """A column with the scores of each row for every query, ``n q``.

    Args:
        queries: Preconditioned query gradients by linear map.
    """

    queries: Preconditioned
    name: str = "influence"
    needs_gradients: bool = field(default=True, init=False)
    _out: Tensor = field(default_factory=lambda: torch.empty(0), init=False)

    def begin(self, batch: Batch) -> None:
        """Start from zero."""
        num_queries = len(next(iter(self.queries.values())))
        self._out = torch.zeros(len(batch), num_queries, dtype=batch.dtype, device=batch.device)

    def observe(self, gradient: Gradient) -> None:
        """Add the scores of one component, a few formed gradients at a time."""
        for use in linear_uses(gradient):
            if use.name not in self.queries:
                continue
            inputs, grads = use.inputs.to(self._out), use.output_grads.to(self._out)
            self._out += self.queries[use.name].scores(inputs, grads)

    def values(self, batch: Batch) -> Float[Tensor, "n q"]:
        """Return the scores."""
        return self._out


@dataclass
class TokenScores:
    """An accumulator with the scores of each position of each row, for small sets of rows.

    Args:
        queries: Preconditioned query gradients by linear map.
    """

    queries: Preconditioned
    name: str = field(default="tokens", init=False)

    def __post_init__(self) -> None:
        """Start with nothing."""
        self.rows: dict[Any, np.ndarray] = {}

    def begin(self, batch: Batch) -> None:
        """Start from zero.

        Raises:
            ValueError: The task does not know which positions are tokens.
        """
        if batch.token_mask is None:
            raise ValueError(
                "scores of tokens need a task with tokens, such as CausalLM: its `token_mask` must "
                "say which positions are real. This task has none."
            )
        self._mask = batch.token_mask.bool()
        shape = (*self._mask.shape, len(next(iter(self.queries.values()))))
        self._out = torch.zeros(shape, dtype=batch.dtype, device=batch.device)

    def observe(self, gradient: Gradient) -> None:
        """Add one component.

        Raises:
            ValueError: Its positions are not the tokens.
        """
        for use in linear_uses(gradient):
            if use.name not in self.queries:
                continue
            if use.inputs.shape[:2] != self._mask.shape:
                raise ValueError(
                    f"the positions of a layer must be the tokens. {use.name!r} has "
                    f"{use.inputs.shape[1]} positions for {self._mask.shape[1]} tokens. Fit the "
                    "curvature without it, with `layers=[...]`."
                )
            inputs, grads = use.inputs.to(self._out), use.output_grads.to(self._out)
            self._out += self.queries[use.name].token_scores(inputs, grads)

    def end(self, batch: Batch) -> None:
        """Keep the real positions of each row."""
        for row_id, scores, mask in zip(batch.ids.tolist(), self._out, self._mask, strict=True):
            self.rows[row_id] = scores[mask].mT.cpu().numpy()

    def state(self) -> dict[str, Tensor]:
        """Return what was kept."""
        return {json.dumps(row): torch.from_numpy(scores) for row, scores in self.rows.items()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a state."""
        self.rows = {}
        self.merge(state)

    def merge(self, state: Mapping[str, Tensor]) -> None:
        """Add rows that were scored elsewhere."""
        self.rows.update({json.loads(row): scores.numpy() for row, scores in state.items()})


@dataclass
class SelfInfluence:
    """A column with ``g^T (H + damping)^-1 g`` of each row, summed in the eigenbasis.

    Args:
        layers: The curvature of each linear map.
        inverses: One over eigenvalue plus damping, by linear map.
    """

    layers: Mapping[str, LayerCurvature]
    inverses: Mapping[str, Float[Tensor, "o i"]]
    name: str = "self_influence"
    needs_gradients: bool = field(default=True, init=False)
    _out: Tensor = field(default_factory=lambda: torch.empty(0), init=False)
    _rotated: SharedRotations = field(default_factory=SharedRotations, init=False)

    def begin(self, batch: Batch) -> None:
        """Start from zero."""
        self._out = torch.zeros(len(batch), dtype=batch.dtype, device=batch.device)
        self._rotated.clear()

    def observe(self, gradient: Gradient) -> None:
        """Add one component, without a rotation back."""
        for use in linear_uses(gradient):
            if use.name not in self.layers:
                continue
            layer = self.layers[use.name]
            inverse = self.inverses[use.name].to(self._out)
            way = choose_way(use.inputs.shape[1], layer.left, layer.right)
            shared = self._rotated.get(use, layer.right, self._out.dtype)
            if way.name == "one position":
                g = layer.left.into(use.output_grads.to(self._out)).squeeze(1).square()
                self._out += ((g @ inverse) * shared.squeeze(1).square()).sum(1)
                continue
            start = 0
            for chunk in rotated_gradients(
                use.inputs.to(self._out),
                use.output_grads.to(self._out),
                way=way,
                left=layer.left,
                right=layer.right,
                rotated_inputs=shared if way.inputs_first else None,
            ):
                values = torch.einsum("noi,noi,oi->n", chunk, chunk, inverse)
                self._out[start : start + len(chunk)] += values
                start += len(chunk)

    def values(self, batch: Batch) -> Float[Tensor, " n"]:
        """Return the sums."""
        self._rotated.clear()
        return self._out


@dataclass
class RunningTop:
    """An accumulator with the best and worst rows of each query, never all scores.

    The ids of the pass must be the positions of the rows.

    Args:
        queries: Preconditioned query gradients by linear map.
        k: Number of rows kept at each end.
    """

    queries: Preconditioned
    k: int
    name: str = field(default="top", init=False)

    def __post_init__(self) -> None:
        """Start with nothing."""
        num_queries = len(next(iter(self.queries.values())))
        self._column = PairwiseScores(self.queries)
        self._ends = (BestRows(num_queries, self.k), BestRows(num_queries, self.k))

    def begin(self, batch: Batch) -> None:
        """Start a batch."""
        self._column.begin(batch)

    def observe(self, gradient: Gradient) -> None:
        """Add the scores of one component."""
        self._column.observe(gradient)

    def end(self, batch: Batch) -> None:
        """Merge the batch into what was kept."""
        order = np.argsort(batch.ids)
        positions = torch.from_numpy(batch.ids[order].astype(np.int64))
        scores = self._column.values(batch).mT.cpu()[:, order]
        self._ends[0].offer(scores, positions)
        self._ends[1].offer(-scores, positions)

    def results(self, ids: np.ndarray) -> tuple[TopK, TopK]:
        """Return the most helpful, best first, and the most harmful, worst first."""
        return self._ends[0].result(ids, 1), self._ends[1].result(ids, -1)

    def state(self) -> dict[str, Tensor]:
        """Return what was kept."""
        return {
            f"{kind}{end}": getattr(best, kind)
            for end, best in enumerate(self._ends)
            for kind in ("scores", "positions")
        }

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a state."""
        for end, best in enumerate(self._ends):
            best.scores, best.positions = state[f"scores{end}"], state[f"positions{end}"]

    def merge(self, state: Mapping[str, Tensor]) -> None:
        """Add what was kept elsewhere."""
        for end, best in enumerate(self._ends):
            best.merge(state[f"scores{end}"], state[f"positions{end}"])
