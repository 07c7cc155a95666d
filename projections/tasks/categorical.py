"""Losses and per-example statistics of a categorical distribution over labels.

Letters: ``n`` examples, ``t`` positions, ``c`` classes.
"""

from math import sqrt

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from projections.labels import Labels, uniforms

IGNORED = -100  # the label that torch and Hugging Face leave out of a loss


def cross_entropies(
    logits: Float[Tensor, "n *t c"], labels: Int[Tensor, "n *t"]
) -> Float[Tensor, " n"]:
    """Return the negative log-likelihood of each example, summed over its positions.

    Args:
        logits: One row of class scores a position.
        labels: The classes; -100 marks positions that do not count.
    """
    flat = functional.cross_entropy(
        logits.flatten(0, -2).float() if logits.dtype.itemsize < 4 else logits.flatten(0, -2),
        labels.flatten(),
        ignore_index=IGNORED,
        reduction="none",
    )
    return flat.view(len(labels), labels[:1].numel()).sum(1) if len(labels) else flat


def error_norms(logits: Float[Tensor, "n c"], labels: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Return EL2N, the Euclidean norm of ``softmax(logits) - onehot(labels)``.

    References:
        Paul et al., Deep learning on a data diet (NeurIPS 2021), arXiv:2107.07075, Sec. 2.
    """
    errors = logits.softmax(-1) - functional.one_hot(labels, logits.shape[-1])
    return errors.norm(dim=-1)


def margins(logits: Float[Tensor, "n c"], labels: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Return ``log(p / (1 - p))`` of each label: its logit less the log-sum-exp of the others.

    References:
        Park et al., TRAK (ICML 2023), arXiv:2303.14186, Sec. 3.
    """
    own = logits.gather(1, labels[:, None])
    others = logits.scatter(1, labels[:, None], -torch.inf)
    return own.squeeze(1) - others.logsumexp(-1)


def correctness(logits: Float[Tensor, "n c"], labels: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Return 1 where the label has the largest logit, alone or among equals, and else 0."""
    own = logits.gather(1, labels[:, None]).squeeze(1)
    return (own >= logits.amax(-1)).to(logits.dtype)


def label_losses(
    logits: Float[Tensor, "n *t c"],
    labels: Int[Tensor, "n *t"],
    source: Labels,
    ids: np.ndarray,
) -> list[Float[Tensor, " n"]]:
    """Return cross-entropies whose gradients' outer products sum to each example's Fisher.

    For labels drawn from the model, each loss is divided by the root of the number of
    draws; for the exact expectation, the loss of each class is multiplied by the root of
    its probability.

    Args:
        logits: One row of class scores a position.
        labels: The data's labels; positions with -100 stay ignored.
        source: Where labels come from.
        ids: Ids of the rows.

    Raises:
        ValueError: The exact expectation was asked for with several positions an example.
    """
    if source.kind == "data":
        return [cross_entropies(logits, labels)]
    if source.kind == "exact":
        if labels.dim() > 1:
            raise ValueError(
                "fisher='exact' must be used with one label an example: with several there are too "
                "many combinations. Use fisher='sampled'."
            )
        scores = logits.log_softmax(-1)
        weights = (scores.detach() / 2).exp()
        return list((-weights * scores).unbind(-1))
    with torch.no_grad():
        counted = (labels != IGNORED).view(len(labels), -1)
        ranks = counted.cumsum(1) - 1  # so that padding does not change what is drawn
        wide = torch.promote_types(logits.dtype, torch.float32)
        cdf = logits.detach().softmax(-1, dtype=wide).cumsum(-1)
        draws = uniforms(source, ids, int(counted.sum(1).max()), logits.device)
        picked = [draw.gather(1, ranks.clamp(min=0)).view(labels.shape) for draw in draws]
        sampled = [
            torch.searchsorted(cdf, u[..., None].to(wide) * cdf[..., -1:])
            .squeeze(-1)
            .clamp(max=logits.shape[-1] - 1)
            for u in picked
        ]
    scale = 1 / sqrt(len(sampled))
    return [
        cross_entropies(logits, label.masked_fill(labels == IGNORED, IGNORED)) * scale
        for label in sampled
    ]
