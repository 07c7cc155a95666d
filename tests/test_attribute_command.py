"""`gradsift attribute`, as a stranger types it: every method, checkpoints, subtasks, mistakes."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shared_commands
import torch
from launching import torchrun
from test_cli import config, run, save_tokenizer
from transformers import LlamaForCausalLM, LlamaForSequenceClassification

from projections import Scores

WORDS = ["the", "cat", "dog", "sat", "ran", "on", "a", "mat", "far", "away"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A language model with two checkpoints of Adam, a classifier, and data."""
    torch.manual_seed(0)
    home = tmp_path_factory.mktemp("attribute")
    model: Any = LlamaForCausalLM(config())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for name in ("first", "second", "model"):
        loss = model(torch.arange(12)[None], labels=torch.arange(12)[None]).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        model.save_pretrained(home / name)
        save_tokenizer(home / name)
        torch.save(optimizer.state_dict(), home / name / "optimizer.pt")
    classifier: Any = LlamaForSequenceClassification(config(num_labels=2))
    classifier.save_pretrained(home / "classifier")
    save_tokenizer(home / "classifier")
    rows = [
        {
            "id": f"r{row}",
            "text": " ".join(WORDS[(row * 3 + k) % 10] for k in range(3 + row % 4)),
            "label": row % 2,
            "kind": "ab"[row % 2],
        }
        for row in range(12)
    ]
    (home / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (home / "queries.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:4]))
    return home


LANGUAGE = ["ekfac", "datainf", "mfac", "tracin", "trak", "trackstar", "cosine", "hidden-states"]


@pytest.mark.parametrize("method", [*LANGUAGE, "bm25", "tfidf"])
def test_every_method_writes_its_scores_and_shows_the_ends(
    method: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "scores.parquet"
    words = ["attribute", "--data", folder / "train.jsonl", "--out", out, "--method", method]
    words += [] if method in ("bm25", "tfidf") else ["--model", folder / "model"]
    words += ["--query", "the cat sat", "a dog ran", "-k", 2, "--num-dims", 64]
    assert run(*words) == 0, capsys.readouterr().err
    shown = capsys.readouterr().out
    assert f"scored 12 rows for 2 queries by {method}" in shown
    assert shown.count("query: ") == 2 and shown.count("most helpful:") == 2
    scores = Scores.load(out)
    assert scores.values.shape == (2, 12) and np.isfinite(scores.values).all()
    assert scores.provenance["attribute"]["how"]["method"] == method
    top = scores.ids[np.argsort(-scores.values[0], kind="stable")[0]]
    assert f"  {top}  " in shown.split("most helpful:")[1].split("most harmful:")[0]


def test_checkpoints_are_weighed_by_their_learning_rates(folder: Path, tmp_path: Path) -> None:
    def scores(*more: object) -> np.ndarray:
        out = tmp_path / "scores.parquet"
        words = ["attribute", "--model", folder / "model", "--data", folder / "train.jsonl"]
        words += ["--query", "the cat sat", "--out", out, "--method", "tracin", *more]
        assert run(*words) == 0
        return Scores.load(out).values

    first, second = folder / "first", folder / "second"
    both = scores("--checkpoints", first, second, "--learning-rates", 0.5, 2)
    parts = 0.5 * scores("--checkpoints", first) + 2 * scores("--checkpoints", second)
    np.testing.assert_allclose(both, parts, rtol=1e-4, atol=1e-6)


def test_less_gives_scores_that_prune_keeps_by(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "less.parquet"
    words = ["attribute", "--model", folder / "model", "--data", folder / "train.jsonl"]
    words += ["--queries", folder / "queries.jsonl", "--out", out, "--method", "less"]
    words += ["--checkpoints", folder / "first", folder / "second", "--num-dims", 64]
    assert run(*words, "--subtask-column", "kind") == 0, capsys.readouterr().err
    scores = Scores.load(out)
    assert scores.names == ["a", "b", "less"]
    largest = np.maximum(scores["a"].values, scores["b"].values)
    np.testing.assert_allclose(scores["less"].values, largest)
    keep = ["prune", out, "--data", folder / "train.jsonl", "--column", "less", "--keep", 0.25]
    assert run(*keep, "--out", tmp_path / "kept.jsonl") == 0
    assert len((tmp_path / "kept.jsonl").read_text().splitlines()) == 3


@pytest.mark.parametrize("method", ["trak-log-odds", "tracin-last-layer"])
def test_classifiers_are_attributed(method: str, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "scores.parquet"
    words = ["attribute", "--model", folder / "classifier", "--task", "sequence-classification"]
    words += ["--data", folder / "train.jsonl", "--queries", folder / "queries.jsonl"]
    relative = ["--relative"] if method == "tracin-last-layer" else []
    assert run(*words, "--out", out, "--method", method, "--num-dims", 0, *relative) == 0
    assert Scores.load(out).values.shape == (4, 12)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--method", "ekfac"], "`--model` must be given with `--method ekfac`"),
        (
            ["--method", "less", "--model", "M"],
            "`--checkpoints` must be given with `--method less`",
        ),
        (["--method", "bm25", "--checkpoints", "M"], "must be used with one of tracin"),
        (["--method", "sentences"], "`--encoder` must be given"),
        (
            ["--method", "tracin", "--model", "M", "--learning-rates", "1", "2"],
            "must have one number a checkpoint. Got 2 for 0",
        ),
        (
            ["--method", "bm25", "--optimizer-state", "M"],
            "`--optimizer-state` must be used with one of trak",
        ),
        (
            ["--method", "representer", "--model", "M"],
            "Classification task and a linear layer",
        ),
        (["--method", "tfidf", "--subtask-column", "kind"], "must be used with `--method less`"),
    ],
)
def test_options_that_do_not_go_together_are_refused(
    more: list[str],
    message: str,
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["attribute", "--data", folder / "train.jsonl", "--out", tmp_path / "s.parquet"]
    words += ["--query", "the cat"] + [folder / "model" if word == "M" else word for word in more]
    assert run(*words) == 1
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_two_ranks_attribute_as_one_by_every_method(folder: Path, tmp_path: Path) -> None:
    program = Path(__file__).with_name("shared_commands.py")
    shared_commands.run(folder, tmp_path / "one")
    ended = torchrun(2, program, folder, tmp_path / "two")
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("scored 12 rows for 2 queries") == len(shared_commands.METHODS)
    for method in shared_commands.METHODS:
        one, two = (Scores.load(tmp_path / who / f"{method}.parquet") for who in ("one", "two"))
        assert one.ids.tolist() == two.ids.tolist()
        largest = np.abs(one.values).max()
        np.testing.assert_allclose(two.values, one.values, rtol=1e-3, atol=1e-4 * largest)
    ours, theirs = (tmp_path / who / "components/chosen.json" for who in ("one", "two"))
    assert json.loads(ours.read_text())["names"] == json.loads(theirs.read_text())["names"]
