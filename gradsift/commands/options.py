"""What commands share: how data is read, options to JSON and back, lines that sum up.

Every command is a frozen set of options that writes itself, resolved, beside its output.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, is_dataclass
from dataclasses import fields as dataclass_fields
from pathlib import Path
from typing import Any, Literal, Protocol, cast, get_args, get_type_hints

import numpy as np
from torch import nn

from projections import DataError, PassSettings, find_heads, write_json

CONFIG = "config.json"
SNIPPET = 160  # characters of a text that a line shows


class Command(Protocol):
    """Options of one command, and what carries them out."""

    def run(self) -> Iterator[str]:
        """Do the work, and return the lines that say what was done."""
        ...


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How a pass reads its data, and which gradients it takes from the model."""

    batch_size: int = 32
    """Most examples in a batch."""

    max_tokens: int | None = 16_384
    """Most tokens in a batch, padding included."""

    shard_size: int = 1024
    """Rows that are finished, and safe, at a time."""

    layers: tuple[str, ...] | None = None
    """Patterns of the layers to look at, such as "*.mlp.*"; all of them if left out."""

    by_head: bool = False
    """Take attention layers apart, so that each head is a component of its own; `--layers` may
    then name single heads."""

    autocast: Literal["bfloat16"] | None = None
    """Run the model under autocast: faster on most GPUs, and as exact as its activations."""


READING = Reading()


def pass_settings(reading: Reading, model: nn.Module) -> PassSettings:
    """Return the settings of a pass over a model.

    Raises:
        ValueError: Heads are asked for, and the model has none that are known.
    """
    values = asdict(reading)
    heads = find_heads(model) if values.pop("by_head") else ()
    return PassSettings(**values, heads=heads)


def as_json(options: Any) -> dict[str, Any]:
    """Return options as plain JSON values."""
    return json.loads(json.dumps(asdict(options), default=str))


def write_config(options: Command, path: Path) -> None:
    """Write the resolved options."""
    write_json(path, {"command": type(options).__name__.lower(), **as_json(options)})


def config_beside(path: Path) -> Path:
    """Return where the options of a command that writes one file go."""
    return path.with_name(path.name + "." + CONFIG)


def command_from_json(kind: type[Any], values: Mapping[str, Any], *, missing: Any = None) -> Any:
    """Return options from plain JSON values, such as a configuration that was written.

    Args:
        kind: The class of the options.
        values: Values by field; options within options are mappings.
        missing: Stands for fields that have no default and no value; None refuses them.

    Raises:
        DataError: A field is unknown or missing.
    """
    hints = get_type_hints(kind)
    fields = {field.name: field for field in dataclass_fields(kind)}
    unknown = sorted(set(values) - set(fields) - {"command"})
    if unknown:
        raise DataError(
            f"the configuration of {kind.__name__.lower()} must have only the fields "
            f"{sorted(fields)}. Got also {unknown}."
        )
    built = {}
    for name, field in fields.items():
        required = field.default is MISSING
        if is_dataclass(hints[name]) and (name in values or required):
            built[name] = command_from_json(
                cast(type, hints[name]), values.get(name, {}), missing=missing
            )
        elif name in values:
            built[name] = _typed(values[name], hints[name])
        elif required and missing is not None:
            built[name] = missing
        elif required:
            raise DataError(f"the configuration of {kind.__name__.lower()} must have {name!r}.")
    return kind(**built)


def _typed(value: Any, hint: Any) -> Any:
    """Return a JSON value as the type of its field: a path, a tuple, or as it is."""
    if isinstance(value, list):
        return tuple(value)
    if isinstance(value, str) and Path in (hint, *get_args(hint)):
        return Path(value)
    return value


def summary(values: Sequence[float] | np.ndarray) -> str:
    """Return the quartiles of some numbers."""
    low, middle, high = np.quantile(values, [0.25, 0.5, 0.75])
    return f"median {middle:.4g}, quartiles {low:.4g} and {high:.4g}"


def snippet(text: str) -> str:
    """Return the start of a text on one line."""
    line = " ".join(text.split())
    return line if len(line) <= SNIPPET else line[: SNIPPET - 3] + "..."
