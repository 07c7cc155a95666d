"""The best rows of each query so far, as scores arrive in blocks of rows.

Letters: ``q`` queries, ``b`` rows of a block, ``k`` rows that are kept.
"""

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from projections.base import TopK


class BestRows:
    """The ``k`` largest scores of each query, ties in the order of the rows' positions.

    Args:
        num_queries: Number of queries.
        k: Number of rows to keep.
        device: Where the scores are.

    Example:
        >>> best = BestRows(1, 2)
        >>> best.offer(torch.tensor([[1.0, 3.0]]), torch.tensor([0, 1]))
        >>> best.offer(torch.tensor([[2.0, 3.0]]), torch.tensor([2, 3]))
        >>> best.positions
        tensor([[1, 3]])
    """

    def __init__(self, num_queries: int, k: int, device: str | torch.device = "cpu") -> None:
        """Start with nothing."""
        self.k = k
        self.scores = torch.empty(num_queries, 0, device=device)
        self.positions = torch.empty(num_queries, 0, dtype=torch.int64, device=device)

    def offer(self, scores: Float[Tensor, "q b"], positions: Int[Tensor, " b"]) -> None:
        """Take the scores of some rows, whose positions rise."""
        values, places = _stable_topk(scores, self.k)
        self.merge(values, positions[places])

    def merge(self, scores: Float[Tensor, "q b"], positions: Int[Tensor, "q b"]) -> None:
        """Take rows that were the best of another part."""
        scores = torch.cat([self.scores, scores], 1)
        positions = torch.cat([self.positions, positions], 1)
        by_position = positions.argsort(1)
        scores, positions = scores.gather(1, by_position), positions.gather(1, by_position)
        order = scores.sort(dim=1, descending=True, stable=True).indices[:, : self.k]
        self.scores, self.positions = scores.gather(1, order), positions.gather(1, order)

    def result(self, ids: np.ndarray, sign: int) -> TopK:
        """Return what was kept, with the scores multiplied by ``sign``."""
        positions = self.positions.cpu().numpy()
        return TopK(ids[positions], sign * self.scores.cpu().numpy(), positions)


def _stable_topk(
    scores: Float[Tensor, "q b"], k: int
) -> tuple[Float[Tensor, "q k"], Int[Tensor, "q k"]]:
    """Return the largest scores of each row and their columns; ties go to the first column."""
    width = scores.shape[1]
    if k >= width:
        return scores.clone(), torch.arange(width, device=scores.device).expand(len(scores), width)
    values, columns = scores.topk(k + 1, dim=1)
    for row in torch.nonzero(values[:, k] == values[:, k - 1]).flatten().tolist():
        columns[row, :k] = scores[row].sort(descending=True, stable=True).indices[:k]
    return scores.gather(1, columns[:, :k]), columns[:, :k]
