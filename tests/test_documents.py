"""What documents say is so: links lead somewhere, commands can be typed, packages are all named."""

import re
import shlex
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from gradsift.cli import parse
from gradsift.commands import COMMANDS

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("benchmarks/*.md")])
PROSE = [page for page in PAGES if page.name != "commands.md"]  # which is written from the commands
NAMES = [str(page.relative_to(ROOT)) for page in PROSE]
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]*")


def typed(text: str) -> Iterator[list[str]]:
    """Yield the command lines in the blocks of a page, as a shell would cut them."""
    for block in re.findall(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            if re.match(r"(\$ )?gradsift ", line):
                yield shlex.split(line.removeprefix("$ "), comments=True)


def mentioned(text: str, start: str) -> list[str]:
    """Return the code between single backticks that starts in one way."""
    found = re.findall(r"(?<!`)`([^`]+)`(?!`)", text)
    return [" ".join(code.split()) for code in found if code.startswith(start)]


@cache
def options_of(command: str) -> set[str]:
    """Return the options of a command, as its help shows them."""
    text = (ROOT / "docs" / "commands.md").read_text()
    part = text.partition(f"## gradsift {command}\n")[2].partition("\n## ")[0]
    return set(OPTION.findall(part))


@cache
def options_of_script(path: Path) -> re.Pattern[str]:
    """Return a pattern of the options that a benchmark adds, and those of all benchmarks."""
    texts = [path.read_text(), (ROOT / "benchmarks" / "measuring.py").read_text()]
    found = {option for text in texts for option in re.findall(r'"(--[a-z][a-z-]*)"', text)}
    ends = re.findall(r'f"--\{\w+\}(-[a-z-]+)"', texts[0])  # one option for each of some names
    return re.compile("|".join([*sorted(found), *(f"--[a-z]+{end}" for end in ends)]))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_relative_link_leads_to_a_file(page: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text())
    near = [link for link in links if "://" not in link]
    assert [link for link in near if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("name", NAMES)
def test_every_command_in_a_block_can_be_typed(name: str) -> None:
    for words in typed((ROOT / name).read_text()):
        assert parse(words[1:]) is not None


@pytest.mark.parametrize("name", NAMES)
def test_options_that_are_mentioned_are_options_of_the_command(name: str) -> None:
    for code in mentioned((ROOT / name).read_text(), "gradsift "):
        command = code.split()[1]
        if command in COMMANDS:
            assert set(OPTION.findall(code)) <= options_of(command), code
        else:
            assert command in ("X", "…", "..."), code


@pytest.mark.parametrize("name", NAMES)
def test_benchmarks_that_are_mentioned_are_there_with_their_options(name: str) -> None:
    for code in mentioned((ROOT / name).read_text(), "python "):
        script = ROOT / code.split()[1]
        assert script.exists(), code
        if script.parent.name == "benchmarks":
            known = options_of_script(script)
            assert all(known.fullmatch(option) for option in OPTION.findall(code)), code


def test_all_packages_are_installed() -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    ours = ("projections", "influence", "selection", "gradsift")
    there = [path.parent for package in ours for path in (ROOT / package).rglob("__init__.py")]
    assert sorted(listed) == sorted(".".join(path.relative_to(ROOT).parts) for path in there)
