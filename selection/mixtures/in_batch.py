"""Alignments of domains read off the training batch itself, at almost no cost.

Letters: ``m`` domains, ``n`` examples of a training batch.

The forward and backward are the training step's own: dropout may be on, so gradients are
those of the loss with dropout. A training loss is a mean over the tokens of its batch; the
product of a domain is scaled back to that of the *domain's* mean loss a token, whatever
its share of the batch. The target's gradient is taken with dropout off, at each move.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from projections import (
    Direction,
    GradientSum,
    Task,
    Term,
    Watch,
    check_at_least,
    find_components,
    to_device,
)
from selection.mixtures.batch_sums import BatchSums
from selection.mixtures.decks import as_target
from selection.mixtures.domain_gradients import evaluating, kept_grads, mean_loss
from selection.mixtures.mirror import MirrorDescent
from selection.mixtures.recorded import RecordedMixture

STEP = MirrorDescent(step_size=1.0, average=0.1, floor=1e-3)
IGNORED = -100


class InBatchDGA(RecordedMixture):
    r"""DGA without batches of its own: gradients of the training batch, grouped by domain.

    With :math:`g_n` the gradient of example :math:`n` in the loss of the batch, of :math:`N`
    tokens, :math:`N_j` of them of domain :math:`j`, the alignment is
    :math:`a_j = (N / N_j) \sum_{n \in j} \langle g_n, g_* \rangle / \|g_*\|^2`, averaged over the
    steps since the last move. In a linear map from :math:`i` to :math:`o` features, products of
    rank :math:`k` take :math:`k (i + o) / 3 i o` of what a step takes; a move takes one forward
    and backward of the target. Domains that no batch held keep their weight.

    Alignments are noisier than those of `DGA` for domains of small weight, of which batches
    hold few examples; the floor keeps some coming.

    Args:
        task: The model that is being trained, and what its loss means for the target.
        names: Names of the domains.
        target: A few rows of what the model is to be good at.
        every: Steps between two moves.
        batch_size: Rows of the target at a move.
        rule: The mirror step.
        rank: Rank to which the target's gradient is cut in each matrix; None for exact
            products.
        layers: Patterns of the components whose gradients count; default: all.
        loss_factor: What multiplies the mean loss of a batch before backward: one over the
            number of micro-batches of a step, for instance. Only the scale depends on it.
        weights: Weights at the start; default: uniform.
        seed: Decides which rows of the target are drawn.

    Example:
        >>> from projections import Regression
        >>> model = torch.nn.Linear(1, 1)
        >>> x = torch.ones(4, 1)
        >>> target = [(torch.ones(1), torch.full((1,), 9.0))]
        >>> mixture = InBatchDGA(
        ...     Regression(model), ("up", "down"), target, every=1, batch_size=1, seed=0
        ... )
        >>> y = torch.tensor([[9.0], [-9.0], [9.0], [-9.0]])
        >>> with mixture.watching():
        ...     (model(x) - y).square().mean().backward()  # ... and the optimizer's step
        ...     mixture.update(0, domains=np.array([0, 1, 0, 1]))
        >>> up, down = mixture.weights
        >>> bool(up > down)
        True

    References:
        Fan et al., Dynamic gradient alignment for online data mixing (2024),
        arXiv:2410.02498. The estimate from the training batch is this library's.
    """

    def __init__(
        self,
        task: Task,
        names: Sequence[str],
        target: Any,
        *,
        every: int = 100,
        batch_size: int = 8,
        rule: MirrorDescent = STEP,
        rank: int | None = 4,
        layers: str | Sequence[str] | None = None,
        loss_factor: float = 1.0,
        weights: Sequence[float] | None = None,
        seed: int,
    ) -> None:
        """Find the components."""
        super().__init__(names, weights, rule=rule, every=every)
        check_at_least("batch_size", batch_size, 1)
        check_at_least("rank", 1 if rank is None else rank, 1)
        self.task = task
        self.batch_size = batch_size
        self.rank = rank
        self.loss_factor = loss_factor
        self._target = as_target(target, seed=seed)
        self._sums = BatchSums(self.names)
        self._direction: Direction | None = None
        self._aims_anew = True  # before the next forward
        self._measured: list[tuple[Tensor, Tensor]] = []  # products and tokens, a pair a forward
        self._watch = Watch(
            task.model,
            find_components(task.model, layers),
            begin=self._begin,
            observe=self._observe,
        )

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Read gradients off all forwards in training mode and their backwards, until the end."""
        with self._watch.hooks():
            yield

    def due(self, step: int) -> bool:
        """Always: the domains of every batch have to be known."""
        return True

    def update(
        self,
        step: int,
        *,
        domains: Int[np.ndarray, " n"] | None = None,
        losses: Float[np.ndarray, " n"] | None = None,
    ) -> None:
        """Take in the domains of a step, and move the weights if it is time.

        Args:
            step: Number of the step that was just taken.
            domains: The domain of each example, as its position in ``names``, in the order
                in which the model saw them.
            losses: Not needed.

        Raises:
            NonFiniteError: The gradients of a domain are not finite.
            ValueError: The step was not watched, or the domains do not fit its examples.
        """
        measured, self._measured = self._measured, []
        if not measured:
            raise ValueError(
                "the step before `update` must be watched. No forward in training mode was seen "
                "since the last one. Train inside `with mixture.watching():`."
            )
        # Gradients of a mean over all tokens of a forward, back to those of a sum.
        products = torch.cat([(part * tokens.sum()).cpu() for part, tokens in measured])
        tokens = torch.cat([part.cpu() for _, part in measured])
        # The sum of an example's tokens over its number of them, weighed by that number.
        means = products / tokens.clamp(min=1)
        self._sums.add(domains, means.double().numpy(), tokens.double().numpy())
        if not super().due(step):
            return
        alignments, known = self._sums.means()
        assert self._direction is not None
        norm = self._direction.sq_norm * self.loss_factor
        self._move(step, alignments / norm if norm > 0 else alignments, known)
        self._aims_anew = True

    def state_dict(self) -> dict[str, Any]:
        """Return all that changes during training, as plain values that JSON can hold.

        The target's gradient is not in it. It is taken anew after each save, so that the run that
        was saved and the one that goes on from it are the same.
        """
        self._aims_anew = True
        return {**super().state_dict(), "sums": self._sums.to_json()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state of a mixture of the same domains."""
        super().load_state_dict(state)
        self._sums.from_json(state["sums"])
        self._aims_anew = True
        self._measured = []

    def _begin(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int | None:
        """Make room for the products of a forward; those in evaluation mode are not training."""
        if not self.task.model.training:
            return None
        if self._aims_anew:
            self._direction, self._aims_anew = self._aim(), False
        tokens = tokens_of(args, kwargs)
        self._measured.append((torch.zeros_like(tokens), tokens))
        return len(tokens)

    def _observe(self, term: Term) -> None:
        """Add the products of one use of a layer."""
        assert self._direction is not None
        products, _ = self._measured[-1]
        products += self._direction.products(term)

    def _aim(self) -> Direction:
        """Return the gradient of the target's mean loss a token, as it is now."""
        rows = self._target.draw(self.num_moves * self.batch_size, self.batch_size)
        task, found = self.task, GradientSum()
        batch = to_device(task.collate(task.encode(rows)), task.device)
        watch = Watch(task.model, self._watch.layout, lambda *_: len(rows), found.add)
        # This happens inside the forward of a step, which may run in lower precision.
        exact = torch.autocast(task.device.type, enabled=False)
        with exact, evaluating(task.model), kept_grads(task.model), watch.hooks():
            mean_loss(task, batch).backward()
        return Direction(found, rank=self.rank)


def tokens_of(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Float[Tensor, " n"]:
    """Return how many tokens of each example count in a forward's loss; 1 where unknown.

    Labels that are one a position, whole numbers in rows, are those of tokens. Where there are
    others, the loss is a mean over examples, whatever their lengths.
    """
    labels, mask = kwargs.get("labels"), kwargs.get("attention_mask")
    if isinstance(labels, Tensor):
        if labels.dim() == 2 and labels.shape[1] > 1 and not labels.is_floating_point():
            return (labels[:, 1:] != IGNORED).sum(1).float()
        return torch.ones(len(labels), device=labels.device)
    if isinstance(mask, Tensor) and mask.dim() == 2:
        return (mask.sum(1) - 1).clamp(min=1).float()
    first = next(v for v in (*args, *kwargs.values()) if isinstance(v, Tensor))
    return torch.ones(len(first), device=first.device)
