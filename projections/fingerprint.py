"""Short hashes that tell whether two artefacts belong together."""

import json
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import nn

CHUNK = 1 << 22  # bytes read at a time


def fingerprint_model(model: nn.Module) -> str:
    """Return 16 hexadecimal digits that change with any parameter or buffer of the model."""
    digest = sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def fingerprint_file(path: Path) -> str:
    """Return the SHA-256 of a file."""
    digest = sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def describe(settings: Any) -> dict[str, Any]:
    """Return a frozen settings object as plain JSON values, with its class name.

    An object that has a method ``describe`` describes itself.

    Example:
        >>> from projections.sjlt import SJLT
        >>> describe(SJLT(num_dims=8, seed=0))
        {'kind': 'SJLT', 'num_dims': 8, 'num_signs': 1, 'seed': 0}
    """
    own = getattr(settings, "describe", None)
    if own is not None:
        return own()
    if not is_dataclass(settings) or isinstance(settings, type):
        raise TypeError(f"`settings` must be a dataclass object. Got {settings!r}.")
    return {"kind": type(settings).__name__, **json.loads(json.dumps(asdict(settings)))}


def differences(expected: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """Return one line for each entry that differs."""
    return [
        f"{key}: {expected.get(key)!r} against {found.get(key)!r}"
        for key in dict.fromkeys([*expected, *found])
        if expected.get(key) != found.get(key)
    ]
