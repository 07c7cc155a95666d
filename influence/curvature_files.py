"""Eigenvectors and eigenvalues of every linear map, in one safetensors file.

Rotations that layers share are written once, under the name of the first that has them.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from influence.kfac_math import LayerCurvature, Rotation
from projections import StoreMismatchError, replacing

FORMAT = "gradsift-curvature-2"  # 2 keeps the damping


def write_layers(path: Path, layers: Mapping[str, LayerCurvature], note: Mapping[str, Any]) -> None:
    """Write layers, and a note of plain JSON values about them."""
    tensors: dict[str, Tensor] = {}
    owners: dict[int, str] = {}
    index: dict[str, Any] = {}
    for name, layer in layers.items():
        sides = {}
        for side, rotation in (("left", layer.left), ("right", layer.right)):
            owner = owners.setdefault(id(rotation), f"{name}|{side}")
            sides[side] = [owner, len(rotation.blocks), rotation.size]
            if owner == f"{name}|{side}":
                for number, block in enumerate(rotation.blocks):
                    tensors[f"{owner}|{number}"] = block.cpu().contiguous()
        tensors[f"{name}|eigenvalues"] = layer.eigenvalues.cpu().contiguous()
        index[name] = sides
    text = json.dumps({"format": FORMAT, **note, "index": index})
    with replacing(path) as file:
        file.write(save(tensors, metadata={"gradsift": text}))


def read_layers(
    path: Path, keep: Callable[[Tensor], Tensor]
) -> tuple[dict[str, LayerCurvature], dict[str, Any]]:
    """Return what `write_layers` wrote: the layers, and the note.

    Args:
        path: The file.
        keep: From a tensor that lies in the file to what is kept of it.

    Raises:
        StoreMismatchError: The file is none, or damaged.
    """
    tensors, note = _read(path, keep)
    rotations: dict[str, Rotation] = {}
    layers = {}
    for name, sides in note["index"].items():
        for owner, count, size in sides.values():
            blocks = tuple(tensors[f"{owner}|{number}"] for number in range(count))
            rotations.setdefault(owner, Rotation(blocks, size))
        layers[name] = LayerCurvature(
            rotations[sides["left"][0]],
            rotations[sides["right"][0]],
            tensors[f"{name}|eigenvalues"],
        )
    return layers, note


def _read(path: Path, keep: Callable[[Tensor], Tensor]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors of a file and what is said of them."""
    try:
        with safe_open(str(path), "pt") as file:
            note = json.loads((file.metadata() or {}).get("gradsift", "{}"))
            tensors = {key: keep(file.get_tensor(key)) for key in file.keys()}  # noqa: SIM118
    except Exception as error:  # safetensors raises its own type and OSError
        raise StoreMismatchError(
            f"{path} must be a saved curvature, and cannot be read: {error}. Fit it again."
        ) from error
    if note.get("format") != FORMAT:
        raise StoreMismatchError(f"{path} must be a saved curvature. It is something else.")
    return tensors, note
