"""Preconditioned gradients of queries, in the form that training gradients meet them.

Letters: ``n`` training examples, ``q`` queries, ``t`` positions, ``i`` inputs, ``o`` outputs,
``h`` outputs of one block, ``r`` rank.

They are preconditioned once and stay in memory; queries that do not fit the memory budget
take another pass. They lie in blocks of outputs, each contiguous: training gradients are
formed a block at a time, and multiplied at once.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import gcd

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from influence.eigenvalues import SharedRotations
from influence.kfac_math import LayerCurvature, choose_way, rotated_gradients
from influence.linear_layers import LinearUse, linear_uses
from projections import Batch, Gradient

GROUP = 32  # training examples whose gradients are formed at a time
FORMED_ENTRIES = {"cpu": 1 << 23, "cuda": 1 << 27}  # of gradients formed at a time: 32 MB
LEAST_OUTPUTS = 128  # of a block, since forming fewer is slow; 16 KB for each input
PIECE_ENTRIES = 1 << 13  # entries of a product that one core works on
LEAST_ENTRIES = 1 << 8  # below which pieces are too many


@dataclass(frozen=True)
class FullQueries:
    """Preconditioned gradients of queries on one linear map.

    Args:
        blocks: The gradients, a few outputs a block, in the order of the outputs.
    """

    blocks: tuple[Float[Tensor, "q _ i"], ...]

    def __len__(self) -> int:
        """Return the number of queries."""
        return len(self.blocks[0])

    @property
    def gradients(self) -> Float[Tensor, "q o i"]:
        """The gradients as one tensor, which is a copy where there are several blocks."""
        first, *others = self.blocks
        return torch.cat([first, *others], dim=1) if others else first

    def scores(
        self, inputs: Float[Tensor, "n t i"], output_grads: Float[Tensor, "n t o"]
    ) -> Float[Tensor, "n q"]:
        """Return inner products with training gradients.

        Query gradients are read once a group of examples. With one position no gradient is
        formed: the queries map the inputs, and meet the output gradients.
        """
        out = inputs.new_zeros(len(inputs), len(self))
        for grads, block in self._pairs(inputs, output_grads):
            if inputs.shape[1] == 1:
                mapped = (inputs[:, 0] @ block.flatten(0, 1).mT).view(-1, *block.shape[:2])
                out += torch.einsum("nqh,nh->nq", mapped, grads[:, 0])
                continue
            queries = _pieces(block).mT
            most = formed_entries(inputs.device.type, inputs.shape[2])
            group = max(1, min(GROUP, most // block[0].numel()))
            for a, g, some in zip(
                inputs.split(group), grads.split(group), out.split(group), strict=True
            ):
                some += (_pieces(g.mT @ a) @ queries).sum(0)
        return out

    def token_scores(
        self, inputs: Float[Tensor, "n t i"], output_grads: Float[Tensor, "n t o"]
    ) -> Float[Tensor, "n t q"]:
        """Return the share of each position in the scores."""
        out = inputs.new_zeros(*inputs.shape[:2], len(self))
        for grads, block in self._pairs(inputs, output_grads):
            out += torch.einsum("nth,qhi,nti->ntq", grads, block, inputs)
        return out

    def _pairs(self, inputs: Tensor, output_grads: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the output gradients of each block with the block."""
        heights = [block.shape[1] for block in self.blocks]
        for grads, block in zip(output_grads.split(heights, -1), self.blocks, strict=True):
            yield grads, block.to(inputs)


@dataclass(frozen=True)
class LowRankQueries:
    """The same, of low rank: less memory for each query, so more queries share a pass.

    Args:
        left: Left singular vectors times singular values, ``q o r``.
        right: Right singular vectors, ``q r i``.

    References:
        Grosse et al. (2023), arXiv:2308.03296, Sec. 3.2.2.
    """

    left: Float[Tensor, "q o r"]
    right: Float[Tensor, "q r i"]

    def __len__(self) -> int:
        """Return the number of queries."""
        return len(self.left)

    def scores(
        self, inputs: Float[Tensor, "n t i"], output_grads: Float[Tensor, "n t o"]
    ) -> Float[Tensor, "n q"]:
        """Return inner products with training gradients, which are not formed."""
        return self.token_scores(inputs, output_grads).sum(1)

    def token_scores(
        self, inputs: Float[Tensor, "n t i"], output_grads: Float[Tensor, "n t o"]
    ) -> Float[Tensor, "n t q"]:
        """Return the share of each position in the scores."""
        count, positions, _ = inputs.shape
        queries, _, rank = self.left.shape
        grads = output_grads @ self.left.to(inputs).movedim(1, 0).flatten(1)
        rotated = inputs @ self.right.to(inputs).flatten(0, 1).mT
        return (grads * rotated).view(count, positions, queries, rank).sum(-1)


