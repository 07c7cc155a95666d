"""The commands gio, cover and dedup, as a stranger types them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_cli import model as model
from test_cli import run

from projections import GradientStore
from selection import Selection

WORDS = ["the", "cat", "dog", "sat", "ran", "on", "a", "mat", "far", "away"]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    rows = []
    for row in range(40):
        words = random.choice(WORDS[:5] if row < 20 else WORDS[5:], 6)
        vector = (random.standard_normal(3) + (0 if row < 20 else 5)).tolist()
        rows.append({"id": f"r{row}", "text": " ".join(words), "v": vector, "size": row})
    path = tmp_path / "raw.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    target = [{**row, "id": f"t{row['id']}"} for row in rows[20:30]]
    (tmp_path / "target.jsonl").write_text("".join(json.dumps(row) + "\n" for row in target))
    return path


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def gio(data: Path, out: str, *more: object) -> list[object]:
    folder = data.parent
    return ["gio", "--raw", data, "--target", folder / "target.jsonl", "--out", folder / out, *more]


VECTORS = ("--encoder", "column", "--embeddings", "v")


def test_gio_chooses_rows_like_the_target(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = gio(data, "chosen.jsonl", *VECTORS, "--num", 10, "--rejected", data.parent / "no.jsonl")
    assert run(*words) == 0
    shown = capsys.readouterr().out
    assert "chose 10 of 40 rows" in shown
    assert "divergence from" in shown
    chosen = lines(data.parent / "chosen.jsonl")
    assert len(chosen) == 10
    assert sum(int(row["id"][1:]) >= 20 for row in chosen) >= 9
    rejected = lines(data.parent / "no.jsonl")
    assert len(rejected) == 30
    assert all(row["reason"] for row in rejected)
    beside = Selection.load(data.parent / "chosen.jsonl.selection.parquet")
    assert beside.ids.tolist() == [row["id"] for row in chosen]
    assert beside.provenance["gio"]["estimate"] == "knn"
    assert not (data.parent / "chosen.jsonl.work").exists()


@pytest.mark.parametrize(
    "more",
    [
        (),
        ("--estimate", "published", "--count", "centroids", "--num-centroids", 8),
        ("--estimate", "coverage", "--num-centroids", 0, "--stop", "share", "--stop-at", 0.5),
        ("--estimate", "nearest-discarded", "--restarts", 1, "--num-centroids", 0),
        ("--stop", "sequential-increases", "--stop-at", 2),
        ("--stop", "min-difference", "--stop-at", 0.1),
        ("--stop", "min-divergence", "--stop-at", -1),
        ("--num-tokens", 30),
        ("--num-tokens", 100, "--tokens-column", "size"),
    ],
)
def test_gio_takes_every_option(data: Path, more: tuple[Any, ...]) -> None:
    assert run(*gio(data, "chosen.jsonl", *VECTORS, *more)) == 0
    chosen = lines(data.parent / "chosen.jsonl")
    if "--num-tokens" in more:
        counted = (row["size"] if "size" in more else 6 for row in chosen)
        assert 0 < sum(counted) <= 100
    written = data.parent / "chosen.jsonl.config.json"
    assert run("gio", "--config", written, "--out", data.parent / "again.jsonl") == 0
    assert lines(data.parent / "again.jsonl") == chosen


@pytest.mark.parametrize("method", ["facility-location", "k-center"])
def test_cover_chooses_rows_of_both_kinds(
    data: Path, method: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = data.parent / "cover.parquet"
    words = ["cover", "--data", data, "--out", out, "--method", method, "--num", 2]
    assert run(*words, *VECTORS, "--similarity", "euclidean") == 0
    assert "chose 2 of 40 rows" in capsys.readouterr().out
    chosen = Selection.load(data.parent / "cover.parquet.selection.parquet")
    assert {int(row[1:]) >= 20 for row in chosen.ids.tolist()} == {False, True}
    assert chosen.weights.sum() == 40


def test_dedup_keeps_one_of_each(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with data.open("a") as file:
        for row in lines(data)[:5]:
            file.write(json.dumps({**row, "id": "copy " + row["id"]}) + "\n")
    out = data.parent / "kept.jsonl.gz"
    words = ["dedup", "--data", data, "--out", out, *VECTORS, "--threshold", 0.999999]
    assert run(*words, "--keep", "first", "--rejected", data.parent / "no.jsonl") == 0
    assert "chose 40 of 45 rows" in capsys.readouterr().out
    assert len(lines(data.parent / "no.jsonl")) == 5


def test_vectors_come_from_words_files_models_and_stores(data: Path, model: Path) -> None:
    folder = data.parent
    np.save(folder / "v.npy", np.array([row["v"] for row in lines(data)]))
    index = ["index", "--model", model, "--data", data, "--out", folder / "index"]
    assert run(*index, "--num-dims", 16) == 0
    assert len(GradientStore.open(folder / "index" / "store")) == 40
    for number, more in enumerate(
        [
            ("--encoder", "tfidf", "--num-dims", 4),
            ("--encoder", "npy", "--embeddings", folder / "v.npy"),
            ("--encoder", "hidden-states", "--embeddings", model),
            ("--encoder", "store", "--embeddings", folder / "index"),
        ]
    ):
        out = folder / f"{number}.jsonl"
        assert run("cover", "--data", data, "--out", out, "--num", 5, *more) == 0
        assert len(lines(out)) == 5


def test_kept_embeddings_are_used_again(data: Path) -> None:
    cache = data.parent / "cache"
    words = ["--encoder", "tfidf", "--num-dims", 4, "--cache", cache]
    assert run("cover", "--data", data, "--out", data.parent / "a.jsonl", "--num", 5, *words) == 0
    before = {path: path.stat().st_mtime_ns for path in cache.rglob("*.npy")}
    assert before
    assert run("dedup", "--data", data, "--out", data.parent / "b.jsonl", *words) == 0
    assert {path: path.stat().st_mtime_ns for path in cache.rglob("*.npy")} == before


def test_mistakes_are_said_in_one_sentence(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = data.parent
    (folder / "bad.npy").write_text("nothing")
    np.save(folder / "short.npy", np.zeros((3, 2)))
    cover = ["cover", "--data", data, "--out", folder / "c.jsonl"]
    mistakes = [
        (cover, "`--num` or `--num-tokens` must say"),
        ([*cover, "--num", -1, *VECTORS], "`num` must be at least 0"),
        ([*cover, "--num", 1, "--encoder", "npy"], "`--embeddings` must be given"),
        ([*cover, "--num", 1, "--encoder", "npy", "--embeddings", folder / "bad.npy"], "be a .npy"),
        ([*cover, "--num", 1, "--encoder", "npy", "--embeddings", folder / "short.npy"], "40 rows"),
        ([*cover, "--num", 1, "--encoder", "column", "--embeddings", "w"], "the column 'w'"),
        ([*cover, "--num", 1, "--encoder", "column", "--embeddings", "text"], "list of numbers"),
        ([*cover, "--num", 1, "--encoder", "hidden-states", "--embeddings", "no"], "be loaded"),
        ([*cover, "--num-tokens", 9, "--tokens-column", "no", *VECTORS], "to count tokens"),
        ([*cover, "--num-tokens", 9, "--tokens-column", "text", *VECTORS], "hold a number"),
        (gio(data, "g.jsonl", "--encoder", "npy", "--embeddings", "x.npy"), "--target-embeddings"),
        (gio(data, "g.jsonl", *VECTORS, "--stop", "increase", "--stop-at", 1), "takes a number"),
        (gio(data, "g.jsonl", *VECTORS, "--num-neighbours", 10), "less than the number of targets"),
        (["dedup", "--data", data, "--out", folder / "d.jsonl", "--threshold", 3], "`threshold`"),
    ]
    for words, message in mistakes:
        assert run(*words) == 1, words
        error = capsys.readouterr().err
        assert message in error, words
        assert "Traceback" not in error
