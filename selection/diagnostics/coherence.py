r"""How far gradients add up: m-coherence, signal and noise, of all rows, classes and layers.

Letters: ``m`` examples, ``k`` dimensions.

All of it comes from the mean gradient and the mean squared norm, so one walk is enough. Rows
of a random projection give both without bias; whole layers are exact by `CoherenceByLayer`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from projections import Concatenated, Kronecker, Projector, Selected, check_at_least
from selection.row_blocks import RowBlocks, as_row_blocks, number_groups, sum_by_group
from selection.scoring import score_agreement

EVERYTHING = "all"
NOBODY = np.zeros(0, np.int64)


@dataclass(frozen=True)
class Coherence:
    r"""How far the gradients of some examples point the same way.

    Args:
        group: The class or domain of the examples; ``"all"`` for all of them.
        layer: Of which layer their gradients are; ``"all"`` for all of it.
        num_examples: Number ``m`` of examples.
        sq_mean: :math:`\|E g\|^2`, of the mean gradient.
        mean_sq: :math:`E \|g\|^2`.
        along: Ids of the examples that agree most with the others of the group.
        against: Ids of those that agree least, the worst first.

    References:
        Chatterjee and Zielinski, Making coherence out of nothing at all (2020),
        arXiv:2008.01217; McCandlish et al., An empirical model of large-batch training (2018),
        arXiv:1812.06162, App. A.1, for the unbiased signal and noise.
    """

    group: str
    layer: str
    num_examples: int
    sq_mean: float
    mean_sq: float
    along: np.ndarray = field(default_factory=lambda: NOBODY)
    against: np.ndarray = field(default_factory=lambda: NOBODY)

    @property
    def coherence(self) -> float:
        r""":math:`m \|E g\|^2 / E \|g\|^2`: 1 for orthogonal gradients, ``m`` for equal ones.

        As many examples as a step on one helps, itself among them. Below 1 they cancel; 0
        where all gradients are zero.
        """
        return self.num_examples * self.share

    @property
    def share(self) -> float:
        """The coherence over ``m``, to compare groups of different sizes."""
        return self.sq_mean / self.mean_sq if self.mean_sq > 0 else 0.0

    @property
    def signal(self) -> float:
        r"""An unbiased estimate of the true mean gradient's squared norm; may be below zero."""
        m = self.num_examples
        return (m * self.sq_mean - self.mean_sq) / (m - 1) if m > 1 else self.sq_mean

    @property
    def noise(self) -> float:
        """An unbiased estimate of the variance of gradients, summed over their entries."""
        m = self.num_examples
        return max(0.0, m * (self.mean_sq - self.sq_mean) / (m - 1)) if m > 1 else 0.0

    @property
    def signal_to_noise(self) -> float:
        """Signal over noise of one example; infinite where there is no noise."""
        return self.signal / self.noise if self.noise > 0 else float("inf")

    @property
    def noise_scale(self) -> float:
        """Noise over signal: the batch size at which both are equal; infinite without signal."""
        return self.noise / self.signal if self.signal > 0 else float("inf")


def measure_coherence(
    rows: Any,
    groups: Sequence[Any] | np.ndarray | None = None,
    *,
    layers: Mapping[str, slice] | None = None,
    num_shown: int = 5,
) -> list[Coherence]:
    """Measure the coherence of all rows, of each group, and of each layer of both.

    Args:
        rows: A `GradientStore`, `Embeddings` or an array ``n k``.
        groups: The class or domain of each row, if there are any.
        layers: Which dimensions of a row belong to which layer, as from `layer_slices`.
        num_shown: Number of examples that are named at either end.

    Returns:
        All rows first, then the groups in order; of each all layers together, then one by one.

    Raises:
        DataError: There is not one group a row.
        ValueError: There is no row.

    Example:
        >>> rows = np.array([[1.0, 0], [1, 0], [0, 1], [0, -1]])
        >>> for found in measure_coherence(rows, ["a", "a", "b", "b"]):
        ...     print(found.group, found.coherence)
        all 1.0
        a 2.0
        b 0.0
    """
    check_at_least("num_shown", num_shown, 0)
    blocks = as_row_blocks(rows)
    parts = {EVERYTHING: slice(None), **(layers or {})}
    whole = np.zeros(len(blocks), np.int64)
    agreement = score_agreement(blocks.source, groups)
    found = _measure(blocks, whole, [EVERYTHING], parts, agreement["agreement"].values, num_shown)
    if groups is not None:
        numbers, names = number_groups(groups, len(blocks))
        own = agreement["group_agreement"].values
        found += _measure(blocks, numbers, [str(name) for name in names], parts, own, num_shown)
    return found


def layer_slices(projector: Projector) -> dict[str, slice]:
    """Return which dimensions of a row belong to which layer.

    Args:
        projector: One that keeps layers apart: `Kronecker`, or `Concatenated` with a
            `Selected` for each group of layers.

    Raises:
        TypeError: The projector mixes layers.

    Example:
        >>> from projections import SJLT
        >>> parts = (Selected(projector=SJLT(num_dims=4, seed=0), patterns=("a", "b")),) * 2
        >>> layer_slices(Concatenated(parts[:1]))
        {'a b': slice(0, 4, None)}
    """
    if isinstance(projector, Kronecker):
        return {
            name: slice(block.start, block.start + block.num_dims)
            for name, block in projector.blocks.items()
        }
    if isinstance(projector, Concatenated):
        ends = np.cumsum([0, *(part.num_dims for part in projector.projectors)]).tolist()
        names = [
            " ".join(part.patterns) if isinstance(part, Selected) else f"part {number}"
            for number, part in enumerate(projector.projectors)
        ]
        return {name: slice(*ends[n : n + 2]) for n, name in enumerate(names)}
    raise TypeError(
        "`projector` must keep layers apart, as `Kronecker` does and `Concatenated` with a "
        f"`Selected` for each. Got {type(projector).__name__}, which mixes them. Use "
        "`CoherenceByLayer` in a pass."
    )


def _measure(
    blocks: RowBlocks,
    groups: Int[np.ndarray, " n"],
    names: Sequence[str],
    layers: Mapping[str, slice],
    agreement: Float[np.ndarray, " n"],
    num_shown: int,
) -> list[Coherence]:
    """Return the coherence of each group and layer."""
    sums = sum_by_group(blocks, groups, len(names))
    squares = np.zeros_like(sums)
    for where, rows in blocks:
        own = groups[where]
        for group in np.unique(own):
            squares[group] += np.square(rows[own == group]).sum(axis=0)
    counts = np.bincount(groups, minlength=len(names))
    found = []
    for number, name in enumerate(names):
        members = np.flatnonzero(groups == number)
        order = members[np.argsort(agreement[members], kind="stable")]
        along, against = blocks.ids[order[::-1][:num_shown]], blocks.ids[order[:num_shown]]
        count = int(counts[number])
        for layer, part in layers.items():
            mean = sums[number, part] / count
            mean_sq = float(squares[number, part].sum()) / count
            found.append(Coherence(name, layer, count, float(mean @ mean), mean_sq, along, against))
    return found
