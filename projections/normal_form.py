"""Parameters that a model keeps transposed, and the layout that gradients have here.

A weight is ``o i`` and a table has a row for each id. The `Conv1D` of Hugging Face keeps
``i o``, and PEFT's LoRA of an embedding keeps its first factor with a column for each id.
"""

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D


def is_kept_transposed(model: nn.Module, name: str) -> bool:
    """Tell whether the matrix of this name is kept with its axes exchanged.

    Args:
        model: The model.
        name: Name of one of its parameters.
    """
    owner_name, _, attribute = name.rpartition(".")
    owner = model.get_submodule(owner_name)
    if isinstance(owner, Conv1D):
        return attribute == "weight"
    return isinstance(owner, nn.ParameterDict) and owner_name.endswith("lora_embedding_A")


def exchange_if_transposed(model: nn.Module, name: str, values: Tensor) -> Tensor:
    """Return values of a parameter from its own layout to that of gradients, or back.

    Args:
        model: The model.
        name: Name of the parameter.
        values: One value an entry; more axes may stand in front.
    """
    return values.mT if is_kept_transposed(model, name) else values
