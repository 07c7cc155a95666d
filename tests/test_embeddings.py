"""Embeddings: from any encoder, in shards that survive a kill, and the encoders themselves."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_cli import config, run, save_tokenizer
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, BertConfig, BertModel, LlamaModel, PreTrainedTokenizerFast

from projections import (
    ColumnEncoder,
    DataError,
    Embeddings,
    HiddenStates,
    NonFiniteError,
    SentenceEncoder,
    StoreMismatchError,
    TfidfSVD,
    as_embeddings,
    embed,
    uniforms,
)
from selection import GIO, DataShare

ROWS = [{"id": f"r{row}", "v": [float(row), row**2.0]} for row in range(10)]
COLUMN = ColumnEncoder(column="v")


def test_batches_and_shards_change_nothing(tmp_path: Path) -> None:
    plain = embed(ROWS, COLUMN)
    assert plain.ids.tolist() == [row["id"] for row in ROWS]
    for batch_size, shard_size in ((1, 3), (4, 10), (100, 1)):
        path = tmp_path / f"{batch_size}-{shard_size}"
        kept = embed(ROWS, COLUMN, path=path, batch_size=batch_size, shard_size=shard_size)
        assert (kept.rows == plain.rows).all()
        assert kept.ids.tolist() == plain.ids.tolist()


class Stopping:
    """An encoder that is killed after some calls, and counts them."""

    def __init__(self, most: int) -> None:
        self.left, self.calls = most, 0

    def __call__(self, rows: list[Any]) -> np.ndarray:
        if not self.left:
            raise KeyboardInterrupt
        self.left, self.calls = self.left - 1, self.calls + 1
        return COLUMN(rows)


def test_a_killed_run_goes_on_where_it_stopped(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        embed(ROWS, Stopping(2), path=tmp_path / "e", shard_size=3)
    second = Stopping(10)
    found = embed(ROWS, second, path=tmp_path / "e", shard_size=3)
    assert second.calls == 2  # of four shards, two were finished
    assert (found.rows == embed(ROWS, COLUMN).rows).all()
    third = Stopping(0)
    assert (embed(ROWS, third, path=tmp_path / "e", shard_size=3).rows == found.rows).all()


def test_embeddings_of_other_data_or_another_encoder_are_not_mixed(tmp_path: Path) -> None:
    embed(ROWS, COLUMN, path=tmp_path / "e")
    with pytest.raises(StoreMismatchError, match="num_rows: 5 against 10; data"):
        embed(ROWS[:5], COLUMN, path=tmp_path / "e")
    with pytest.raises(StoreMismatchError, match="It differs in: encoder"):
        embed(ROWS, ColumnEncoder(column="w"), path=tmp_path / "e")


def test_an_encoder_must_return_one_finite_vector_a_row() -> None:
    with pytest.raises(ValueError, match=r"For 10 rows it returned the shape \(3,\)"):
        embed(ROWS, lambda rows: np.zeros(3))
    with pytest.raises(NonFiniteError, match=r"ids \['r1'\]"):
        embed(ROWS, lambda rows: np.array([[np.nan if r["id"] == "r1" else 1.0] for r in rows]))
    with pytest.raises(ValueError, match="`batch_size` must be at least 1"):
        embed(ROWS, COLUMN, batch_size=0)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"id": 1}, "must have the column 'v'"),
        ({"v": [1.0]}, "list of numbers of the same length"),
        ({"v": None}, "list of numbers of the same length"),
        ("text", "rows must be mappings with the column 'v'. Got str"),
    ],
)
def test_a_column_without_vectors_is_refused(row: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        COLUMN([ROWS[0], row])


def test_rows_are_taken_in_the_order_of_their_ids() -> None:
    given = Embeddings(np.arange(6.0).reshape(3, 2), np.array([5, 1, 3]))
    assert given.by_id().ids.tolist() == [1, 3, 5]
    assert given.by_id().rows[:, 0].tolist() == [2, 4, 0]
    ordered = given.by_id()
    assert ordered.by_id() is ordered
    assert as_embeddings(given) is given


def test_directions_have_length_one_and_zero_stays_zero() -> None:
    found = Embeddings(np.array([[3.0, 4], [0, 0]])).normalized()
    np.testing.assert_allclose(found.rows, [[0.6, 0.8], [0, 0]])
    assert Embeddings(np.array([[3.0, 4], [0, 0]])).norms.tolist() == [5, 0]


def test_uniform_numbers_are_a_function_of_their_place() -> None:
    few, many = uniforms(3, "name", 5), uniforms(3, "name", 5000)
    assert few.tolist() == many[:5].tolist()
    assert few.tolist() != uniforms(4, "name", 5).tolist()
    assert abs(many.mean() - 0.5) < 4 / np.sqrt(12 * 5000)


def save_model(folder: Path) -> tuple[Any, Any]:
    torch.manual_seed(0)
    save_tokenizer(folder)
    return LlamaModel(config()).eval(), AutoTokenizer.from_pretrained(folder)


def test_the_mean_hidden_state_ignores_padding(tmp_path: Path) -> None:
    model, tokenizer = save_model(tmp_path)
    encoder = HiddenStates(model=model, tokenizer=tokenizer)
    texts = ["the cat sat", "a dog ran far away on the mat", "cat cat"]
    together = encoder(texts)
    apart = np.concatenate([encoder([{"text": text}]) for text in texts])
    np.testing.assert_allclose(together, apart, atol=1e-6)
    ids = torch.tensor([tokenizer(texts[0])["input_ids"]])
    with torch.no_grad():
        wanted = model(ids).last_hidden_state[0].mean(0).numpy()
    np.testing.assert_allclose(apart[0], wanted, atol=1e-6)
    assert encoder.describe() != HiddenStates(model=model, tokenizer=tokenizer, layer=0).describe()


def test_hidden_states_refuse_what_has_none(tmp_path: Path) -> None:
    model, tokenizer = save_model(tmp_path)
    with pytest.raises(ValueError, match="evaluation mode"):
        HiddenStates(model=model.train(), tokenizer=tokenizer)
    encoder = HiddenStates(model=model.eval(), tokenizer=tokenizer)
    with pytest.raises(DataError, match=r"have a token\. '' has none"):
        encoder([""])
    with pytest.raises(DataError, match=r"must hold text\. Got 3"):
        encoder([{"text": 3}])


def test_texts_with_the_same_words_are_near_each_other() -> None:
    texts = ["cats sleep all day", "all day cats sleep", "stocks fell today", "today stocks fell"]
    encoder = TfidfSVD(num_dims=2, seed=0).fit(texts)
    found = Embeddings(encoder(texts)).normalized().rows
    assert found[0] @ found[1] > 0.99
    assert abs(found[0] @ found[2]) < 0.1
    assert not encoder(["unknown"]).any()
    assert encoder.describe() == TfidfSVD(num_dims=2, seed=0).fit(texts).describe()


def test_texts_without_common_words_are_refused() -> None:
    with pytest.raises(ValueError, match="the texts must share words"):
        TfidfSVD(num_dims=2, seed=0).fit(["alpha", "beta"])
    with pytest.raises(ValueError, match="`num_dims` must be less than the number of words"):
        TfidfSVD(num_dims=9, seed=0).fit(["alpha beta", "alpha beta"])


class FakeSentences:
    """What `SentenceEncoder` asks of a sentence-transformers model."""

    def encode(self, texts: list[str], *, convert_to_numpy: bool, show_progress_bar: bool) -> Any:
        assert convert_to_numpy
        assert not show_progress_bar
        return np.array([[len(text), 1] for text in texts], dtype=np.float64)


def test_a_sentence_model_is_called_with_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = SentenceEncoder(model=FakeSentences())
    assert embed([{"text": "abc"}, {"text": "d"}], encoder).rows.tolist() == [[3, 1], [1, 1]]
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(ImportError, match="pip install sentence-transformers"):
        SentenceEncoder(model="some-name")([{"text": "abc"}])


WORDS = ["the", "cat", "dog", "sat", "ran", "on", "a", "mat", "far", "away"]


@pytest.fixture(scope="module")
def sentences(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save a sentence model made here: a tiny encoder, its tokenizer and a pooling module."""
    found = pytest.importorskip("sentence_transformers")
    modules = found.sentence_transformer.modules
    folder = tmp_path_factory.mktemp("sentences")
    tokenizer = Tokenizer(models.WordLevel(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.WordLevelTrainer(special_tokens=["<pad>", "<unk>"], show_progress=False)
    tokenizer.train_from_iterator([WORDS], trainer)
    whole = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", model_max_length=16
    )
    whole.save_pretrained(folder / "parts")
    settings = BertConfig(
        vocab_size=12,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=16,
    )
    torch.manual_seed(0)
    BertModel(settings).save_pretrained(folder / "parts")
    parts = [modules.Transformer(str(folder / "parts")), modules.Pooling(16)]
    found.SentenceTransformer(modules=parts, device="cpu").save_pretrained(str(folder / "model"))
    return folder / "model"


def texts_of_words(seed: int, count: int, some: slice) -> list[dict[str, str]]:
    random = np.random.default_rng(seed)
    return [
        {"id": f"{seed}-{row}", "text": " ".join(random.choice(WORDS[some], 5))}
        for row in range(count)
    ]


def test_gio_chooses_by_a_real_sentence_model(sentences: Path) -> None:
    raw = [*texts_of_words(1, 20, slice(5)), *texts_of_words(2, 20, slice(5, 10))]
    target = texts_of_words(3, 10, slice(5, 10))
    encoder = SentenceEncoder(model=str(sentences), device="cpu")
    rows = embed(raw, encoder, batch_size=7)
    assert rows.rows.shape == (40, 16)
    np.testing.assert_allclose(encoder(raw[3:4])[0], rows.rows[3], atol=1e-5)  # padding apart
    path = GIO(num_neighbours=1, stop=DataShare(1.0), seed=0).fit(rows, embed(target, encoder))
    chosen = path.select(num_selected=10).ids.tolist()
    assert sum(row.startswith("2-") for row in chosen) >= 9


def test_the_command_takes_a_real_sentence_model(
    sentences: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [*texts_of_words(1, 20, slice(5)), *texts_of_words(2, 20, slice(5, 10))]
    for name, some in (("raw", rows), ("target", texts_of_words(3, 10, slice(5, 10)))):
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in some))
    words = ["gio", "--raw", tmp_path / "raw.jsonl", "--target", tmp_path / "target.jsonl", "--num"]
    words += [10, "--device", "cpu", "--encoder", "sentence-transformers", "--embeddings"]
    assert run(*words, sentences, "--out", tmp_path / "chosen.jsonl") == 0
    chosen = [json.loads(line) for line in (tmp_path / "chosen.jsonl").read_text().splitlines()]
    assert sum(row["id"].startswith("2-") for row in chosen) >= 9
    capsys.readouterr()
    assert run(*words, tmp_path / "none", "--out", tmp_path / "other.jsonl") == 1
    assert "must be a folder or a name of a sentence-transformers" in capsys.readouterr().err
