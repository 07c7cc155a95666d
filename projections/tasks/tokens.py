"""What tasks over token lists share: reading, padding, and losses summed over tokens.

Letters: ``n`` examples, ``t`` tokens, ``v`` vocabulary.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from projections.errors import DataError
from projections.labels import Labels
from projections.task import Task
from projections.tasks.categorical import IGNORED, cross_entropies, label_losses
from projections.tasks.classification import missing_column


class TokenTask(Task):
    """Base of tasks whose examples are ``input_ids`` with one label a position.

    Subclasses say how rows become examples and what logits and labels are.
    """

    def encode(self, rows: Sequence[Any]) -> list[dict[str, list[int]]]:
        """Tokenise rows; those that have ``input_ids`` are taken as they are."""
        return [self.encode_row(row) for row in rows]

    def encode_row(self, row: Any) -> dict[str, list[int]]:
        """Turn one row into an example."""
        raise TypeError(f"{type(self).__name__} must define `encode_row(row)`. It does not.")

    def logits_and_labels(self, batch: Any) -> tuple[Float[Tensor, "n t v"], Int[Tensor, "n t"]]:
        """Run the model; -100 marks positions that do not count."""
        raise TypeError(f"{type(self).__name__} must define `logits_and_labels`. It does not.")

    def size(self, example: Any) -> int:
        """Return the number of tokens."""
        return len(example["input_ids"])

    def collate(self, examples: Sequence[Any]) -> dict[str, Tensor]:
        """Pad on the right."""
        ids = [example["input_ids"] for example in examples]
        return {
            "input_ids": pad_right(ids, 0),
            "attention_mask": pad_right([[1] * len(row) for row in ids], 0),
            "labels": pad_right([example["labels"] for example in examples], IGNORED),
        }

    def token_mask(self, batch: Any) -> Tensor | None:
        """Return the attention mask."""
        return batch["attention_mask"]

    def losses(self, batch: Any) -> Float[Tensor, " n"]:
        """Return the negative log-likelihood of each example's labels."""
        return cross_entropies(*self.logits_and_labels(batch))

    def statistics(self, batch: Any) -> dict[str, Float[Tensor, " n"]]:
        """Return the loss and the number of tokens that it sums."""
        logits, labels = self.logits_and_labels(batch)
        losses = cross_entropies(logits, labels)
        return {"loss": losses, "num_tokens": (labels != IGNORED).sum(1).to(losses.dtype)}

    def fisher_losses(
        self, batch: Any, labels: Labels, ids: np.ndarray
    ) -> list[Float[Tensor, " n"]]:
        """Return losses under drawn tokens; padding and ignored positions stay ignored."""
        logits, own = self.logits_and_labels(batch)
        return label_losses(logits, own, labels, ids)


def pad_right(lists: Sequence[Sequence[int]], fill: int) -> Int[Tensor, "n t"]:
    """Return lists of numbers as the rows of one tensor.

    Example:
        >>> pad_right([[1, 2], [3]], -100)
        tensor([[   1,    2],
                [   3, -100]])
    """
    rows = torch.full((len(lists), max(map(len, lists), default=0)), fill)
    for row, values in zip(rows, lists, strict=True):
        row[: len(values)] = torch.as_tensor(values)
    return rows


def read_tokens(
    row: Mapping[str, Any],
    tokenizer: Any,
    *,
    text_column: str,
    ids_column: str = "input_ids",
    max_length: int,
    **how: Any,
) -> list[int]:
    """Return the tokens of a row: its list of ids, or its text tokenised.

    Args:
        row: The row.
        tokenizer: The tokenizer, needed where there is text.
        text_column: Name of the column with the text.
        ids_column: Name of the column with the ids.
        max_length: Number of tokens after which is cut.
        how: More arguments of the tokenizer.

    Raises:
        DataError: The row has neither column, or no text where text should be.
        TypeError: There is text and no tokenizer.
    """
    if ids_column in row:
        return [int(token) for token in row[ids_column]][:max_length]
    if text_column not in row:
        raise DataError(missing_column(text_column, row))
    if tokenizer is None:
        raise TypeError("`tokenizer` must be given when rows hold text. Got None.")
    text = row[text_column]
    if not isinstance(text, str):
        raise DataError(f"column {text_column!r} must hold text. Got {text!r} in {row!r:.200}.")
    return tokenizer(text, truncation=True, max_length=max_length, **how)["input_ids"]
