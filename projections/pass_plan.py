"""A plan of a pass: the bytes it will hold at most, from shapes, before it runs.

Letters: ``n`` examples of a batch, ``t`` positions, ``d`` parameters, ``k`` projected
dimensions, ``s`` rows of a shard.

One forward of one example, the longest, lists the tensors that backward will need; they
grow with the examples of a batch, and everything else is counted from shapes. Not counted:
what was there before the pass, the model and Python among it, and what the allocator keeps.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from projections.base import Projector
from projections.capture import Capture
from projections.data import as_rows, shard_ranges
from projections.factors import PIECE_ENTRIES, PIECE_EXAMPLES
from projections.layout import Layout, find_components
from projections.pass_settings import PassSettings, pack
from projections.sjlt import CACHED_ENTRIES, SJLT
from projections.task import Task, to_device

NUM_SAMPLED_ROWS = 256  # whose lengths stand for all, the longest among them
FLOAT = 4  # bytes of a number
COPIES_OF_LARGEST = 5  # gradients of the largest tensor, the logits, on their way back; measured


@dataclass(frozen=True)
class PassPlan:
    """What a pass will hold.

    Args:
        activations: Tensors kept from forward for backward, of the largest batch.
        working: Gradients on their way back through the largest tensors, and the piece of a
            per-example gradient that is formed at a time.
        maps: What projectors keep between batches.
        rows: Columns of a shard, until it is written, and its examples' copies in float32.
    """

    activations: int
    working: int
    maps: int
    rows: int

    @property
    def total(self) -> int:
        """Bytes at most, over what was held before."""
        return self.activations + self.working + self.maps + self.rows


def plan_pass(
    task: Task, data: Any, projector: Projector, *, settings: PassSettings | None = None
) -> PassPlan:
    """Plan the memory of `index_gradients`.

    Args:
        task: The model and its loss.
        data: The data, of which some rows are read.
        projector: The map.
        settings: How the data will be read.

    Returns:
        Bytes of each part.

    Example:
        >>> from projections import Classification
        >>> task = Classification(torch.nn.Linear(1000, 10))
        >>> data = [(torch.ones(1000), 0)] * 64
        >>> plan = plan_pass(task, data, SJLT(num_dims=256, seed=0))
        >>> plan.maps, plan.rows
        (40040, 131584)
    """
    rows, settings = as_rows(data), settings or PassSettings()
    layout = find_components(task.model, settings.layers, kinds=settings.kinds)
    spread = torch.linspace(0, len(rows) - 1, min(len(rows), NUM_SAMPLED_ROWS)).long().tolist()
    examples = task.encode(rows.fetch(sorted(set(spread))))
    sizes = [task.size(example) for example in examples]
    longest = max(range(len(sizes)), key=sizes.__getitem__)
    shard = max(map(len, shard_ranges(len(rows), settings.shard_size)))
    batch = _examples_in_largest_batch(sizes, shard, settings)
    saved = saved_bytes(task, examples[longest], layout)
    parameters = [p.size for c in layout.components.values() for p in c.parameters]
    piece = max(PIECE_ENTRIES, PIECE_EXAMPLES)
    formed = min(piece, batch * max(parameters)) * FLOAT
    return PassPlan(
        activations=sum(saved) * batch,
        working=COPIES_OF_LARGEST * max(saved, default=0) * batch + formed,
        maps=_map_bytes(projector, layout, parameters),
        rows=2 * shard * (projector.num_dims + 1) * FLOAT,
    )


def saved_bytes(task: Task, example: Any, layout: Layout) -> list[int]:
    """Return the bytes of each tensor that one example's backward needs, parameters aside."""
    known = {value.untyped_storage().data_ptr() for value in task.model.state_dict().values()}
    found: dict[int, int] = {}
    kept: list[Tensor] = []  # so that no two share an address

    def pack_tensor(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            found[storage.data_ptr()] = storage.nbytes()
            kept.append(tensor)
        return tensor

    batch = to_device(task.collate([example]), task.device)
    capture = Capture(task.model, layout)

    def keep_inputs(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        # What goes into a layer is kept for its gradient, though its own backward needs it not.
        for value in inputs:
            if isinstance(value, Tensor):
                pack_tensor(value)

    handles = [module.register_forward_hook(keep_inputs) for module in layout.uses]
    try:
        with capture.hooks(), torch.autograd.graph.saved_tensors_hooks(pack_tensor, _unpack):
            capture.forward(lambda: task.losses(batch), 1)
    finally:
        for handle in handles:
            handle.remove()
    return list(found.values())


def _unpack(tensor: Tensor) -> Tensor:
    """Return what was kept as it is."""
    return tensor


def _examples_in_largest_batch(sizes: Sequence[int], shard: int, settings: PassSettings) -> int:
    """Return how many examples as long as the longest fit the batch that holds it."""
    largest = max(sizes)
    positions = max(
        len(group) * max(sizes[p] for p in group)
        for group in pack(
            list(sizes) * -(-min(shard, 4 * settings.batch_size) // len(sizes)), settings
        )
    )
    return max(1, -(-positions // max(1, largest)))


def _map_bytes(projector: Projector, layout: Layout, parameters: Sequence[int]) -> int:
    """Return what a projector keeps between batches; tables draw what they need anew."""
    if not isinstance(projector, SJLT):
        return 0
    mapped = [p.size for c in layout.components.values() if c.kind != "table" for p in c.parameters]
    return FLOAT * min(sum(mapped) * projector.num_signs, CACHED_ENTRIES)
