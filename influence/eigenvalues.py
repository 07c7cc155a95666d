"""Second pass of EK-FAC: the second moment of every coordinate in the eigenbasis.

Letters: ``n`` examples, ``t`` positions, ``i`` inputs, ``o`` outputs.

References:
    George et al. (2018), arXiv:1806.03884, Sec. 3; Grosse et al. (2023), arXiv:2308.03296,
    Eq. 20.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from influence.kfac_math import Rotation, add_squares, choose_way
from influence.linear_layers import LinearUse, linear_uses
from projections import Batch, Gradient

EXAMPLES = "examples"
Bases = Mapping[str, tuple[Rotation, Rotation]]


@dataclass
class CorrectedEigenvalues:
    """Sums of ``(U_G^T G_n U_A)**2`` for every linear map.

    Args:
        bases: ``U_G`` and ``U_A`` by name; without an entry, a map is left out.
    """

    bases: Bases
    name: str = field(default="eigenvalues", init=False)
    _sums: dict[str, Tensor] = field(default_factory=dict, init=False)
    _examples: int = field(default=0, init=False)
    _rotated: "SharedRotations" = field(init=False)

    def __post_init__(self) -> None:
        """Start with nothing."""
        self._rotated = SharedRotations()

    def begin(self, batch: Batch) -> None:
        """Start a batch, or another draw of labels for the same batch."""
        self._rotated.clear()

    def observe(self, gradient: Gradient) -> None:
        """Add the squares of one component."""
        for use in linear_uses(gradient):
            if use.name not in self.bases:
                continue
            left, right = self.bases[use.name]
            way = choose_way(use.inputs.shape[1], left, right)
            if use.name not in self._sums:
                shape = (use.output_grads.shape[2], use.inputs.shape[2])
                self._sums[use.name] = use.inputs.new_zeros(
                    shape, dtype=torch.promote_types(use.inputs.dtype, torch.float32)
                )
            self._sums[use.name] = self._sums[use.name].to(use.inputs.device)
            dtype = self._sums[use.name].dtype
            add_squares(
                use.inputs.to(dtype),
                use.output_grads.to(dtype),
                self._sums[use.name],
                way=way,
                left=left,
                right=right,
                rotated_inputs=self._rotated.get(use, right, dtype) if way.inputs_first else None,
            )

    def end(self, batch: Batch) -> None:
        """Count the examples once, however often labels were drawn."""
        self._rotated.clear()
        self._examples += len(batch) if batch.draw == 0 else 0

    @property
    def num_examples(self) -> int:
        """Number of examples seen."""
        return self._examples

    def means(self) -> dict[str, Tensor]:
        """Return the mean over examples, ``o i`` by name."""
        return {name: total / self._examples for name, total in self._sums.items()}

    def state(self) -> dict[str, Tensor]:
        """Return sums and count."""
        return {EXAMPLES: torch.tensor(self._examples), **self._sums}

    def is_sum(self, key: str) -> bool:
        """Tell that every entry of the state is a sum."""
        return True

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a state."""
        self._sums, self._examples = {}, 0
        self.merge(state)

    def merge(self, state: Mapping[str, Tensor]) -> None:
        """Add the sums of another part of the data."""
        self._examples += int(state[EXAMPLES])
        for name, total in state.items():
            if name != EXAMPLES:
                have = self._sums.get(name)
                self._sums[name] = total.clone() if have is None else have + total


class SharedRotations:
    """Rotated inputs of one batch, computed once for the layers that share them."""

    def __init__(self) -> None:
        """Start with nothing."""
        self._by_key: dict[tuple[int, bool], tuple[Rotation, Tensor]] = {}

    def get(self, use: LinearUse, right: Rotation, dtype: torch.dtype) -> Tensor:
        """Return ``inputs @ U_A`` for one linear map."""
        if use.input_key is None:
            return right.into(use.inputs.to(dtype))
        known = self._by_key.get(use.input_key)
        if known is None or known[0] is not right:
            known = (right, right.into(use.inputs.to(dtype)))
            self._by_key[use.input_key] = known
        return known[1]

    def clear(self) -> None:
        """Forget the batch."""
        self._by_key.clear()
