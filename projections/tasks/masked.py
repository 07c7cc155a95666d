"""Masked language models.

Letters: ``n`` examples, ``t`` tokens, ``v`` vocabulary.

Which tokens of a text are hidden is a function of the seed and of the row (its ``id``, or
its tokens where it has none), and of nothing else: not of the batch or the order.

References:
    Devlin et al., BERT (NAACL 2019), arXiv:1810.04805, Sec. 3.1.
"""

from collections.abc import Mapping, Sequence
from inspect import signature
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor, nn

from projections.checks import check_between
from projections.errors import DataError
from projections.philox import uniforms
from projections.tasks.categorical import IGNORED
from projections.tasks.tokens import TokenTask, pad_right, read_tokens

MASKED, REPLACED = 0.8, 0.9  # of the chosen tokens, up to here masked, up to here replaced


class MaskedLM(TokenTask):
    """Negative log-likelihood of the hidden tokens of a text, summed over them.

    Of the tokens that are not special, a share is chosen; 80 % of these become the mask,
    10 % a random token and 10 % stay. Rows that have ``labels`` are taken as they are,
    with -100 at the positions that are not predicted.

    Args:
        model: A model such as ``AutoModelForMaskedLM``.
        tokenizer: Its tokenizer; without it the last four arguments must be given.
        seed: Seed of what is hidden.
        probability: Share of tokens that are chosen. Of every text it is at least one.
        text_column: Name of the column with the text.
        max_length: Number of tokens after which a text is cut.
        mask_token: Id of the mask.
        vocabulary: Number of tokens from which random ones are drawn.
        special_tokens: Ids that are never chosen.
        pad_token: Id that fills shorter texts.

    Raises:
        DataError: A text has no token that could be hidden.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any = None,
        *,
        seed: int,
        probability: float = 0.15,
        text_column: str = "text",
        max_length: int = 512,
        mask_token: int | None = None,
        vocabulary: int | None = None,
        special_tokens: Sequence[int] = (),
        pad_token: int = 0,
    ) -> None:
        """Keep the arguments."""
        super().__init__(model)
        check_between("probability", probability, 0, 1)
        if tokenizer is not None:
            mask_token, vocabulary = tokenizer.mask_token_id, len(tokenizer)
            special_tokens, pad_token = tokenizer.all_special_ids, tokenizer.pad_token_id
        if mask_token is None or vocabulary is None:
            raise ValueError(
                "`tokenizer` must be given and have a mask token, or `mask_token` and `vocabulary` "
                f"be given. Got {mask_token} and {vocabulary}."
            )
        self.tokenizer, self.text_column, self.max_length = tokenizer, text_column, max_length
        self.seed, self.probability = seed, probability
        self.mask_token, self.vocabulary = mask_token, vocabulary
        self.special_tokens, self.pad_token = frozenset(special_tokens), pad_token
        self._takes = frozenset(signature(model.forward).parameters)

    def encode_row(self, row: Mapping[str, Any] | str) -> dict[str, list[int]]:
        """Tokenise one row and hide some of it."""
        if isinstance(row, str):
            row = {self.text_column: row}
        ids = read_tokens(
            row, self.tokenizer, text_column=self.text_column, max_length=self.max_length
        )
        if "labels" in row:
            labels = [int(token) for token in row["labels"]][: len(ids)]
            if len(labels) < len(ids):
                raise DataError(
                    f"`labels` must be as long as `input_ids`. Got {len(labels)} and {len(ids)}."
                )
            return {"input_ids": ids, "labels": labels}
        return self.hide(ids, str(row.get("id", ids)))

    def hide(self, ids: Sequence[int], name: str) -> dict[str, list[int]]:
        """Return a text with some tokens hidden, and these as its labels.

        Args:
            ids: The tokens.
            name: What is hidden depends on, beside the seed.
        """
        draws = uniforms(self.seed, f"mask/{name}", 3 * len(ids)).reshape(3, len(ids))
        open_places = [place for place, token in enumerate(ids) if token not in self.special_tokens]
        if not open_places:
            raise DataError(
                f"a text must have a token that is not special. Got {list(ids)!r:.200}. Remove "
                "such rows first."
            )
        chosen = {place for place in open_places if draws[0, place] < self.probability}
        chosen = chosen or {min(open_places, key=lambda place: draws[0, place])}
        shown, labels = list(ids), [IGNORED] * len(ids)
        for place in chosen:
            labels[place] = ids[place]
            if draws[1, place] < MASKED:
                shown[place] = self.mask_token
            elif draws[1, place] < REPLACED:
                shown[place] = int(draws[2, place] * self.vocabulary)
        return {"input_ids": shown, "labels": labels}

    def collate(self, examples: Sequence[Any]) -> dict[str, Tensor]:
        """Pad on the right, with the token that the model knows as padding."""
        ids = [example["input_ids"] for example in examples]
        return {**super().collate(examples), "input_ids": pad_right(ids, self.pad_token)}

    def logits_and_labels(self, batch: Any) -> tuple[Float[Tensor, "n t v"], Int[Tensor, "n t"]]:
        """Run the model on what is shown."""
        inputs = {"input_ids": batch["input_ids"]}
        if "attention_mask" in self._takes:
            inputs["attention_mask"] = batch["attention_mask"]
        output = self.model(**inputs)
        return output if isinstance(output, Tensor) else output.logits, batch["labels"]
