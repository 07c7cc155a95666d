"""Fitted curvature: an eigenbasis and eigenvalues for every linear map of a model.

Letters: ``n`` examples, ``q`` queries, ``i`` inputs of a layer (with a trailing one for its
bias), ``o`` outputs.

EK-FAC, K-FAC, the diagonal and the identity differ in how these are found, and in nothing
else. The damping is chosen when the curvature is used, without another pass.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from influence.curvature_files import read_layers, write_layers
from influence.damping import Damping, RelativeDamping, damping_from
from influence.kfac_math import LayerCurvature, damped_inverse, precondition
from influence.pairwise import PairwiseScores, RunningTop, SelfInfluence, TokenScores
from influence.queries import Preconditioned, QueryGradients, compress
from projections import (
    ConvergenceError,
    HeadSplit,
    PassSettings,
    QueryTask,
    Rows,
    Scores,
    StoreMismatchError,
    Task,
    TopK,
    as_rows,
    check_at_least,
    check_between,
    concatenate_top,
    describe,
    fingerprint_model,
    run_pass,
)

QUERY_BYTES = 2 << 30  # query gradients held at a time unless said otherwise


@runtime_checkable
class Curvature(Protocol):
    """Hyper-parameters of a curvature: `EKFAC`, `KFAC`, `Diagonal`, `Identity`."""

    def fit(
        self, task: Task, data: Any, *, settings: PassSettings | None = None
    ) -> "FittedCurvature":
        """Compute the curvature of the mean loss over the data."""
        ...


@dataclass(frozen=True)
class FittedCurvature:
    """A curvature that was fitted to one model.

    Args:
        layers: By name of the linear map.
        model: Fingerprint of the model.
        settings: Components and batching of the fit.
        provenance: How it was fitted, as plain JSON values.
        damping: What is added to the eigenvalues before inversion.
    """

    layers: Mapping[str, LayerCurvature]
    model: str
    settings: PassSettings
    provenance: Mapping[str, Any] = field(default_factory=dict)
    damping: Damping = field(default_factory=RelativeDamping)

    def with_damping(self, damping: Damping) -> "FittedCurvature":
        """Return the same curvature with another damping; nothing is computed."""
        return replace(self, damping=damping)

    @cached_property
    def dampings(self) -> dict[str, float]:
        """The damping of each layer."""
        return {
            name: self.damping.of(float(layer.eigenvalues.double().mean()))
            for name, layer in self.layers.items()
        }

    @cached_property
    def inverses(self) -> dict[str, Float[Tensor, "o i"]]:
        """One over eigenvalue plus damping, by layer.

        Raises:
            ConvergenceError: An eigenvalue plus the damping is zero.
        """
        inverses = {}
        for name, layer in self.layers.items():
            inverse = damped_inverse(layer.eigenvalues, self.dampings[name])
            if not torch.isfinite(inverse).all():
                raise ConvergenceError(
                    f"every eigenvalue plus the damping must be above zero. In {name!r} the "
                    f"smallest is {float(layer.eigenvalues.min()):.3g} and the damping "
                    f"{self.dampings[name]:.3g}. Use a larger damping."
                )
            inverses[name] = inverse
        return inverses

    def precondition(
        self, gradients: Mapping[str, Float[Tensor, "q o i"]]
    ) -> dict[str, Float[Tensor, "q o i"]]:
        """Return ``(H + damping)^-1 g`` for gradients by layer.

        Args:
            gradients: Gradients of linear maps, the bias as the last column.
        """
        return {
            name: precondition(
                gradient,
                self.inverses[name].to(gradient),
                left=self.layers[name].left,
                right=self.layers[name].right,
            )
            for name, gradient in gradients.items()
        }

    def scores(
        self,
        task: Task,
        queries: Any,
        data: Any,
        *,
        settings: PassSettings | None = None,
        memory: int = QUERY_BYTES,
        query_rank: int | None = None,
    ) -> Scores:
        """Return the influence of every training example on every query, ``q n``.

        Args:
            task: The model; its `measurements` are the queries.
            queries: A dataset of queries.
            data: The training examples to score.
            settings: Batching; the layers are those of the fit.
            memory: Bytes of query gradients held at a time. More queries than fit take
                another pass over the data.
            query_rank: Rank that query gradients are compressed to; None for exact scores.

        Raises:
            StoreMismatchError: The model is not the one that was fitted.
        """
        rows, asked = as_rows(data), as_rows(queries)
        parts = [
            self.scores_of(task, gradients, rows, settings=settings)
            for gradients in self._query_batches(task, asked, settings, memory, query_rank)
        ]
        values = np.concatenate(parts, axis=0)
        return Scores(rows.ids, {"influence": values}, asked.ids, self._how())

    def scores_of(
        self,
        task: Task,
        gradients: Preconditioned,
        data: Any,
        *,
        settings: PassSettings | None = None,
    ) -> Float[np.ndarray, "q n"]:
        """Return the scores of examples for queries that `query_gradients` has prepared."""
        table = run_pass(
            task,
            data,
            [PairwiseScores(gradients)],
            settings=self.reading(settings),
            description="influence",
        )
        return table.columns["influence"].T

    def layer_scores(
        self,
        task: Task,
        queries: Any,
        data: Any,
        *,
        settings: PassSettings | None = None,
        memory: int = QUERY_BYTES,
    ) -> Scores:
        """Return the same scores layer by layer; they add up to `scores`."""
        rows, asked = as_rows(data), as_rows(queries)
        parts: dict[str, list[np.ndarray]] = {name: [] for name in self.layers}
        for gradients in self._query_batches(task, asked, settings, memory):
            columns = [
                PairwiseScores({name: gradient}, name=name) for name, gradient in gradients.items()
            ]
            table = run_pass(
                task,
                rows,
                columns,
                settings=self.reading(settings),
                description="influence",
            )
            for name in self.layers:
                parts[name].append(table.columns[name])
        values = {name: np.concatenate(found, axis=1).T for name, found in parts.items()}
        return Scores(rows.ids, values, asked.ids, self._how())

    def top(
        self,
        task: Task,
        queries: Any,
        data: Any,
        *,
        k: int = 10,
        settings: PassSettings | None = None,
        memory: int = QUERY_BYTES,
    ) -> tuple[TopK, TopK]:
        """Return the most helpful and the most harmful examples; all scores are never held.

        Args:
            task: The model; its `measurements` are the queries.
            queries: A dataset of queries.
            data: The training examples to search.
            k: Number of examples at each end.
            settings: Batching; the layers are those of the fit.
            memory: Bytes of query gradients held at a time.

        Returns:
            The most helpful, best first, and the most harmful, worst first.
        """
        rows = as_rows(data)
        check_between("k", k, 1, len(rows), "the number of rows")
        found = []
        for gradients in self._query_batches(task, as_rows(queries), settings, memory):
            best = RunningTop(gradients, k)
            run_pass(
                task,
                rows.numbered(),
                accumulators=[best],
                settings=self.reading(settings),
                description="influence",
            )
            found.append(best.results(rows.ids))
        tops, bottoms = zip(*found, strict=True)
        return concatenate_top(tops), concatenate_top(bottoms)

    def self_influence(
        self, task: Task, data: Any, *, settings: PassSettings | None = None
    ) -> Scores:
        """Return ``g^T (H + damping)^-1 g`` of each example, ``n``, in one pass.

        Args:
            task: The model and its loss.
            data: The examples.
            settings: Batching; the layers are those of the fit.
        """
        column = SelfInfluence(self.layers, self.inverses)
        return self._each(task, data, column, settings)

    def response_norms(
        self, task: Task, data: Any, *, settings: PassSettings | None = None
    ) -> Scores:
        """Return the length of ``(H + damping)^-1 g`` of each example, ``n``, in one pass.

        It is how far the parameters move for the example.

        Args:
            task: The model and its loss.
            data: The examples.
            settings: Batching; the layers are those of the fit.
        """
        squared = {name: inverse.square() for name, inverse in self.inverses.items()}
        column = SelfInfluence(self.layers, squared, name="response_norm")
        found = self._each(task, data, column, settings)
        return replace(found, columns={"response_norm": np.sqrt(found.values)})

    def _each(
        self, task: Task, data: Any, column: SelfInfluence, settings: PassSettings | None
    ) -> Scores:
        """Return one number an example."""
        self.check_model(task)
        table = run_pass(
            task,
            as_rows(data),
            [column],
            settings=self.reading(settings),
            description=column.name.replace("_", " "),
        )
        return Scores.from_table(table, self._how())

    def token_scores(
        self, task: Task, queries: Any, data: Any, *, settings: PassSettings | None = None
    ) -> dict[Any, Float[np.ndarray, "q t"]]:
        """Return the score of each token of some examples, by row id; they add up to `scores`.

        Args:
            task: A task with tokens; its `measurements` are the queries.
            queries: A dataset of queries.
            data: The examples: few, since every token is kept.
            settings: Batching; the layers are those of the fit.
        """
        tokens = TokenScores(self.query_gradients(task, queries, settings=settings))
        run_pass(
            task,
            data,
            accumulators=[tokens],
            settings=self.reading(settings),
            description="influence of tokens",
        )
        return tokens.rows

    def query_gradients(
        self,
        task: Task,
        queries: Any,
        *,
        settings: PassSettings | None = None,
        query_rank: int | None = None,
    ) -> Preconditioned:
        """Return the preconditioned gradients of the queries' measurements, by linear map."""
        self.check_model(task)
        rows = as_rows(queries)
        gradients = QueryGradients(self.layers, self.inverses, rows.ids)
        run_pass(
            QueryTask(task),
            rows,
            accumulators=[gradients],
            settings=self.reading(settings),
            description="queries",
        )
        found = gradients.results()
        if query_rank is None:
            return found
        return {name: compress(queries, query_rank) for name, queries in found.items()}

    def _query_batches(
        self,
        task: Task,
        queries: Rows,
        settings: PassSettings | None,
        memory: int,
        query_rank: int | None = None,
    ) -> Iterator[Preconditioned]:
        """Yield preconditioned query gradients, as many queries as fit the memory."""
        check_at_least("memory", memory, 1)
        entries = sum(layer.eigenvalues.numel() for layer in self.layers.values())
        itemsize = next(iter(self.layers.values())).eigenvalues.element_size()
        height = max(1, memory // (entries * itemsize))
        for start in range(0, len(queries), height):
            some = range(start, min(start + height, len(queries)))
            yield self.query_gradients(
                task, queries.fetch(some), settings=settings, query_rank=query_rank
            )

    def reading(self, settings: PassSettings | None) -> PassSettings:
        """Return the layers of the fit, batched as asked for."""
        return self.settings.with_batching(settings)

    def _how(self) -> dict[str, Any]:
        """Return the provenance of a result."""
        return {**self.provenance, "damping": describe(self.damping)}

    def check_model(self, task: Task) -> None:
        """Refuse a task whose model is another one.

        Raises:
            StoreMismatchError: The fingerprints differ.
        """
        found = fingerprint_model(task.model)
        if found != self.model:
            raise StoreMismatchError(
                f"the curvature must be used with the model it was fitted to. It was fitted to "
                f"{self.model}; this model is {found}. Fit it again, or load that model."
            )

    def to(self, device: str | torch.device) -> "FittedCurvature":
        """Return the same curvature on a device; what layers share stays shared.

        It works from wherever it is: what a layer needs is moved when it is needed. So one that
        was loaded, or fitted in partitions, is worth moving where the device has room for it.
        """
        moved: dict[int, Rotation] = {}
        for layer in self.layers.values():
            for side in (layer.left, layer.right):
                if id(side) not in moved:
                    moved[id(side)] = side.to(torch.device(device))
        layers = {
            name: LayerCurvature(
                moved[id(layer.left)], moved[id(layer.right)], layer.eigenvalues.to(device)
            )
            for name, layer in self.layers.items()
        }
        return replace(self, layers=layers)

    def save(self, path: str | Path) -> None:
        """Write one safetensors file; shared factors once."""
        note = {
            "model": self.model,
            "provenance": dict(self.provenance),
            "layers": self.settings.layers,
            "damping": describe(self.damping),
            "gradients": self.settings.describe_gradients(),
        }
        write_layers(Path(path), self.layers, note)

    @classmethod
    def load(cls, path: str | Path, *, damping: Damping | None = None) -> "FittedCurvature":
        """Read a saved curvature into memory.

        Args:
            path: The file.
            damping: The damping to use; that which was saved if left out.

        Raises:
            StoreMismatchError: The file is none, or damaged, or its damping is a rule of
                the user's own, which must then be given.
        """
        # Copies are aligned as fresh tensors are, and so give the same bits.
        return cls._of(*read_layers(Path(path), torch.Tensor.clone), damping)

    @classmethod
    def open(cls, path: str | Path, *, damping: Damping | None = None) -> "FittedCurvature":
        """Return a saved curvature that stays in its file, and is read where it is used.

        It takes no memory of its own: the processes of a machine share what the system keeps
        of the file.

        Args:
            path: The file, which must stay as it is.
            damping: As in `load`.

        Raises:
            StoreMismatchError: As in `load`.
        """
        return cls._of(*read_layers(Path(path), lambda tensor: tensor), damping)

    @classmethod
    def _of(
        cls, layers: dict[str, LayerCurvature], note: dict[str, Any], damping: Damping | None
    ) -> "FittedCurvature":
        """Return what a file holds."""
        patterns = note["layers"]
        gradients = note.get("gradients", {})
        settings = PassSettings(
            layers=None if patterns is None else tuple(patterns),
            kinds=("linear",),
            heads=tuple(
                HeadSplit(**{**head, "slots": tuple(head["slots"])})
                for head in gradients.get("heads", ())
            ),
            autocast=gradients.get("autocast"),
        )
        chosen = damping if damping is not None else damping_from(note["damping"])
        return cls(layers, note["model"], settings, note["provenance"], chosen)
