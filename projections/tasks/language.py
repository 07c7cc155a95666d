"""Causal language models.

Letters: ``n`` examples, ``t`` tokens, ``v`` vocabulary.
"""

from collections.abc import Mapping
from inspect import signature
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from projections.errors import DataError
from projections.tasks.categorical import IGNORED
from projections.tasks.tokens import TokenTask, read_tokens


class CausalLM(TokenTask):
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

    def logits_and_labels(self, batch: Any) -> tuple[Float[Tensor, "n t v"], Int[Tensor, "n t"]]:
        """Run the model; logits at one position predict the label of the next."""
        ids = batch["input_ids"]
        mask = batch["attention_mask"] if "attention_mask" in batch else torch.ones_like(ids)
        inputs = {"input_ids": ids}
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

    def encode_row(self, row: Mapping[str, Any] | str) -> dict[str, list[int]]:
        """Tokenise one row."""
        if isinstance(row, str):
            row = {self.text_column: row}
        ids = read_tokens(
            row, self.tokenizer, text_column=self.text_column, max_length=self.max_length
        )
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
