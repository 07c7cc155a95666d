"""Tasks over token lists: what is hidden, what is summed, and what is refused."""

from typing import Any

import cases
import layer_cases
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from projections import DataError, Labels, MaskedLM, Seq2SeqLM

MASK, SPECIAL = 4, (1, 2)


def masked(seed: int = 0, probability: float = 0.15, model: nn.Module | None = None) -> MaskedLM:
    return MaskedLM(
        model or nn.Linear(1, 1),
        seed=seed,
        probability=probability,
        mask_token=MASK,
        vocabulary=cases.VOCABULARY,
        special_tokens=SPECIAL,
    )


@settings(max_examples=30, deadline=None)
@given(ids=st.lists(st.integers(0, 12), min_size=1, max_size=30), seed=st.integers(0, 9))
def test_what_is_hidden_is_a_function_of_the_seed_and_the_row(ids: list[int], seed: int) -> None:
    if set(ids) <= set(SPECIAL):
        return
    first, again = masked(seed).encode([{"input_ids": ids}] * 2)
    assert first == again
    for shown, label, token in zip(first["input_ids"], first["labels"], ids, strict=True):
        assert label in (-100, token)
        assert shown == token or label == token
        assert label == -100 or token not in SPECIAL
    assert any(label != -100 for label in first["labels"])


def test_rows_with_ids_are_hidden_by_their_ids() -> None:
    ids = list(range(5, 12)) * 10
    rows = [{"id": name, "input_ids": ids} for name in ("a", "b", "a")]
    first, second, third = masked().encode(rows)
    assert first == third != second
    assert masked(seed=1).encode(rows)[0] != first


def test_shares_of_hidden_tokens_are_those_of_bert() -> None:
    ids = [5] * 200
    rows = masked().encode([{"id": row, "input_ids": ids} for row in range(200)])
    shown = np.array([row["input_ids"] for row in rows])
    chosen = np.array([row["labels"] for row in rows]) != -100
    error = 4 / np.sqrt(chosen.sum())  # four standard errors
    assert abs(chosen.mean() - 0.15) < 4 / np.sqrt(chosen.size)
    assert abs((shown[chosen] == MASK).mean() - (0.8 + 0.1 / 13)) < error
    assert abs((shown[chosen] == 5).mean() - (0.1 + 0.1 / 13)) < error
    assert (shown[~chosen] == 5).all()


def test_examples_that_are_encoded_are_taken_as_they_are() -> None:
    task = masked()
    once = task.encode([{"input_ids": [5, 6, 7]}])
    assert task.encode(once) == once


def test_the_masked_loss_is_the_sum_over_hidden_tokens() -> None:
    task, examples = layer_cases.build("bert-masked", 3)
    batch = task.collate(examples)
    logits = task.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    for row, label in enumerate(batch["labels"]):
        expected = functional.cross_entropy(logits[row], label, reduction="sum")
        torch.testing.assert_close(task.losses(batch)[row], expected)


def test_the_loss_of_a_target_is_that_of_the_model_times_its_tokens() -> None:
    task, examples = layer_cases.build("t5-tied", 3)
    for example in examples:
        batch = task.collate([example])
        own = task.model(input_ids=batch["input_ids"], labels=batch["labels"]).loss
        torch.testing.assert_close(task.losses(batch)[0], own * len(example["labels"]))
    statistics = task.statistics(task.collate(examples))
    assert statistics["num_tokens"].tolist() == [len(example["labels"]) for example in examples]


def test_fisher_labels_are_drawn_where_labels_are() -> None:
    task, examples = layer_cases.build("t5-tied", 2)
    labels = Labels(kind="sampled", seed=0)
    both = task.fisher_losses(task.collate(examples), labels, np.array([3, 4]))[0]
    alone = task.fisher_losses(task.collate(examples[1:]), labels, np.array([4]))[0]
    torch.testing.assert_close(both[1:], alone)


class Words:
    """A tokenizer of numbers."""

    mask_token_id, pad_token_id, all_special_ids = MASK, 0, SPECIAL

    def __len__(self) -> int:
        return cases.VOCABULARY

    def __call__(self, text: str = "", *, text_target: str = "", **_: Any) -> dict[str, list[int]]:
        return {"input_ids": [int(word) for word in (text or text_target).split()]}


def test_texts_are_tokenised() -> None:
    task = MaskedLM(nn.Linear(1, 1), Words(), seed=0)
    (example,) = task.encode(["5 6 7"])
    assert len(example["input_ids"]) == 3
    translation = Seq2SeqLM(layer_cases.t5(tied=True), Words())
    (example,) = translation.encode([{"source": "5 6", "target": "7"}])
    assert example == {"input_ids": [5, 6], "labels": [7]}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"input_ids": [1, 2]}, r"a token that is not special\. Got \[1, 2\]"),
        ({"input_ids": [5, 6], "labels": [5]}, r"`labels` must be as long.*Got 1 and 2"),
        ({"body": "x"}, r"must have the column 'text'"),
    ],
    ids=["special", "labels", "column"],
)
def test_rows_that_cannot_be_hidden_are_refused(row: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        masked().encode([row])


def test_masking_without_a_mask_is_refused() -> None:
    with pytest.raises(ValueError, match=r"`tokenizer` must be given.*Got None and None"):
        MaskedLM(nn.Linear(1, 1), seed=0)
    with pytest.raises(ValueError, match=r"`probability` must be in \[0, 1\]"):
        masked(probability=1.5)


def test_pairs_that_are_none_are_refused() -> None:
    task = Seq2SeqLM(layer_cases.t5(tied=True))
    with pytest.raises(DataError, match=r"at least one token\. Got 1 and 0"):
        task.encode([{"input_ids": [5], "labels": []}])
    with pytest.raises(DataError, match=r"must have the column 'target'"):
        task.encode([{"input_ids": [5]}])
    with pytest.raises(TypeError, match=r"`tokenizer` must be given"):
        task.encode([{"source": "x", "target": "y"}])
    with pytest.raises(TypeError, match=r"encoder-decoder model.*Got Linear"):
        Seq2SeqLM(nn.Linear(1, 1))
