"""Short hashes that tell whether two artefacts belong together."""

import json
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from projections.sharded import own_part, put_away, whole

CHUNK = 1 << 22  # bytes read at a time
_known: WeakKeyDictionary[nn.Module, tuple[Any, str]] = WeakKeyDictionary()


def fingerprint_model(model: nn.Module) -> str:
    """Return 16 hexadecimal digits that change with any parameter or buffer of the model.

    Computed again when a tensor was replaced or written to since the last time. A model that
    is spread over ranks has that of the same model in one piece.
    """
    put_away(model)
    state = dict(sorted(model.state_dict().items()))
    seen = _versions(state)
    known = _known.get(model)
    if known is not None and seen is not None and known[0] == seen:
        return known[1]
    digest = sha256()
    for name, tensor in state.items():
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        content: Any = whole(tensor.detach()).cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(content.numpy())
    found = digest.hexdigest()[:16]
    _known[model] = (seen, found)
    return found


def _versions(state: Mapping[str, Tensor]) -> Any:
    """Return what changes when a tensor is written to; None where nothing is counted.

    Writing through ``tensor.data`` is not counted, and is seen by the first and last entry.
    """
    if any(tensor.is_inference() for tensor in state.values()):
        return None
    own = {name: own_part(tensor) for name, tensor in state.items()}
    full = [tensor.detach().flatten() for tensor in own.values() if tensor.numel()]
    ends = [end.double() for flat in full for end in (flat[0], flat[-1])]
    counted = [(name, own[name].data_ptr(), tensor._version) for name, tensor in state.items()]
    return counted, torch.stack(ends).tolist() if ends else []


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
