"""A Ray cluster that is not there is refused in seconds, whatever its address looks like."""

import time
from pathlib import Path
from socket import socket
from typing import Any

import pytest
from test_cli import run

from gradsift.clusters import PATIENCE, check_answers, join_cluster
from projections import DataError

ray: Any = pytest.importorskip("ray")


@pytest.fixture
def dead() -> str:
    """An address of this machine at which nothing listens."""
    with socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


def test_an_address_at_which_nothing_listens_is_refused_at_once(dead: str) -> None:
    pytest.importorskip("ray.data")
    began = time.monotonic()
    for address in (dead, f"ray://{dead}"):
        with pytest.raises(ConnectionError, match=r"nothing answers at 127.0.0.1, port \d+: .*"):
            join_cluster(address)
    assert time.monotonic() - began < 2 * PATIENCE
    assert not ray.is_initialized()


def test_auto_is_refused_where_its_cluster_is_gone_or_was_never(
    dead: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    services: Any = pytest.importorskip("ray._private.services")
    monkeypatch.setattr(services, "find_gcs_addresses", set)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(ConnectionError, match=r"must lead to a Ray cluster .* Got 'auto': Could"):
        check_answers("auto")
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "ray_current_cluster").write_text(dead)
    with pytest.raises(ConnectionError, match=r"Got .auto.: nothing answers at 127\.0"):
        check_answers("auto")
    monkeypatch.setenv("RAY_ADDRESS", dead)
    with pytest.raises(ConnectionError, match=r"`ray start --head`, .* or use `--ray local`\."):
        check_answers("auto")
    check_answers("local")


@pytest.mark.parametrize("address", ["head", "10.0.0.1", "10.0.0.1:many", "head:99999"])
def test_an_address_without_a_port_is_refused(address: str) -> None:
    with pytest.raises(DataError, match=r"such as 10.0.0.1:6379 .*Got '"):
        check_answers(address)


def test_a_command_says_it_before_it_works(
    dead: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("ray.data")
    (tmp_path / "raw.jsonl").write_text('{"id": "a", "text": "one two"}\n')
    words: list[object] = ["--raw", tmp_path / "raw.jsonl", "--target", tmp_path / "raw.jsonl"]
    out = tmp_path / "out.jsonl"
    assert run("dsir", *words, "--num", 1, "--out", out, "--ray", dead) == 1
    assert "nothing answers at 127.0.0.1" in capsys.readouterr().err
    assert not out.exists()
