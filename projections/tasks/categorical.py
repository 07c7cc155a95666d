"""Losses and per-example statistics of a categorical distribution over labels.

Letters: ``n`` examples, ``t`` positions, ``c`` classes.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

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
    return flat.view(len(labels), -1).sum(1)


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
        Park et al., TRAK (ICML 2023), arXiv:2303.14186, Eq. 11.
    """
    own = logits.gather(1, labels[:, None])
    others = logits.scatter(1, labels[:, None], -torch.inf)
    return own.squeeze(1) - others.logsumexp(-1)
