"""First pass of K-FAC: covariances of inputs and of output gradients, as an accumulator.

Letters: ``n`` examples, ``t`` positions, ``i`` inputs of a layer (with a trailing one for
its bias), ``o`` outputs, ``w`` width of a diagonal block.

Inputs are averaged over real tokens and output gradients summed over them, so tokens and
examples are counted apart. Layers that read the same tensor (query, key and value; gate
and up) share one covariance of inputs.

References:
    Grosse et al., Studying large language model generalization with influence functions
    (2023), arXiv:2308.03296, Eq. 16.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from influence.kfac_math import add_gram, block_sizes, mirror
from influence.linear_layers import linear_uses
from projections import Batch, Gradient, GradsiftError, check_at_least

INPUT, GRAD, TOKENS, EXAMPLES, OWNER = "input", "grad", "tokens", "examples", "owner"


@dataclass
class Covariances:
    """Sums of ``a a^T`` and ``g g^T`` for every linear map.

    Args:
        max_factor: Widest diagonal block of a covariance; None for no limit.
    """

    max_factor: int | None = None
    name: str = field(default="covariances", init=False)
    _inputs: dict[str, list[Tensor]] = field(default_factory=dict, init=False)
    _grads: dict[str, list[Tensor]] = field(default_factory=dict, init=False)
    _tokens: dict[str, Tensor] = field(default_factory=dict, init=False)
    _examples: int = field(default=0, init=False)
    _owners: dict[str, str] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        """Check the argument."""
        if self.max_factor is not None:
            check_at_least("max_factor", self.max_factor, 1)

    def begin(self, batch: Batch) -> None:
        """Start a batch, or another draw of labels for the same batch."""
        self._batch = batch
        self._keys: dict[tuple[int, bool], str] = {}

    def observe(self, gradient: Gradient) -> None:
        """Add the factors of one component."""
        for use in linear_uses(gradient):
            grads = use.output_grads.flatten(0, 1)
            self._add(self._grads, use.name, grads)
            if self._batch.draw > 0:
                continue  # inputs do not depend on the labels
            owner = self._keys.setdefault(use.input_key, use.name) if use.input_key else use.name
            if self._owners.setdefault(use.name, owner) != owner:
                raise GradsiftError(
                    f"layers must share their inputs in every batch or in none. {use.name!r} read "
                    f"the same tensor as {self._owners[use.name]!r} before, and not now. Fit it "
                    "by itself with `layers=[...]`."
                )
            if owner != use.name:
                continue
            inputs, mask = use.inputs, self._batch.token_mask
            tokens = torch.tensor(inputs.shape[0] * inputs.shape[1], device=inputs.device)
            if mask is not None and mask.shape == inputs.shape[:2]:
                inputs = inputs * mask[..., None].to(inputs.dtype)
                tokens = mask.sum()
            self._add(self._inputs, use.name, inputs.flatten(0, 1))
            self._tokens[use.name] = self._tokens.get(use.name, 0) + tokens

    def end(self, batch: Batch) -> None:
        """Count the examples once, however often labels were drawn."""
        self._examples += len(batch) if batch.draw == 0 else 0

    @property
    def num_examples(self) -> int:
        """Number of examples seen."""
        return self._examples

    @property
    def names(self) -> list[str]:
        """Names of the linear maps."""
        return list(self._grads)

    @property
    def owners(self) -> dict[str, str]:
        """For each linear map, the one whose covariance of inputs it shares."""
        return dict(self._owners)

    def input_sizes(self, name: str) -> list[int]:
        """Return the widths of the diagonal blocks of a linear map's inputs."""
        return [len(block) for block in self._inputs[self._owners[name]]]

    def grad_sizes(self, name: str) -> list[int]:
        """Return the widths of the diagonal blocks of a linear map's output gradients."""
        return [len(block) for block in self._grads[name]]

    def input_blocks(self, name: str) -> list[Tensor]:
        """Return the mean of ``a a^T`` over tokens, by diagonal block."""
        owner = self._owners[name]
        return [mirror(block) / self._tokens[owner] for block in self._inputs[owner]]

    def grad_blocks(self, name: str) -> list[Tensor]:
        """Return the mean of ``sum_t g g^T`` over examples, by diagonal block."""
        return [mirror(block) / self._examples for block in self._grads[name]]

    def state(self) -> dict[str, Tensor]:
        """Return all sums and counts."""
        state: dict[str, Tensor] = {EXAMPLES: torch.tensor(self._examples)}
        for kind, sums in ((INPUT, self._inputs), (GRAD, self._grads)):
            for name, blocks in sums.items():
                for number, block in enumerate(blocks):
                    state[f"{kind}|{name}|{number}"] = block
        for name, tokens in self._tokens.items():
            state[f"{TOKENS}|{name}|0"] = torch.as_tensor(tokens)
        for name, owner in self._owners.items():
            state[f"{OWNER}|{name}|{owner}"] = torch.tensor(0)
        for position, name in enumerate(self._grads):
            state[f"order|{name}|0"] = torch.tensor(position)
        return state

    def is_sum(self, key: str) -> bool:
        """Tell whether an entry of the state is a sum, and not the place of a name."""
        return key.split("|")[0] in (INPUT, GRAD, TOKENS, EXAMPLES)

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a state."""
        self._inputs, self._grads, self._tokens, self._owners = {}, {}, {}, {}
        self._examples = 0
        self.merge(state)

    def merge(self, state: Mapping[str, Tensor]) -> None:
        """Add the sums of another part of the data."""
        self._examples += int(state[EXAMPLES])
        entries = [(*key.split("|"), value) for key, value in state.items() if "|" in key]
        ranked = sorted((int(v), name) for kind, name, _, v in entries if kind == "order")
        names = [name for _, name in ranked]
        for kind, sums in ((INPUT, self._inputs), (GRAD, self._grads)):
            for name in names:
                found = {int(b): v for k, other, b, v in entries if k == kind and other == name}
                if not found:
                    continue
                blocks = [found[number].clone() for number in sorted(found)]
                if name in sums:
                    blocks = [a + b for a, b in zip(sums[name], blocks, strict=True)]
                sums[name] = blocks
        for kind, name, third, value in entries:
            if kind == TOKENS:
                self._tokens[name] = self._tokens.get(name, 0) + value
            elif kind == OWNER:
                self._owners.setdefault(name, third)

    def _add(self, sums: dict[str, list[Tensor]], name: str, rows: Tensor) -> None:
        """Add Gram matrices of the rows, one for each diagonal block."""
        sizes = block_sizes(rows.shape[1], self.max_factor)
        if name not in sums:
            dtype = torch.promote_types(rows.dtype, torch.float32)
            sums[name] = [rows.new_zeros(size, size, dtype=dtype) for size in sizes]
        if sums[name][0].device != rows.device:  # a state that was loaded
            sums[name] = [block.to(rows.device) for block in sums[name]]
        rows = rows.to(sums[name][0].dtype)
        for piece, out in zip(rows.split(sizes, 1), sums[name], strict=True):
            add_gram(piece, out)
