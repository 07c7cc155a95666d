"""Cosines of what goes into a layer of the model itself, as a baseline without gradients.

Letters: ``q`` queries, ``n`` training examples, ``t`` positions, ``i`` inputs of the layer.

With the last layer this is the similarity of last hidden states, for any model and any data,
images as well as texts. `EmbeddingSimilarity` with `HiddenStates` does it for texts and a
model that need not be the one that is asked about.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from influence.members import check_fitted_data, check_fitted_model
from projections import (
    Embeddings,
    PassSettings,
    Rows,
    Scores,
    Task,
    as_rows,
    fingerprint_model,
    pack,
    to_device,
)


@dataclass(frozen=True, kw_only=True)
class HiddenSimilarity:
    """Score the cosine of two examples' inputs of a layer, the mean over their positions.

    Args:
        layer: Name of the layer, such as the head; the last linear layer of the model, in the
            order of its modules, if left out.

    Example:
        >>> from projections import Classification
        >>> task = Classification(nn.Sequential(nn.ReLU(), nn.Linear(2, 2)))
        >>> data = [(torch.tensor([1.0, -1.0]), 0), (torch.tensor([1.0, 1.0]), 1)]
        >>> fitted = HiddenSimilarity().fit(task, data)
        >>> fitted.scores(task, data[:1], data).values.round(3)
        array([[1.   , 0.707]], dtype=float32)

    References:
        Hanawa et al., Evaluation of similarity-based explanations (ICLR 2021),
        arXiv:2006.04528.
    """

    layer: str | None = None

    def fit(
        self, task: Task, data: Any, *, settings: PassSettings | None = None
    ) -> "FittedHiddenSimilarity":
        """Compute the vectors of the training examples: one pass without gradients.

        Args:
            task: The model.
            data: The training data.
            settings: Batching; its layers are not looked at.

        Raises:
            ValueError: The model has no such layer, or no linear one.
        """
        rows, reading = as_rows(data), settings or PassSettings()
        layer = self.layer or last_linear(task.model)
        found = hidden_inputs(task, rows, layer, settings=reading)
        how = {
            "method": "HiddenSimilarity",
            "layer": layer,
            "model": fingerprint_model(task.model),
            "data": rows.fingerprint,
        }
        return FittedHiddenSimilarity(layer, found.normalized(), reading, how)


@dataclass(frozen=True)
class FittedHiddenSimilarity:
    """Inputs of a layer for training examples.

    Args:
        layer: Name of the layer.
        embeddings: Vectors of length one.
        settings: Batching of the fit.
        provenance: Where they came from, as plain JSON values.
    """

    layer: str
    embeddings: Embeddings
    settings: PassSettings
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def scores(
        self, task: Task, queries: Any, data: Any, *, settings: PassSettings | None = None
    ) -> Scores:
        """Return the cosine of every training example with every query, ``q n``.

        Args:
            task: The model.
            queries: A dataset of queries.
            data: The data of the fit.
            settings: Batching.

        Raises:
            StoreMismatchError: The model or the data is not that of the fit.
        """
        rows, asked = as_rows(data), as_rows(queries)
        check_fitted_model(task, self.provenance)
        check_fitted_data(rows, self.provenance)
        reading = settings or self.settings
        wanted = hidden_inputs(task, asked, self.layer, settings=reading).normalized()
        values = wanted.rows @ self.embeddings.rows.T
        return Scores(rows.ids, {"similarity": values}, asked.ids, self.provenance)


def hidden_inputs(task: Task, rows: Rows, layer: str, *, settings: PassSettings) -> Embeddings:
    """Return what goes into a layer, the mean over real positions of each example.

    Args:
        task: The model.
        rows: The examples.
        layer: Name of the layer.
        settings: Batching.

    Raises:
        ValueError: The model has no such layer.
    """
    out: dict[int, Tensor] = {}
    for positions, inputs, _, batch in walk_layer(
        task, rows, layer, run=task.losses, settings=settings
    ):
        means = mean_over_positions(inputs, task.token_mask(batch))
        out.update(zip(positions, means.cpu(), strict=True))
    vectors = torch.stack([out[position] for position in range(len(rows))])
    return Embeddings(vectors.float().numpy(), rows.ids)


def walk_layer(
    task: Task,
    rows: Rows,
    layer: str,
    *,
    run: Callable[[Any], Any],
    settings: PassSettings,
) -> Iterator[tuple[list[int], Tensor, Any, Any]]:
    """Yield positions of a batch, what went into a layer, what ``run`` returned, and the batch.

    Args:
        task: The model.
        rows: The examples.
        layer: Name of the layer.
        run: Runs the model on a batch, such as ``task.losses``.
        settings: Batching.

    Raises:
        ValueError: The model has no such layer.
    """
    named = dict(task.model.named_modules())
    if layer not in named:
        raise ValueError(f"`layer` must be a layer of the model. Got {layer!r}.")
    seen: list[Tensor] = []
    handle = named[layer].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        for start in range(0, len(rows), settings.shard_size):
            positions = range(start, min(start + settings.shard_size, len(rows)))
            examples = task.encode(rows.fetch(positions))
            for group in pack([task.size(example) for example in examples], settings):
                seen.clear()
                batch = to_device(task.collate([examples[p] for p in group]), task.device)
                with torch.no_grad():
                    result = run(batch)
                yield [positions[p] for p in group], seen[-1], result, batch
    finally:
        handle.remove()


def mean_over_positions(
    values: Float[Tensor, "n *t i"], mask: Float[Tensor, "n t"] | Any
) -> Float[Tensor, "n i"]:
    """Return the mean over real positions, all of them where there is no mask."""
    if values.dim() == 2:
        return values
    flat = values.flatten(1, -2)
    if mask is None or mask.shape != flat.shape[:2]:
        return flat.mean(1)
    weights = mask.to(flat)[..., None]
    return (flat * weights).sum(1) / weights.sum(1)


def last_linear(model: nn.Module) -> str:
    """Return the name of the last linear layer, in the order of the modules.

    Raises:
        ValueError: There is none.
    """
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    if not names:
        raise ValueError("the model must have a linear layer. It has none. Name a `layer`.")
    return names[-1]
