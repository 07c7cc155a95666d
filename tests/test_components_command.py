"""The command components, as a stranger types it."""

import json
from pathlib import Path

import numpy as np
import pytest
from test_cli import WORDS, run
from test_cli import model as model

from influence import ComponentProducts


@pytest.fixture
def data(tmp_path: Path) -> Path:
    draw = np.random.default_rng(0)
    rows = [
        {"id": f"r{row}", "text": " ".join(draw.choice(WORDS, 8)), "author": row // 2}
        for row in range(24)
    ]
    path = tmp_path / "train.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = [{"text": " ".join(row["text"].split()[::-1]), "source": row["id"]} for row in rows]
    (tmp_path / "asked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked[:10]))
    return path


def test_components_are_chosen_for_queries_of_a_file(
    model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    words = ["components", "--model", model, "--data", data, "--out", out, "--by-head"]
    words += ["--queries", data.parent / "asked.jsonl", "--group-column", "author"]
    assert run(*words, "--budget", 900, "--search", "beam") == 0
    shown = capsys.readouterr().out
    assert "10 queries, 5 candidates each" in shown
    assert "guessing                             20.0%" in shown
    assert "best single component" in shown
    found = json.loads((out / "chosen.json").read_text())
    products = ComponentProducts.load(out / "products.npz")
    assert "model.layers.0.self_attn.q_proj[q,1]" in products.names
    sizes = {component.name: component.size for component in products.components}
    assert sum(sizes[name] for name in found["names"]) == found["cost"] <= 900
    assert run(*words, "--objective", "agreement", "--search", "backward") == 0
    build = ["index", "--model", model, "--data", data, "--out", tmp_path / "index", "--by-head"]
    assert run(*build, "--num-dims", 32, "--layers", *found["names"]) == 0


def test_beginnings_of_texts_are_queries_where_there_are_none(
    model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["components", "--model", model, "--data", data, "--out", tmp_path / "out"]
    assert run(*words, "--num-queries", 8, "--beginning", 0.5) == 0
    assert "8 queries, 5 candidates each" in capsys.readouterr().out


def test_what_is_missing_is_named(
    model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["components", "--model", model, "--data", data, "--out", tmp_path / "out"]
    assert run(*words, "--queries", data) == 1
    assert "queries must have the column 'source'" in capsys.readouterr().err
    assert run(*words, "--group-column", "domain") == 1
    assert "the data must have the column 'domain'" in capsys.readouterr().err
    assert run(*words, "--budget", 3) == 1
    assert (
        "`most` must be at least the cheapest component, 16 parameters" in capsys.readouterr().err
    )
    assert not (tmp_path / "out").exists()