def _pieces(gradients: Float[Tensor, "n h i"]) -> Float[Tensor, "p n c"]:
    """Return gradients cut into pieces of whole outputs, which one product can work on in parallel.

    A product of a few rows with a few rows over all entries at once is half as fast.
    """
    count, num_out, num_in = gradients.shape
    entries = piece_entries(num_out, num_in)
    return gradients.reshape(count, num_out * num_in // entries, entries).movedim(1, 0)


def piece_entries(num_out: int, num_in: int) -> int:
    """Return the number of entries of each piece of a gradient, or of one of its blocks."""
    outputs = gcd(num_out, _most_outputs(num_in))
    return (outputs if outputs * num_in >= LEAST_ENTRIES else num_out) * num_in


def _most_outputs(num_in: int) -> int:
    """Return the most outputs of a piece: a power of two, which numbers of outputs often hold."""
    return 1 << max(1, PIECE_ENTRIES // num_in).bit_length() - 1


def formed_entries(device_type: str, num_in: int) -> int:
    """Return how many entries of gradients are formed at a time, of no block too low."""
    return max(FORMED_ENTRIES.get(device_type, 1 << 24), GROUP * LEAST_OUTPUTS * num_in)


Queries = FullQueries | LowRankQueries
Preconditioned = Mapping[str, Queries]


def compress(queries: FullQueries, rank: int) -> LowRankQueries | FullQueries:
    """Return the best approximation of this rank, or the same if it is no larger.

    Args:
        queries: Preconditioned gradients.
        rank: Number ``r`` of singular vectors kept.
    """
    gradients = queries.gradients
    _, num_out, num_in = gradients.shape
    if rank * (num_out + num_in) >= num_out * num_in:
        return queries
    wide = gradients.to(torch.promote_types(gradients.dtype, torch.float32))
    left, values, right = torch.linalg.svd(wide, full_matrices=False)
    return LowRankQueries(left[..., :rank] * values[:, None, :rank], right[:, :rank])


@dataclass
class QueryGradients:
    """An accumulator of the preconditioned gradients of a few examples.

    Factors are rotated before a gradient is formed where that is cheaper, and a gradient is
    rotated back at once, so that little more is held than the result.

    Args:
        layers: The curvature of each linear map.
        inverses: One over eigenvalue plus damping, by linear map.
        ids: Ids of the examples, in the order of the result.
    """

    layers: Mapping[str, LayerCurvature]
    inverses: Mapping[str, Float[Tensor, "o i"]]
    ids: np.ndarray
    name: str = field(default="query gradients", init=False)
    _blocks: dict[str, tuple[Tensor, ...]] = field(default_factory=dict, init=False)
    _rotated: SharedRotations = field(default_factory=SharedRotations, init=False)

    def __post_init__(self) -> None:
        """Remember where each row goes."""
        self._where = {row_id: position for position, row_id in enumerate(self.ids.tolist())}

    def begin(self, batch: Batch) -> None:
        """Find the places of the rows of a batch."""
        places = [self._where[row_id] for row_id in batch.ids.tolist()]
        self._places = torch.tensor(places, device=batch.device)
        self._rotated.clear()

    def observe(self, gradient: Gradient) -> None:
        """Precondition one component."""
        for use in linear_uses(gradient):
            if use.name not in self.layers:
                continue
            dtype = torch.promote_types(use.inputs.dtype, torch.float32)
            if use.name not in self._blocks:
                self._blocks[use.name] = self._allocate(use, dtype)
            layer, start = self.layers[use.name], 0
            way = choose_way(use.inputs.shape[1], layer.left, layer.right)
            for chunk in rotated_gradients(
                use.inputs.to(dtype),
                use.output_grads.to(dtype),
                way=way,
                left=layer.left,
                right=layer.right,
                rotated_inputs=self._rotated.get(use, layer.right, dtype)
                if way.inputs_first
                else None,
            ):
                scaled = layer.right.back(chunk * self.inverses[use.name].to(chunk))
                found = layer.left.columns_back(scaled)
                places = self._places[start : start + len(chunk)]
                first = 0
                for block in self._blocks[use.name]:
                    block[places] = found[:, first : first + block.shape[1]]
                    first += block.shape[1]
                start += len(chunk)

    def end(self, batch: Batch) -> None:
        """Forget the batch."""
        self._rotated.clear()

    def results(self) -> dict[str, FullQueries]:
        """Return the gradients by linear map."""
        return {name: FullQueries(blocks) for name, blocks in self._blocks.items()}

    def state(self) -> dict[str, Tensor]:
        """Return what was computed, zero for rows that have not come."""
        return {
            f"{name}|{number}": block
            for name, blocks in self._blocks.items()
            for number, block in enumerate(blocks)
        }

    def is_sum(self, key: str) -> bool:
        """Tell that every entry of the state is a sum."""
        return True

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a state."""
        names = dict.fromkeys(key.rpartition("|")[0] for key in state)
        self._blocks = {}
        for name in names:
            numbers = range(sum(key.rpartition("|")[0] == name for key in state))
            self._blocks[name] = tuple(state[f"{name}|{number}"].clone() for number in numbers)

    def merge(self, state: Mapping[str, Tensor]) -> None:
        """Add rows that were computed elsewhere."""
        mine = self.state()
        self.load(
            {key: mine[key] + value if key in mine else value for key, value in state.items()}
        )

    def _allocate(self, use: LinearUse, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """Return blocks of zeros, as high as the gradients of a group are formed at a time."""
        num_in, num_out = use.inputs.shape[2], use.output_grads.shape[2]
        piece = _most_outputs(num_in)
        height = formed_entries(use.inputs.device.type, num_in) // (GROUP * num_in)
        height = height // piece * piece or piece
        return tuple(
            use.inputs.new_zeros((len(self.ids), min(height, num_out - first), num_in), dtype=dtype)
            for first in range(0, num_out, height)
        )
