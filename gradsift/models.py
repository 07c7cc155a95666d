"""Models and their tasks from a folder or a name, as the commands load them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import transformers

from gradsift.spreading import spread
from projections import (
    CausalLM,
    DataError,
    SequenceClassification,
    Task,
    check_one_of,
    current_ranks,
)

TASKS = ("causal-lm", "sequence-classification")
DTYPES = ("float32", "bfloat16", "float16")
TaskName = Literal["causal-lm", "sequence-classification"]
DtypeName = Literal["float32", "bfloat16", "float16"]


@dataclass(frozen=True, kw_only=True)
class ModelSource:
    """Where a model comes from and how its rows are read."""

    model: str
    """A folder with a saved Hugging Face model and tokenizer, or a name on the hub."""

    task: TaskName = "causal-lm"
    """What the loss is: of all tokens of a text, or of its label."""

    text_column: str = "text"
    """The column with the text."""

    max_length: int = 512
    """Tokens after which a text is cut."""

    device: str = "auto"
    """Where to compute; "auto" takes a GPU if there is one."""

    dtype: DtypeName = "float32"
    """Precision of the model."""

    fully_sharded: bool = False
    """Spread the model over the ranks of a launcher, for one that does not fit one device."""


def load_task(source: ModelSource) -> Task:
    """Return the task of a saved model, in evaluation mode.

    Args:
        source: Where it is.

    Raises:
        DataError: There is no such model, or its tokenizer does not fit the task.
    """
    check_one_of("task", source.task, TASKS)
    check_one_of("dtype", source.dtype, DTYPES)
    causal = source.task == "causal-lm"
    model, tokenizer = _load(source)
    device, ranks = pick_device(source.device), current_ranks()
    if source.fully_sharded and ranks.size > 1:
        spread(model, ranks, device.type)
    else:
        model.to(device)
    model.eval()
    if causal:
        return CausalLM(
            model, tokenizer, text_column=source.text_column, max_length=source.max_length
        )
    if tokenizer.pad_token is None:
        raise DataError(
            f"the tokenizer of {source.model!r} must have a padding token, since texts of "
            "different length share a batch. Set `tokenizer.pad_token` and save it with the model."
        )
    return SequenceClassification(
        model, tokenizer, text_column=source.text_column, max_length=source.max_length
    )


def _load(source: ModelSource) -> tuple[Any, Any]:
    """Return model and tokenizer as Hugging Face loads them."""
    loader: Any = (
        transformers.AutoModelForCausalLM
        if source.task == "causal-lm"
        else transformers.AutoModelForSequenceClassification
    )
    try:
        model = loader.from_pretrained(source.model, dtype=getattr(torch, source.dtype))
        return model, transformers.AutoTokenizer.from_pretrained(source.model)
    except (OSError, ValueError) as error:
        what = "a folder" if Path(source.model).exists() else "a folder that exists, or a name,"
        raise DataError(
            f"`model` must be {what} with a Hugging Face model and its tokenizer. "
            f"{source.model!r} cannot be loaded: {error}"
        ) from error


def pick_device(name: str) -> torch.device:
    """Return the device of this name; "auto" is the first GPU, or the CPU."""
    if name != "auto":
        return torch.device(name)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
