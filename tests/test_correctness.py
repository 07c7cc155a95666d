"""The tests that `docs/correctness.md` names are there, and its table is the one of the toy."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "correctness.md").read_text()
NAMED = sorted(set(re.findall(r"`(test_\w+\.py)::(test_\w+)`", PAGE)))


@pytest.mark.parametrize("file", sorted({file for file, _ in NAMED}))
def test_every_test_that_is_named_exists(file: str) -> None:
    text = (ROOT / "tests" / file).read_text()
    there = set(re.findall(r"^def (test_\w+)\(", text, re.MULTILINE))
    assert {name for owner, name in NAMED if owner == file} <= there


def test_the_table_of_the_toy_is_the_one_that_was_measured() -> None:
    measured = (ROOT / "benchmarks" / "peers_toy.md").read_text()
    rows = [line for line in measured.splitlines() if line.startswith("|")]
    assert rows and all(row in PAGE for row in rows)
