"""What the packages offer exists and is described, and importing them stays light."""

import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("projections", "influence", "selection")
HEAVY = ("faiss", "matplotlib", "ray", "sklearn")
ALIASES = {
    "BasisName",
    "Provenance",
    "FisherName",
    "Encoder",
    "Losses",
}  # names of types, described below themselves


def public(package: str) -> list[tuple[str, Any]]:
    module = import_module(package)
    return [(name, getattr(module, name, None)) for name in module.__all__]


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_exists_once(package: str) -> None:
    names = import_module(package).__all__
    assert len(set(names)) == len(names)
    assert [name for name, value in public(package) if value is None] == []


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_has_a_docstring_of_its_own(package: str) -> None:
    wanting = [
        name
        for name, value in public(package)
        if name not in ALIASES
        and (callable(value) and not vars(value).get("__doc__", value.__doc__))
    ]
    assert wanting == []


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_method_has_a_docstring(package: str) -> None:
    wanting = [
        f"{name}.{attribute}"
        for name, value in public(package)
        if isinstance(value, type)
        for attribute, member in vars(value).items()
        if not attribute.startswith("_") and callable(member) and not member.__doc__
    ]
    assert wanting == []


def test_importing_the_packages_does_not_import_what_they_may_not_need() -> None:
    found = f"[m for m in {HEAVY} if m in sys.modules]"
    program = f"import sys; import {', '.join(PACKAGES)}; print({found})"
    ended = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert ended.stdout.strip() == "[]"


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_are_marked_as_typed(package: str) -> None:
    assert (ROOT / package / "py.typed").exists()
