"""A model of Hugging Face spread over the ranks of a launcher, block by block.

`fully_shard` of torch does all the work: each rank keeps a slice of every parameter, and a
block is whole on a rank only while it runs.
"""

from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from projections import Ranks, UnsupportedLayerError


def spread(model: nn.Module, ranks: Ranks, device: str) -> None:
    """Spread a model over all ranks, and move it to their devices.

    Args:
        model: A model of `transformers`, which says what its blocks are.
        ranks: The ranks; with one, the model is left as it is.
        device: Type of the devices, such as ``"cuda"``.

    Raises:
        UnsupportedLayerError: The model does not say what its blocks are.
    """
    if ranks.size == 1:
        return
    names = set(getattr(model, "_no_split_modules", None) or ())
    blocks = [module for module in model.modules() if type(module).__name__ in names]
    if not blocks:
        raise UnsupportedLayerError(
            f"a model that is fully sharded must say what its blocks are, in `_no_split_modules`. "
            f"{type(model).__name__} does not. Call `fully_shard` on its blocks in a script."
        )
    mesh = init_device_mesh(device, (ranks.size,))
    for block in blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
