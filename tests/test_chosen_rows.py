"""What was drawn is written as it was, reported on truthfully, and drawn by a command."""

import gzip
import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from test_dsir import FITTED, RAW, TARGET, fit, write
from torch.utils.data import DataLoader

from gradsift.cli import main
from projections import DataError, TextColumns, Texts, read_dataset
from selection import (
    DrawBatchSampler,
    DrawReport,
    Selection,
    SelectionDraws,
    report_draw,
    row_writer,
    write_chosen,
)
from selection.dsir.report import kl_divergence

CHOSEN = FITTED.select(RAW, num_selected=40)
TEXTS = Texts(RAW, TextColumns(domain="domain"))


@pytest.mark.parametrize("ending", ["jsonl", "jsonl.gz", "jsonl.zst", "parquet", "csv"])
def test_chosen_rows_are_written_in_the_order_of_the_data(
    tmp_path: Path, ending: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("projections.text_sources.BLOCK_ROWS", 30)
    path = tmp_path / f"chosen.{ending}"
    write_chosen(CHOSEN, RAW, path)
    kept = set(CHOSEN.ids.tolist())
    assert list(read_dataset(path)) == [row for row in RAW if row["id"] in kept]


def test_nothing_chosen_is_an_empty_file(tmp_path: Path) -> None:
    for ending in ("jsonl", "parquet", "csv"):
        write_chosen(Selection(np.empty(0, str), np.empty(0)), RAW, tmp_path / f"none.{ending}")
    assert (tmp_path / "none.jsonl").read_bytes() == b""


def test_pieces_are_written_with_their_own_text(tmp_path: Path) -> None:
    fitted = fit(chunk_tokens=10, min_length=10)
    chosen = fitted.select(RAW, num_selected=20)
    write_chosen(chosen, RAW, tmp_path / "pieces.jsonl", chunk_tokens=10)
    rows = [json.loads(line) for line in (tmp_path / "pieces.jsonl").read_text().splitlines()]
    assert {row["id"] for row in rows} == set(chosen.ids.tolist())
    texts = {row["id"]: row["text"] for row in RAW}
    for row in rows:
        whole, number = row["id"].rsplit(":", 1)
        words = texts[whole].split()[10 * int(number) :][:10]
        assert row["text"].split() == words
        assert row["domain"] in "abc"


def test_data_that_lacks_a_chosen_id_or_repeats_it_is_refused(tmp_path: Path) -> None:
    for rows in (RAW[:200], RAW + RAW):
        with pytest.raises(DataError, match=r"must hold every chosen id once\. It holds"):
            write_chosen(CHOSEN, rows, tmp_path / "chosen.jsonl")
        assert list(tmp_path.iterdir()) == []


def test_tables_with_other_columns_are_refused(tmp_path: Path) -> None:
    for rows in ([{"a": 1}], [{"b": "x"}]):
        with (
            pytest.raises(DataError, match=r"must have the same columns in every row.*\.jsonl"),
            row_writer(tmp_path / "a.parquet") as write_rows,
        ):
            write_rows([{"b": 1}])
            write_rows(rows)
    with pytest.raises(DataError, match="must end in one of"), row_writer(tmp_path / "a.txt"):
        pass


# The report.


def test_a_report_says_how_near_the_choice_came() -> None:
    found = report_draw(FITTED, TEXTS, CHOSEN, num_workers=2).facts
    assert found["kl"]["after"] < found["kl"]["before"] < found["kl"]["random"] + 0.5
    rows = {row["id"]: row for row in RAW}
    own = FITTED.settings.ngrams
    import pyarrow as pa

    counts = np.bincount(
        own(pa.array([rows[row]["text"] for row in CHOSEN.ids.tolist()])).buckets, minlength=500
    )
    assert found["kl"]["after"] == pytest.approx(kl_divergence(FITTED.target_counts[0], counts))
    assert found["rows"] == 400
    assert found["chosen"] == 40
    assert found["tokens"] == CHOSEN.columns["num_tokens"].sum()
    domains = [rows[row]["domain"] for row in CHOSEN.ids.tolist()]
    for name, (before, after) in found["domains"].items():
        assert before == pytest.approx(sum(row["domain"] == name for row in RAW) / 400)
        assert after == pytest.approx(domains.count(name) / 40)
    weights = FITTED.log_weights(RAW)
    order = np.argsort(-weights.columns["log_weight"])
    values = weights.columns["log_weight"][order].tolist()
    assert [one["log_weight"] for one in found["largest"]] == values[:5]
    assert [one["log_weight"] for one in found["smallest"]] == values[::-1][:5]
    other = FITTED.select(RAW, num_selected=40, seed=1).ids.tolist()
    assert found["agreement"] == len(set(other) & set(CHOSEN.ids.tolist())) / 40
    middle = np.median(CHOSEN.columns["num_tokens"])
    assert found["lengths"]["after"][1] == pytest.approx(middle, rel=0.1)


def test_a_report_does_not_depend_on_workers_or_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = report_draw(FITTED, TEXTS, CHOSEN)
    monkeypatch.setattr("projections.text_sources.BLOCK_ROWS", 33)
    found = report_draw(FITTED, TEXTS, CHOSEN, num_workers=3)
    assert found.lines() == expected.lines()
    assert json.dumps(found.facts) == json.dumps(expected.facts)


def test_a_report_of_several_targets_and_of_nothing_has_lines() -> None:
    fitted = FITTED.settings.fit(RAW, {"one": TARGET, "two": RAW[:50]})
    lines = report_draw(fitted, RAW, fitted.select(RAW, num_selected=10)).lines()
    assert "one" in lines[0]
    nothing = fit(min_length=10**6)
    lines = report_draw(nothing, RAW, nothing.select(RAW, num_selected=10)).lines()
    assert "effective sample size none" in lines[0]
    assert "none, none, none after" in lines[2]
    assert isinstance(report_draw(nothing, [], nothing.select([], num_selected=1)), DrawReport)


# The command.


def run(*words: object) -> int:
    return main([str(word) for word in words])


@pytest.fixture
def files(tmp_path: Path) -> list[Any]:
    raw = [write(tmp_path / f"raw{n}.jsonl.gz", RAW[n::2]) for n in range(2)]
    target = write(tmp_path / "target.jsonl", TARGET)
    words = ["dsir", "--raw", *raw, "--target", target, "--out", tmp_path / "out.jsonl"]
    return [*words, "--min-length", 5, "--num-buckets", 500, "--smoothing", 0.1]


def test_the_command_draws_what_the_library_draws(
    files: list[Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["--domain-column", "domain", "--rejected", tmp_path / "why.parquet", "--workers", 2]
    assert run(*files, "--num", 40, *more) == 0
    shown = capsys.readouterr().out
    assert "chose 40 of 400 rows" in shown
    assert "KL to the target" in shown
    kept = set(CHOSEN.ids.tolist())
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert {row["id"] for row in rows} == kept
    chosen = Selection.load(tmp_path / "out.jsonl.selection.parquet")
    assert chosen.ids.tolist() == CHOSEN.ids.tolist()
    reasons = read_dataset(tmp_path / "why.parquet")
    assert set(reasons["id"]) == {row["id"] for row in RAW} - kept
    assert not (tmp_path / "out.jsonl.work").exists()
    written = tmp_path / "out.jsonl.config.json"
    first = (tmp_path / "out.jsonl").read_bytes()
    assert run("dsir", "--config", written, "--out", tmp_path / "again.jsonl") == 0
    assert (tmp_path / "again.jsonl").read_bytes() == first


def test_the_command_goes_on_after_a_damaged_file_was_mended(
    files: list[Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    last = tmp_path / "raw1.jsonl.gz"
    whole = last.read_bytes()
    last.write_bytes(whole[: len(whole) // 2])
    assert run(*files, "--num", 40) == 1
    error = capsys.readouterr().err
    assert "raw1.jsonl.gz must be a whole compressed file. It breaks off after line" in error
    assert not (tmp_path / "out.jsonl").exists()
    content = gzip.decompress(whole).split(b"\n")
    content[7] = b'{"id": "x", "text": "caf\xe9"}'
    last.write_bytes(gzip.compress(b"\n".join(content)))
    assert run(*files, "--num", 40) == 1
    assert "raw1.jsonl.gz, line 8: the text must be UTF-8" in capsys.readouterr().err


def test_the_command_takes_separate_targets_and_shares(
    files: list[Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = write(tmp_path / "other.jsonl", RAW[:60])
    words = [*files, "--num", 40, "--no-report", "--domain-column", "domain"]
    where = words.index(tmp_path / "target.jsonl") + 1
    words[where:where] = [other, "--separate-targets", "--proportions", 1, 3]
    assert run(*words, "--domains", "a=1", "b=1") == 0
    chosen = Selection.load(tmp_path / "out.jsonl.selection.parquet")
    assert chosen.columns["target"].tolist().count(str(other)) == 30
    assert "KL" not in capsys.readouterr().out
    for wrong in ("a", "=3", "a=x"):
        assert run(*files, "--num", 4, "--domains", wrong) == 1
        assert f"a share must be like wiki=3. Got {wrong!r}" in capsys.readouterr().err
    assert run(*files, "--num", 4, "--proportions", 1, 2) == 1
    assert "must be one number for each of the targets" in capsys.readouterr().err


def test_the_command_refuses_before_the_long_computation(
    files: list[Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*files) == 1
    assert "exactly one of `num_selected` and `num_tokens`" in capsys.readouterr().err
    assert run(*files, "--num", 3, "--out", tmp_path / "out.txt") == 1
    assert "must end in one of" in capsys.readouterr().err
    assert run(*files, "--num", 3, "--raw", tmp_path / "none.jsonl") == 1
    assert "There is no such file" in capsys.readouterr().err


def test_the_command_says_when_there_is_not_enough(
    files: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*files, "--num-tokens", 10**9, "--no-report") == 0
    shown = capsys.readouterr().out
    assert "rows have fewer than 5 tokens" in shown
    assert "there was not enough for the 1,000,000,000 that were asked for" in shown


def test_what_was_written_before_is_not_lost_by_a_run_that_fails(
    files: list[Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*files, "--num", 40) == 0
    before = {path.name: path.read_bytes() for path in tmp_path.glob("out.jsonl*")}
    last = tmp_path / "raw1.jsonl.gz"
    last.write_bytes(last.read_bytes()[:-40])
    assert run(*files, "--num", 60) == 1
    assert "raw1.jsonl.gz must be a whole compressed file" in capsys.readouterr().err
    for name, content in before.items():
        assert (tmp_path / name).read_bytes() == content


def test_an_interrupted_command_says_how_to_go_on(
    files: list[Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("gradsift.commands.dsir.write_chosen", interrupt)
    assert run(*files, "--num", 40) == 130
    assert "interrupted; run the same command to go on" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        run("dsir", "--nonsense")


KILLED = """
import os, signal, sys
import projections.text_sources, selection.dsir.passes as passes
from gradsift.cli import main

projections.text_sources.BLOCK_BYTES, passes.SAVE_EVERY, left = 5_000, 0.0, [int(sys.argv[1])]
save = passes.FolderCheckpoint.save

def save_and_die(*arguments):
    save(*arguments)
    left[0] -= 1
    if not left[0]:
        os.kill(os.getpid(), signal.SIGKILL)

passes.FolderCheckpoint.save = save_and_die
sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("saves", [1, 3, 5])
def test_a_command_that_is_killed_goes_on_and_ends_with_the_same_bytes(
    files: list[Any], tmp_path: Path, saves: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [str(word) for word in [*files, "--num", 40]]
    command = [sys.executable, "-c", KILLED, str(saves), *words]
    killed = subprocess.run(command, capture_output=True, text=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not (tmp_path / "out.jsonl").exists()
    monkeypatch.setattr("projections.text_sources.BLOCK_BYTES", 5_000)
    assert run(*words) == 0
    went_on = (tmp_path / "out.jsonl").read_bytes()
    shutil.rmtree(tmp_path / "out.jsonl.work", ignore_errors=True)
    assert run(*words, "--out", tmp_path / "whole.jsonl") == 0
    assert (tmp_path / "whole.jsonl").read_bytes() == went_on


def test_one_selection_is_applied_to_a_dataset_a_file_and_a_sampler(tmp_path: Path) -> None:
    kept = set(CHOSEN.ids.tolist())
    data = datasets.Dataset.from_list(RAW)
    assert set(CHOSEN.apply(data)["id"]) == kept
    path = write(tmp_path / "raw.jsonl", RAW)
    write_chosen(CHOSEN, Texts(path), tmp_path / "chosen.parquet")
    assert set(read_dataset(tmp_path / "chosen.parquet")["id"]) == kept
    even = Selection(CHOSEN.ids, np.ones(len(CHOSEN)))
    draws = SelectionDraws(even, data, batch_size=len(CHOSEN), seed=0)
    loader = DataLoader(data, batch_sampler=DrawBatchSampler(draws, num_batches=1))  # pyright: ignore[reportArgumentType]
    (batch,) = loader
    assert set(batch["id"]) == kept
