"""What benchmarks keep is kept by the code behind it: digits that change when it does."""

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))  # which is no package

import code_behind as behind  # noqa: E402  # pyright: ignore[reportMissingImports]

METHODS = '''
from numbers_of import FACTOR
from influence import TFIDF

def twice(x):
    """Double."""
    return helper(x) * FACTOR

def helper(x): return x

def other(x): return x + 1

TABLE = {"twice": twice, "of texts": TFIDF(), "other": other, "three": scaled(3)}

def scaled(by): return lambda x: x * by
'''
NUMBERS = "FACTOR = 2\nUNUSED = 5\n"


def forget() -> None:
    for function in vars(behind).values():
        if hasattr(function, "cache_clear"):
            function.cache_clear()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of scripts, as the benchmarks are."""
    monkeypatch.setattr(behind, "FOLDER", tmp_path)
    (tmp_path / "methods_of.py").write_text(METHODS)
    (tmp_path / "numbers_of.py").write_text(NUMBERS)
    forget()
    yield tmp_path
    forget()


def digits(*roots: str) -> str:
    forget()
    return behind.code_behind(*roots)


def changed(path: Path, old: str, new: str) -> None:
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))


def test_digits_change_with_what_is_called_upon_and_with_nothing_else(folder: Path) -> None:
    root = "methods_of:TABLE[twice]"
    first = digits(root)
    changed(folder / "methods_of.py", '"""Double."""', '"""Multiply by two."""  # not by three')
    changed(folder / "methods_of.py", "def helper(x)", "def helper(x: int) -> int")
    changed(folder / "methods_of.py", "return x + 1", "return x + 2")
    changed(folder / "numbers_of.py", "UNUSED = 5", "UNUSED = 6")
    assert digits(root) == first
    changed(folder / "numbers_of.py", "FACTOR = 2", "FACTOR = 3")
    second = digits(root)
    assert second != first
    changed(folder / "methods_of.py", "-> int: return x", "-> int: return -x")
    assert digits(root) not in (first, second)


def test_the_settings_of_an_entry_of_a_table_count(folder: Path) -> None:
    first, other = digits("methods_of:TABLE[three]"), digits("methods_of:TABLE[other]")
    changed(folder / "methods_of.py", "scaled(3)", "scaled(4)")
    assert digits("methods_of:TABLE[three]") != first
    assert digits("methods_of:TABLE[other]") == other
    with pytest.raises(ValueError, match=r"must name what is there.*TABLE has no 'four'"):
        digits("methods_of:TABLE[four]")


def test_modules_of_the_library_count_with_all_that_they_import(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    roots = ("methods_of:TABLE[of texts]", "methods_of:TABLE[other]")
    before = [digits(root) for root in roots]
    source = behind.source.__wrapped__

    def edited(module: str) -> str:
        return source(module) + "\nEDITED = 1\n" * (module == "projections.scores")

    monkeypatch.setattr(behind, "source", edited)
    after = [digits(root) for root in roots]
    assert after[0] != before[0] and after[1] == before[1]
    with pytest.raises(ValueError, match=r"modules with a source\. Got 'no_such_module'"):
        source("no_such_module")


def test_the_scores_of_a_method_are_kept_by_its_own_code_and_not_by_that_of_others() -> None:
    forget()
    attribution = importlib.import_module("attribution_scores")

    def code(method: str) -> set[str]:
        found = behind.Found()
        for root in attribution.code_of(method):
            found.add(root)
        return set(found.parts)

    ekfac, none = code("EK-FAC"), code("random")
    assert {"influence.ekfac", "influence.curvature", "projections.passes"} <= ekfac
    assert "attribution_scores:score" in none and "influence.ekfac" not in none
