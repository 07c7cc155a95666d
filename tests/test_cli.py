"""The commands, as a stranger types them: on a small saved model, and with wrong input."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
)

from gradsift.cli import main
from projections import GradientStore, Scores, StoreMismatchError
from selection import Selection

WORDS = ["the", "cat", "dog", "sat", "ran", "on", "a", "mat", "far", "away"]


def save_tokenizer(folder: Path) -> None:
    vocabulary = {word: number for number, word in enumerate(["<pad>", "<unk>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>"
    ).save_pretrained(folder)


def config(**more: Any) -> LlamaConfig:
    return LlamaConfig(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        vocab_size=12,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=None,
        **more,
    )


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model")
    LlamaForCausalLM(config()).save_pretrained(folder)
    save_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "train.jsonl"
    rows = [
        {"id": f"r{row}", "text": " ".join(WORDS[(row * 3 + k) % 10] for k in range(3 + row % 4))}
        for row in range(12)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def run(*words: object) -> int:
    return main([str(word) for word in words])


@pytest.mark.parametrize("rows", ["sketch", "ekfac"])
def test_an_index_is_built_and_asked(
    rows: str, model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    build = ["index", "--model", model, "--data", data, "--out", tmp_path / "index"]
    build += ["--rows", rows, "--num-dims", 64]
    assert run(*build) == 0
    assert "indexed 12 rows of 64 numbers" in capsys.readouterr().out
    assert len(GradientStore.open(tmp_path / "index" / "store")) == 12
    assert run(*build) == 0  # a finished index is opened, not built again
    capsys.readouterr()
    ask = ["retrieve", tmp_path / "index", "--query", "the cat sat", "-k", 3]
    assert run(*ask, "--out", tmp_path / "hits.jsonl") == 0
    shown = capsys.readouterr().out
    assert "most helpful" in shown
    assert "most harmful" in shown
    hits = [json.loads(line) for line in (tmp_path / "hits.jsonl").read_text().splitlines()]
    assert [hit["end"] for hit in hits] == ["most helpful"] * 3 + ["most harmful"] * 3
    assert all(hit["id"].startswith("r") for hit in hits)
    assert run("report", tmp_path / "index") == 0
    assert (tmp_path / "index" / "report.html").exists()


@pytest.mark.parametrize("name", ["srht", "tensorsketch", "two-sided", "rademacher", "gaussian"])
def test_an_index_has_the_projection_that_was_asked_for(
    name: str, model: Path, data: Path, tmp_path: Path
) -> None:
    build = ["index", "--model", model, "--data", data, "--out", tmp_path / "index"]
    assert run(*build, "--num-dims", 64, "--projection", name, "--layers", "*mlp*") == 0
    store = GradientStore.open(tmp_path / "index" / "store")
    assert 0 < store.num_dims <= 64
    ask = ["retrieve", tmp_path / "index", "--query", "the cat sat", "-k", 3, "--metric", "dot"]
    assert run(*ask, "--out", tmp_path / "hits.jsonl") == 0


@pytest.mark.parametrize("name", ["sjlt", "two-sided"])
def test_one_head_is_indexed_and_asked_under_autocast(
    name: str, model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    build = ["index", "--model", model, "--data", data, "--out", tmp_path / "index"]
    build += ["--by-head", "--autocast", "bfloat16", "--layers", "*[q,0]", "--projection", name]
    assert run(*build, "--num-dims", 64) == 0
    ask = ["retrieve", tmp_path / "index", "--query", "the cat sat", "-k", 3, "--metric", "dot"]
    assert run(*ask) == 0
    with pytest.raises(StoreMismatchError, match="autocast"):
        GradientStore.open(tmp_path / "index" / "store").require(autocast=None)
    capsys.readouterr()


def train_with_adam(folder: Path, path: Path, *, groups: int) -> None:
    """Save the state of Adam after a step, grouped as by a trainer, or named."""
    network = LlamaForCausalLM.from_pretrained(folder)
    named = list(network.named_parameters())
    arguments: Any = named
    if groups == 2:
        decayed = [(name, p) for name, p in named if "norm" not in name]
        rest = [(name, p) for name, p in named if "norm" in name]
        arguments = [{"params": [p for _, p in part]} for part in (decayed, rest)]
    optimizer = torch.optim.AdamW(arguments)
    tokens = torch.tensor([[2, 3, 4, 5]])
    network(input_ids=tokens, labels=tokens).loss.backward()
    optimizer.step()
    torch.save(optimizer.state_dict(), path)


def test_an_index_takes_the_scaling_of_a_trainer_or_of_named_parameters(
    model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = []
    for groups in (1, 2):
        train_with_adam(model, tmp_path / "optimizer.pt", groups=groups)
        build = ["index", "--model", model, "--data", data, "--out", tmp_path / f"index{groups}"]
        build += ["--num-dims", 64, "--optimizer-state", tmp_path / "optimizer.pt"]
        assert run(*build) == 0
        rows.append(GradientStore.open(tmp_path / f"index{groups}" / "store").rows(range(12)))
    assert (rows[0] == rows[1]).all()
    assert run("retrieve", tmp_path / "index2", "--query", "the cat sat", "-k", 3) == 0
    capsys.readouterr()
    other = ["index", "--model", model, "--data", data, "--out", tmp_path / "other"]
    (tmp_path / "text.pt").write_text("no state")
    assert run(*other, "--optimizer-state", tmp_path / "text.pt") == 1
    assert "must be a state dict that `torch.save` wrote" in capsys.readouterr().err
    torch.save(LlamaForCausalLM.from_pretrained(model).state_dict(), tmp_path / "model.pt")
    assert run(*other, "--optimizer-state", tmp_path / "model.pt") == 1
    assert "must be what `optimizer.state_dict()` returns" in capsys.readouterr().err
    state = torch.load(tmp_path / "optimizer.pt")
    state["param_groups"][0]["params"].pop()
    torch.save(state, tmp_path / "short.pt")
    assert run(*other, "--optimizer-state", tmp_path / "short.pt") == 1
    assert "in groups of [9, 3]. It has groups of [8, 3]" in capsys.readouterr().err
    assert run(*other, "--rows", "ekfac", "--projection", "srht") == 1
    assert "must be used with `--rows sketch`" in capsys.readouterr().err


def test_an_index_of_curvature_is_reranked_on_request(
    model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    build = ["index", "--model", model, "--data", data, "--out", tmp_path / "index"]
    assert run(*build, "--rows", "ekfac", "--num-dims", 64) == 0
    ask = ["retrieve", tmp_path / "index", "--query", "the cat sat", "-k", 2]
    assert run(*ask, "--rerank", 6) == 0
    assert run(*ask, "--rerank", 1) == 1
    assert "`rerank` must be in [2, 12]" in capsys.readouterr().err


def test_a_store_is_looked_after_on_the_command_line(
    model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = data.read_text().splitlines(keepends=True)
    for name, part in (("a", lines[:7]), ("b", lines[7:])):
        (tmp_path / f"{name}.jsonl").write_text("".join(part))
        build = ["index", "--model", model, "--data", tmp_path / f"{name}.jsonl"]
        assert run(*build, "--num-dims", 64, "--out", tmp_path / name) == 0
    ask = ["retrieve", tmp_path / "a", "--query", "the cat sat", "-k", 2, "--metric", "dot"]
    assert run(*ask, "--faiss", "SQ8", "--rerank", 5) == 0
    assert run(*ask, "--rerank", 5) == 1
    capsys.readouterr()
    assert run("store-delete", tmp_path / "a", "--ids", "r0", "r3") == 0
    assert "deleted 2 rows; 5 are left" in capsys.readouterr().out
    assert run(*ask, "--faiss", "SQ8", "--rerank", 5, "--out", tmp_path / "h.jsonl") == 0
    hits = [json.loads(line) for line in (tmp_path / "h.jsonl").read_text().splitlines()]
    texts = {json.loads(line)["id"]: json.loads(line)["text"] for line in lines}
    assert all(hit["id"] not in ("r0", "r3") for hit in hits)
    assert all(hit["text"] == texts[hit["id"]] for hit in hits)
    assert run("store-verify", tmp_path / "a") == 0
    assert "2 deleted rows are still on the disk" in capsys.readouterr().out
    assert run("store-compact", tmp_path / "a") == 0
    assert run("store-merge", tmp_path / "a", tmp_path / "b", "--out", tmp_path / "c") == 0
    assert "merged 2 stores: 10 rows" in capsys.readouterr().out
    (tmp_path / "c" / "shard-000001" / "sketch.npy").write_bytes(b"")
    assert run("store-verify", tmp_path / "c") == 1
    assert "Damaged or missing: shard-000001/sketch.npy" in capsys.readouterr().err
    assert run("store-delete", tmp_path / "b") == 1
    assert "an id must be given" in capsys.readouterr().err
    assert run("store-verify", tmp_path / "nothing") == 1


def test_scores_are_computed_and_a_dataset_is_pruned(
    model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    methods = ["loss", "grad-norm", "self-influence", "ekfac-self", "weight-alignment"]
    methods += ["agreement", "near-duplicate", "cluster-distance"]
    score = ["score", "--model", model, "--data", data, "--out", tmp_path / "s.parquet"]
    assert run(*score, "--method", *methods, "--num-dims", 32) == 0
    scores = Scores.load(tmp_path / "s.parquet")
    assert scores.names == methods
    assert "warning: the model is no better than an even guess" in capsys.readouterr().out
    assert scores.ids.tolist() == [f"r{row}" for row in range(12)]
    assert not (tmp_path / "s.parquet.work").exists()
    prune = ["prune", tmp_path / "s.parquet", "--data", data, "--column", "loss"]
    prune += ["--drop", "highest", "--keep", 0.75, "--out", tmp_path / "kept.jsonl"]
    assert run(*prune) == 0
    assert "kept 9 of 12 rows" in capsys.readouterr().out
    kept = [json.loads(line)["id"] for line in (tmp_path / "kept.jsonl").read_text().splitlines()]
    selection = Selection.load(tmp_path / "kept.jsonl.selection.parquet")
    assert kept == selection.ids.tolist()
    assert len(selection.rejected) == 3
    assert run("report", tmp_path / "s.parquet", "--data", data) == 0


def test_a_text_classifier_has_el2n_and_margin(tmp_path: Path) -> None:
    torch.manual_seed(0)
    folder = tmp_path / "classifier"
    LlamaForSequenceClassification(config(num_labels=3)).save_pretrained(folder)
    save_tokenizer(folder)
    rows = [{"text": " ".join(WORDS[: 2 + row]), "label": row % 3} for row in range(6)]
    (tmp_path / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    score = ["score", "--model", folder, "--data", tmp_path / "d.jsonl"]
    score += ["--task", "sequence-classification", "--method", "el2n", "margin", "correct"]
    assert run(*score, "--out", tmp_path / "s.parquet") == 0
    assert Scores.load(tmp_path / "s.parquet").names == ["el2n", "margin", "correct"]


def test_a_written_configuration_runs_again(model: Path, data: Path, tmp_path: Path) -> None:
    score = ["score", "--model", model, "--data", data, "--out", tmp_path / "s.parquet"]
    assert run(*score, "--layers", "*mlp*", "--batch-size", 5) == 0
    written = tmp_path / "s.parquet.config.json"
    first = Scores.load(tmp_path / "s.parquet")
    assert run("score", "--config", written, "--out", tmp_path / "t.parquet") == 0
    again = Scores.load(tmp_path / "t.parquet")
    assert all((first.columns[name] == again.columns[name]).all() for name in first.names)
    (tmp_path / "c.yaml").write_text(f"keep: 0.5\nscores: {tmp_path / 's.parquet'}\ncolumn: loss\n")
    words = ["prune", "--config", tmp_path / "c.yaml", "--data", data, "--out", tmp_path / "k.csv"]
    assert run(*words) == 0


BAD_LINE = '{"text": "the cat"}\n{"text": \n'
WRONG = {
    "no such file": (None, "There is no such file"),
    "a line that is not JSON": (BAD_LINE, "line 2"),
    "an empty file": ("", "at least one row"),
    "a missing column": ('{"words": "the cat sat"}\n', "must have the column 'text'"),
    "a text of one token": ('{"text": "cat"}\n', "at least 2 tokens"),
    "the same id twice": ('{"id": 1, "text": "the cat"}\n' * 2, "each id once"),
}


@pytest.mark.parametrize(("content", "message"), WRONG.values(), ids=list(WRONG))
def test_wrong_data_gives_one_sentence_and_exit_code_1(
    content: str | None,
    message: str,
    model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if content is not None:
        (tmp_path / "bad.jsonl").write_text(content)
    score = ["score", "--model", model, "--data", tmp_path / "bad.jsonl"]
    assert run(*score, "--out", tmp_path / "s.parquet") == 1
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_other_mistakes_are_said(
    model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    index = ["index", "--model", model, "--data", data, "--out", tmp_path / "index"]
    assert run(*index, "--num-dims", 16) == 0
    mistakes = [
        ([*index, "--num-dims", 32], "It differs in: projector"),
        (["retrieve", tmp_path / "index"], "a query must be given"),
        (["retrieve", tmp_path / "index", "--query", "the cat", "-k", 13], "`k` must be in"),
        (["retrieve", tmp_path / "nothing", "--query", "the cat"], "There is no config.json"),
        (
            ["index", "--model", "nowhere", "--data", data, "--out", tmp_path / "i"],
            "cannot be loaded",
        ),
        (["prune", data, "--data", data, "--keep", 0.5, "--out", tmp_path / "k.jsonl"], "parquet"),
        (["report", tmp_path / "nothing"], "nothing"),
        (["prune", "--config", tmp_path / "no.yaml"], "must name a file"),
    ]
    capsys.readouterr()
    for words, message in mistakes:
        assert run(*words) == 1, words
        assert message in capsys.readouterr().err, words


def test_a_wrong_command_line_exits_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        run("prune", "--nonsense")
    assert stopped.value.code == 2
    capsys.readouterr()


def test_a_model_that_changed_is_not_mixed_with_an_old_index(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(1)
    folder = tmp_path / "model"
    LlamaForCausalLM(config()).save_pretrained(folder)
    save_tokenizer(folder)
    index = ["index", "--model", folder, "--data", data, "--out", tmp_path / "index"]
    assert run(*index, "--num-dims", 16) == 0
    LlamaForCausalLM(config()).save_pretrained(folder)
    assert run("retrieve", tmp_path / "index", "--query", "the cat", "-k", 2) == 1
    assert "They differ in: model" in capsys.readouterr().err
