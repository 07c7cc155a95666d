"""Commands do under a launcher what they do without one, and say it once."""

import json
from pathlib import Path
from typing import Any

import all_commands
import numpy as np
import pytest
import torch
from launching import torchrun
from test_cli import WORDS, config, run, save_tokenizer
from torch import nn
from transformers import LlamaForCausalLM

from gradsift.commands import COMMANDS, SHARED
from gradsift.spreading import spread
from projections import Ranks, Scores, UnsupportedLayerError

COMMAND = ("-m", "gradsift.cli")
TOLERANCE = 1e-4  # single precision, and sums of covariances in another order


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("launched")
    LlamaForCausalLM(config()).save_pretrained(folder / "model")
    save_tokenizer(folder / "model")
    rows = [
        {"id": f"r{row}", "text": " ".join(WORDS[(row * 3 + k) % 10] for k in range(3 + row % 4))}
        for row in range(11)
    ]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def score(folder: Path, out: str, data: str = "train.jsonl") -> list[object]:
    words: list[object] = ["score", "--model", folder / "model", "--data", folder / data]
    words += ["--out", folder / out, "--method", "loss", "self-influence", "ekfac-self"]
    return [*words, "--num-dims", 8, "--shard-size", 2]


def test_two_ranks_score_as_one_with_a_model_spread_over_them_and_factors_in_parts(
    folder: Path,
) -> None:
    assert run(*score(folder, "one.parquet")) == 0
    words = [*score(folder, "two.parquet"), "--fully-sharded", "--memory", "12KB"]
    ended = torchrun(2, *COMMAND, *words)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("scored 11 rows") == 1
    one, two = (Scores.load(folder / name) for name in ("one.parquet", "two.parquet"))
    assert one.ids.tolist() == two.ids.tolist()
    for name in ("loss", "self-influence", "ekfac-self"):
        np.testing.assert_allclose(two[name].values, one[name].values, rtol=TOLERANCE)
    assert not (folder / "two.parquet.work").exists()


@pytest.mark.slow
def test_an_error_of_all_ranks_is_said_once_and_other_commands_run_on_one_rank(
    folder: Path,
) -> None:
    ended = torchrun(2, *COMMAND, *score(folder, "none.parquet", "none.jsonl"))
    assert ended.returncode == 1
    assert ended.stderr.count("gradsift: DataError") == 1
    words = ["index", "--model", folder / "model", "--data", folder / "train.jsonl"]
    words += ["--out", folder / "index", "--num-dims", 8, "--shard-size", 2]
    assert torchrun(2, *COMMAND, *words).returncode == 0
    asked = torchrun(2, *COMMAND, "retrieve", folder / "index", "--query", "the cat", "-k", 2)
    assert asked.returncode == 0, asked.stderr
    assert asked.stdout.count("query: the cat") == 1


@pytest.mark.slow
def test_two_ranks_do_every_command_as_one_and_say_which_they_do_not_share(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    pytest.importorskip("faiss")
    monkeypatch.chdir(tmp_path)
    all_commands.walk(folder, tmp_path / "one")
    said = capsys.readouterr().out
    ended = torchrun(2, all_commands.__file__, folder, tmp_path / "two")
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == said.replace(str(tmp_path / "one"), str(tmp_path / "two"))
    for name in ("hits", "near", "k", "d", "g", "c", "u"):
        one, two = ((tmp_path / who / f"{name}.jsonl").read_text() for who in ("one", "two"))
        ids = [[json.loads(line)["id"] for line in text.splitlines()] for text in (one, two)]
        assert ids[0] == ids[1], name
    for words in all_commands.lines_of(folder):
        shared = issubclass(COMMANDS[words[0]], SHARED)
        told = f"{words[0]} is work for one process; of 2 ranks, rank 0 does it" in ended.stderr
        assert told != shared, words[0]
    walked = {words[0] for words in all_commands.lines_of(folder)}
    # `test_attribute_command` has components.
    assert walked == set(COMMANDS) - {"demo", "components"}


def test_a_model_without_blocks_is_not_spread() -> None:
    with pytest.raises(UnsupportedLayerError, match=r"must say what its blocks are.*Linear does"):
        spread(nn.Linear(2, 2), Ranks(0, 2), "cpu")
    spread(nn.Linear(2, 2), Ranks(), "cpu")


def index_and_ask(folder: Path, name: str) -> tuple[list[object], list[object]]:
    """Return the words that build the lists of an index, and those that ask it."""
    factory = "IVF2,SQ8_direct_signed"
    build = ["store-index", folder / name, "--faiss", factory, "--part-rows", 2, "--merge", 2]
    ask: list[object] = [
        "retrieve",
        folder / name,
        "--faiss",
        factory,
        "--lists",
        2,
        "--rerank",
        11,
    ]
    return build, [*ask, "--query", "w1 w2 w3", "-k", 3, "--out", folder / f"{name}.jsonl"]


def test_an_index_with_lists_on_the_disk_answers_as_exact_search(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("faiss")
    words: list[object] = ["index", "--model", folder / "model", "--data", folder / "train.jsonl"]
    words += ["--out", folder / "i", "--num-dims", 8, "--shard-size", 2, "--row-dtype", "int8"]
    assert run(*words) == 0
    build, ask = index_and_ask(folder, "i")
    assert run(*build) == 0
    assert "indexed 11 rows in 2 parts" in capsys.readouterr().out
    assert run(*ask) == 0
    by_lists = (folder / "i.jsonl").read_text()
    exact = ask[:2] + ask[8:]
    assert run(*exact) == 0
    exact_hits = [json.loads(line) for line in (folder / "i.jsonl").read_text().splitlines()]
    hits = [json.loads(line) for line in by_lists.splitlines()]
    assert [hit["id"] for hit in hits] == [hit["id"] for hit in exact_hits]
    assert run(*exact, "--lists", 2) == 1
    assert "`--lists` must be used with `--faiss`" in capsys.readouterr().err


@pytest.mark.slow
def test_two_ranks_build_and_ask_an_index_as_one(folder: Path) -> None:
    pytest.importorskip("faiss")
    words: list[object] = ["index", "--model", folder / "model", "--data", folder / "train.jsonl"]
    assert run(*words, "--out", folder / "two", "--num-dims", 8, "--shard-size", 2) == 0
    build, ask = index_and_ask(folder, "two")
    ended = [torchrun(2, *COMMAND, *build), torchrun(2, *COMMAND, *ask)]
    assert [one.returncode for one in ended] == [0, 0], [one.stderr for one in ended]
    assert ended[0].stdout.count("indexed 11 rows in 2 parts") == 1
    by_ranks = (folder / "two.jsonl").read_text()
    assert run(*ask) == 0
    assert (folder / "two.jsonl").read_text() == by_ranks
