"""Causal language models.

Letters: ``n`` examples, ``t`` tokens, ``v`` vocabulary.
"""

from collections.abc import Mapping, Sequence
from inspect import signature
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from projections.errors import DataError
from projections.labels import Labels
from projections.task import Task
from projections.tasks.categorical import IGNORED, cross_entropies, label_losses
from projections.tasks.classification import missing_column


class CausalLM(Task):
    """Negative log-likelihood of a text, summed over its tokens.

    Rows have a text column, or ``input_ids`` (and ``labels`` where only a part of the text
    counts: -100 marks the rest). Position ids are passed where the model takes them, so
    that padding on the left gives the same loss.

    Args:
        model: A model such as ``AutoModelForCausalLM``.
        tokenizer: Its tokenizer; not needed when rows have ``input_ids``.
        text_column: Name of the column with the text.
        max_length: Number of tokens after which a text is cut.

    Raises:
        DataError: A row without text, or with fewer than two tokens, has nothing to predict.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any = None,
        *,
        text_column: str = "text",
        max_length: int = 512,
    ) -> None:
        """Keep the arguments."""
        super().__init__(model)
        self.tokenizer = tokenizer
        self.text_column = text_column
        self.max_length = max_length
        self._takes = frozenset(signature(model.forward).parameters)

    def encode(self, rows: Sequence[Any]) -> list[dict[str, list[int]]]:
        """Tokenise rows; those that have ``input_ids`` are taken as they are."""
        return [self._encode_row(row) for row in rows]

    def size(self, example: Any) -> int:
        """Return the number of tokens."""
        return len(example["input_ids"])

    def collate(self, examples: Sequence[Any]) -> dict[str, Tensor]:
        """Pad on the right."""
        length = max(map(self.size, examples))
        ids = torch.zeros(len(examples), length, dtype=torch.int64)
        labels = torch.full_like(ids, IGNORED)
        mask = torch.zeros_like(ids)
        for row, example in enumerate(examples):
            size = self.size(example)
            ids[row, :size] = torch.as_tensor(example["input_ids"])
            labels[row, :size] = torch.as_tensor(example["labels"])
            mask[row, :size] = 1
        return {"input_ids": ids, "attention_mask": mask, "labels": labels}

    def token_mask(self, batch: Any) -> Tensor | None:
        """Return the attention mask."""
        return batch["attention_mask"]

    def losses(self, batch: Any) -> Float[Tensor, " n"]:
        """Return the negative log-likelihood of each text."""
        return cross_entropies(*self.logits_and_labels(batch))

    def statistics(self, batch: Any) -> dict[str, Float[Tensor, " n"]]:
        """Return the loss and the number of tokens that it sums."""
        logits, labels = self.logits_and_labels(batch)
        counted = (labels != IGNORED).sum(1)
        return {"loss": cross_entropies(logits, labels), "num_tokens": counted.to(logits.dtype)}

    def fisher_losses(
        self, batch: Any, labels: Labels, ids: np.ndarray
    ) -> list[Float[Tensor, " n"]]:
        """Return losses under drawn tokens; padding and ignored positions stay ignored."""
        logits, own = self.logits_and_labels(batch)
        return label_losses(logits, own, labels, ids)

    def logits_and_labels(self, batch: Any) -> tuple[Float[Tensor, "n t v"], Int[Tensor, "n t"]]:
        """Run the model; logits at one position predict the label of the next."""
        mask = batch["attention_mask"]
        inputs = {"input_ids": batch["input_ids"]}
        if "attention_mask" in self._takes:
            inputs["attention_mask"] = mask
        if "position_ids" in self._takes:
            inputs["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)
        if "use_cache" in self._takes:
            inputs["use_cache"] = False
        output = self.model(**inputs)
        logits = output if isinstance(output, Tensor) else output.logits
        # Padding predicts nothing and is not predicted, whichever side it is on.
        labels = batch["labels"].masked_fill(mask == 0, IGNORED)
        labels[:, 1:].masked_fill_(mask[:, :-1] == 0, IGNORED)
        # The labels move and not the logits, of which a slice would be a copy, and a zero-padded
        # one on the way back. The last position predicts nothing.
        return logits, functional.pad(labels[:, 1:], (0, 1), value=IGNORED)

    def _encode_row(self, row: Mapping[str, Any] | str) -> dict[str, list[int]]:
        """Tokenise one row."""
        if isinstance(row, str):
            row = {self.text_column: row}
        if "input_ids" in row:
            ids = [int(token) for token in row["input_ids"]][: self.max_length]
        elif self.text_column not in row:
            raise DataError(missing_column(self.text_column, row))
        elif self.tokenizer is None:
            raise TypeError("`tokenizer` must be given when rows hold text. Got None.")
        else:
            text = row[self.text_column]
            if not isinstance(text, str):
                raise DataError(
                    f"column {self.text_column!r} must hold text. Got {text!r} in {row!r:.200}."
                )
            ids = self.tokenizer(text, truncation=True, max_length=self.max_length)["input_ids"]
        if len(ids) < 2:
            raise DataError(
                "a text must have at least 2 tokens, since each token is predicted from those "
                f"before it. Got {len(ids)} in {row!r:.200}. Remove such rows first."
            )
        labels = [int(token) for token in row["labels"]] if "labels" in row else ids
        if len(labels) < len(ids):
            raise DataError(
                f"`labels` must be as long as `input_ids`. Got {len(labels)} and {len(ids)}."
            )
        return {"input_ids": ids, "labels": labels[: len(ids)]}
