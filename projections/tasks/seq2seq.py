"""Encoder-decoder language models, such as T5 and BART.

Letters: ``n`` examples, ``t`` tokens of the target, ``v`` vocabulary.
"""

from collections.abc import Mapping
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor, nn

from projections.errors import DataError
from projections.tasks.tokens import TokenTask, read_tokens


class Seq2SeqLM(TokenTask):
    """Negative log-likelihood of a target text given a source text, summed over its tokens.

    Rows have two text columns, or ``input_ids`` and ``labels``.

    Args:
        model: A model such as ``AutoModelForSeq2SeqLM``.
        tokenizer: Its tokenizer; not needed when rows have ``input_ids`` and ``labels``.
        source_column: Name of the column with the source.
        target_column: Name of the column with the target.
        max_length: Number of tokens after which each text is cut.

    Raises:
        DataError: A row lacks a column, or its source or target is empty.
        TypeError: The model cannot make the decoder's inputs.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any = None,
        *,
        source_column: str = "source",
        target_column: str = "target",
        max_length: int = 512,
    ) -> None:
        """Keep the arguments."""
        super().__init__(model)
        if not hasattr(model, "prepare_decoder_input_ids_from_labels"):
            raise TypeError(
                "`model` must be an encoder-decoder model with the method "
                f"`prepare_decoder_input_ids_from_labels`. Got {type(model).__name__}."
            )
        self.tokenizer = tokenizer
        self.source_column = source_column
        self.target_column = target_column
        self.max_length = max_length

    def encode_row(self, row: Mapping[str, Any]) -> dict[str, list[int]]:
        """Tokenise source and target of one row."""
        length = self.max_length
        source = read_tokens(row, self.tokenizer, text_column=self.source_column, max_length=length)
        if "labels" in row:
            target = [int(token) for token in row["labels"]][:length]
        elif self.target_column in row and self.tokenizer is not None:
            text = row[self.target_column]
            target = self.tokenizer(text_target=text, truncation=True, max_length=length)
            target = target["input_ids"]
        else:
            target = read_tokens(
                row, None, text_column=self.target_column, ids_column="labels", max_length=length
            )
        if not source or not target:
            raise DataError(
                f"source and target must have at least one token. Got {len(source)} and "
                f"{len(target)} in {row!r:.200}. Remove such rows first."
            )
        return {"input_ids": source, "labels": target}

    def size(self, example: Any) -> int:
        """Return the number of tokens of the longer text."""
        return max(len(example["input_ids"]), len(example["labels"]))

    def token_mask(self, batch: Any) -> Tensor | None:
        """Return None: the layers of the encoder and of the decoder have other positions."""
        return None

    def logits_and_labels(self, batch: Any) -> tuple[Float[Tensor, "n t v"], Int[Tensor, "n t"]]:
        """Run the model; what the decoder reads are the labels, one position later."""
        labels = batch["labels"]
        decoder_ids = self.model.prepare_decoder_input_ids_from_labels(labels=labels)  # pyright: ignore
        output = self.model(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            decoder_input_ids=decoder_ids,
            use_cache=False,
        )
        return output.logits, labels
