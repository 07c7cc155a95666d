"""Classification of single inputs and of texts.

Letters: ``n`` examples, ``c`` classes.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from projections.errors import DataError
from projections.labels import Labels
from projections.task import Task
from projections.tasks.categorical import (
    correctness,
    cross_entropies,
    error_norms,
    label_losses,
    margins,
)

LABEL_COLUMNS = ("label", "labels", "target", "y")


class Classification(Task):
    """Cross-entropy of one label an example.

    A batch is ``(inputs, labels)``, or a mapping with a label column whose other columns go
    to the model by name (`SequenceClassification` passes only what models take).

    Args:
        model: Maps inputs to logits ``n c``, or to an object with ``.logits``.

    Example:
        >>> task = Classification(nn.Linear(4, 3))
        >>> sorted(task.statistics((torch.zeros(2, 4), torch.tensor([0, 2]))))
        ['correct', 'el2n', 'loss', 'margin']
    """

    def losses(self, batch: Any) -> Float[Tensor, " n"]:
        """Return the cross-entropy of each example."""
        return cross_entropies(*self.logits_and_labels(batch))

    def statistics(self, batch: Any) -> dict[str, Float[Tensor, " n"]]:
        """Return loss, EL2N, margin and whether the label is the likeliest, from one forward."""
        logits, labels = self.logits_and_labels(batch)
        detached = logits.detach()
        return {
            "loss": cross_entropies(logits, labels),
            "el2n": error_norms(detached, labels),
            "margin": margins(detached, labels),
            "correct": correctness(detached, labels),
        }

    def fisher_losses(
        self, batch: Any, labels: Labels, ids: np.ndarray
    ) -> list[Float[Tensor, " n"]]:
        """Return losses under drawn labels, or under every label weighted by its probability."""
        logits, own = self.logits_and_labels(batch)
        return label_losses(logits, own, labels, ids)

    @property
    def num_labels(self) -> int | None:
        """Number of classes, where the model's configuration or last layer says it."""
        config = getattr(self.model, "config", None)
        if config is not None:
            return getattr(config, "num_labels", None)
        linear = [m for m in self.model.modules() if isinstance(m, nn.Linear)]
        return linear[-1].out_features if linear else None

    def logits_and_labels(self, batch: Any) -> tuple[Float[Tensor, "n c"], Int[Tensor, " n"]]:
        """Run the model and return its logits beside the labels."""
        if isinstance(batch, Mapping):
            column = label_column(batch)
            inputs = {key: value for key, value in batch.items() if key not in (column, "id")}
            return _logits(self.model(**inputs)), batch[column]
        inputs, labels = batch
        return _logits(self.model(inputs)), labels


class SequenceClassification(Classification):
    """Cross-entropy of one label a text, with a Hugging Face model and tokenizer.

    Rows have a text column and an integer label column. Texts are padded on the right.

    Args:
        model: A model such as ``AutoModelForSequenceClassification``.
        tokenizer: Its tokenizer, with a padding token.
        text_column: Name of the column with the text.
        max_length: Number of tokens after which a text is cut.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        *,
        text_column: str = "text",
        max_length: int = 512,
    ) -> None:
        """Keep the arguments."""
        super().__init__(model)
        self.tokenizer = tokenizer
        self.text_column = text_column
        self.max_length = max_length

    def encode(self, rows: Sequence[Any]) -> list[Any]:
        """Tokenise the rows; a row that has ``input_ids`` is taken as it is."""
        return [self._encode_row(row) for row in rows]

    def size(self, example: Any) -> int:
        """Return the number of tokens."""
        return len(example["input_ids"])

    def collate(self, examples: Sequence[Any]) -> dict[str, Tensor]:
        """Pad the token lists and stack the labels."""
        tokens = [{"input_ids": list(example["input_ids"])} for example in examples]
        batch = self.tokenizer.pad(tokens, padding=True, return_tensors="pt")
        return {
            "input_ids": batch["input_ids"],
            "attention_mask": batch["attention_mask"],
            "label": torch.tensor([int(example["label"]) for example in examples]),
        }

    def token_mask(self, batch: Any) -> Tensor | None:
        """Return the attention mask."""
        return batch["attention_mask"]

    def _encode_row(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Tokenise one row."""
        label = row[label_column(row)]
        if "input_ids" in row:
            return {"input_ids": row["input_ids"], "label": label}
        if self.text_column not in row:
            raise DataError(missing_column(self.text_column, row))
        text = row[self.text_column]
        tokens = self.tokenizer(text, truncation=True, max_length=self.max_length)
        return {"input_ids": tokens["input_ids"], "label": label}


def label_column(row: Mapping[str, Any]) -> str:
    """Return the name of the label column of a row or batch."""
    for name in LABEL_COLUMNS:
        if name in row:
            return name
    raise DataError(
        f"rows must have a label in one of the columns {', '.join(LABEL_COLUMNS)}. "
        f"Got the columns {', '.join(map(str, row))}."
    )


def missing_column(name: str, row: Mapping[str, Any]) -> str:
    """Say that a column is missing, and which there are."""
    return f"rows must have the column {name!r}. Got the columns {', '.join(map(str, row))}."


def _logits(output: Any) -> Tensor:
    """Return the logits of a model's output."""
    return output if isinstance(output, Tensor) else output.logits
