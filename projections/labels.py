"""Where the labels of a Fisher matrix come from, and the draws behind them.

Letters: ``n`` examples, ``t`` counted positions of an example.

What is drawn for a row depends on the seed, the name of the pass and the row's id, and on
nothing else: not on the batch, the order, the padding or the device.
"""

from dataclasses import dataclass
from hashlib import sha256
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from projections.checks import check_at_least, check_one_of
from projections.philox import derive_key, philox

KINDS = ("data", "sampled", "exact")


@dataclass(frozen=True, kw_only=True)
class Labels:
    """The labels that losses are taken under.

    Args:
        kind: ``"data"``: the data's own. ``"sampled"``: drawn from the model. ``"exact"``:
            every possible label, weighted by the model's probability of it.
        num_samples: Number of draws for each row.
        seed: Seed of the draws.
        purpose: Name of the pass; passes with different names draw independently.
    """

    kind: Literal["data", "sampled", "exact"] = "data"
    num_samples: int = 1
    seed: int = 0
    purpose: str = ""

    def __post_init__(self) -> None:
        """Check the arguments."""
        check_one_of("kind", self.kind, KINDS)
        check_at_least("num_samples", self.num_samples, 1)


def uniforms(
    labels: Labels, ids: np.ndarray, num_positions: int, device: torch.device
) -> list[Float[Tensor, "n t"]]:
    """Return uniform numbers in (0, 1), one matrix a draw, in float64.

    Args:
        labels: Seed, purpose and number of draws.
        ids: Ids of the rows.
        num_positions: Number ``t`` of numbers a row.
        device: Where they are needed.

    Example:
        >>> labels = Labels(kind="sampled", seed=0)
        >>> one, both = np.array([7]), np.array([3, 7])
        >>> alone = uniforms(labels, one, 4, torch.device("cpu"))[0]
        >>> together = uniforms(labels, both, 2, torch.device("cpu"))[0]
        >>> bool((alone[0, :2] == together[1]).all())
        True
    """
    key = derive_key(labels.seed, f"labels/{labels.purpose}")
    low, high = (word.to(device)[:, None] for word in _row_words(ids))
    positions = torch.arange(num_positions, device=device)[None].expand(len(ids), -1)
    return [
        (philox(key, positions, low, high, draw)[..., 0].double() + 0.5) / 2**32
        for draw in range(labels.num_samples)
    ]


def _row_words(ids: np.ndarray) -> tuple[Tensor, Tensor]:
    """Return two 32-bit words for each id: of the number itself, or of a hash of the text."""
    if ids.dtype.kind in "iu":
        numbers = ids.astype(np.int64).view(np.uint64)
    else:
        digests = [sha256(str(row_id).encode()).digest()[:8] for row_id in ids.tolist()]
        numbers = np.array([int.from_bytes(digest, "little") for digest in digests], np.uint64)
    low = (numbers & np.uint64(0xFFFFFFFF)).astype(np.int64)
    high = (numbers >> np.uint64(32)).astype(np.int64)
    return torch.from_numpy(low), torch.from_numpy(high)
