"""Checks of arguments: each message says what must hold, what came and what to do."""

from collections.abc import Collection, Sequence
from fnmatch import fnmatchcase
from importlib import import_module
from types import ModuleType


def check_at_least(name: str, value: float, least: float) -> None:
    """Refuse a number below ``least``, and NaN."""
    if not value >= least:
        raise ValueError(f"`{name}` must be at least {least}. Got {value}.")


def check_between(name: str, value: float, least: float, most: float, meaning: str = "") -> None:
    """Refuse a number outside ``[least, most]``, and NaN."""
    if not least <= value <= most:
        why = f" ({meaning})" if meaning else ""
        raise ValueError(f"`{name}` must be in [{least}, {most}]{why}. Got {value}.")


def check_one_of(name: str, value: str, allowed: Collection[str]) -> None:
    """Refuse a word that is not in the list."""
    if value not in allowed:
        words = ", ".join(repr(word) for word in sorted(allowed))
        raise ValueError(f"`{name}` must be one of {words}. Got {value!r}.")


def check_patterns(name: str, patterns: Sequence[str]) -> None:
    """Refuse no patterns, and one string, which would be a pattern for each letter."""
    if isinstance(patterns, str) or not patterns:
        raise ValueError(f"`{name}` must be a tuple of patterns, at least one. Got {patterns!r}.")


def matches(name: str, patterns: Sequence[str]) -> bool:
    """Tell whether a parameter, or the module that owns it, matches one of the patterns."""
    return name_matches(name, patterns) or name_matches(name.rpartition(".")[0], patterns)


def name_matches(name: str, patterns: Sequence[str]) -> bool:
    """Tell whether a name matches one of the patterns.

    Brackets in a pattern may also be those of an attention head, as in ``"c_attn[q,3]"``.
    """
    return any(fnmatchcase(name, p) or fnmatchcase(name, p.replace("[", "[[]")) for p in patterns)


def check_not_empty(name: str, length: int) -> None:
    """Refuse an empty collection."""
    if length == 0:
        raise ValueError(f"`{name}` must hold at least one example. Got none.")


def require(module: str, install: str) -> ModuleType:
    """Import an optional dependency, or say how to install it.

    Args:
        module: Name of the module to import.
        install: The command that installs it.

    Raises:
        ImportError: The module is not installed.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise ImportError(
            f"this needs the package {module!r}, which is not installed. Install it with: {install}"
        ) from error
