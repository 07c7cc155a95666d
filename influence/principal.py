"""Principal directions of gradients: the fewest numbers that say the most of each.

Letters: ``n`` examples, ``m`` of them that are learned from, ``c`` coordinates of the
eigenbasis, ``k`` numbers of a row.

A row is ``B^T z``: ``z`` are many coordinates of the eigenbasis and ``B = T^-1/2 V``, where
``V`` are the principal directions of a sample of the training gradients, in coordinates in
which the target ``T`` of the metric is the identity. Gradients of examples are far from
filling the space of the parameters, so that a few hundred directions keep what thousands of
single coordinates keep (measured in `benchmarks/influence_index.md`).

References:
    Halko, Martinsson and Tropp, Finding structure with randomness (2011), arXiv:0909.4061,
    for directions from a sample; Choe et al., What is your data worth to GPT? (2024),
    arXiv:2405.13954, for principal directions of each side of a layer.
"""

import json
import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Float
from safetensors.torch import load_file, save
from torch import Tensor

from influence.curvature import FittedCurvature
from influence.eigen_index import EigenProjector, MetricName
from influence.linear_layers import linear_uses
from projections import (
    Gradient,
    GradientStore,
    PassSettings,
    Rows,
    Sketch,
    StoreMismatchError,
    StoreWriter,
    Task,
    as_rows,
    check_between,
    check_one_of,
    current_ranks,
    replacing,
    run_pass,
)

log = logging.getLogger(__name__)

MAP_ENTRIES = 1 << 26  # numbers of a map at most, unless asked for: 256 MB
SAMPLE_ENTRIES = 1 << 28  # numbers of the sample at most, unless asked for: 1 GB
LEARNED = 4096  # examples to learn from, or twice the numbers of a row
SMALLEST = 1e-12  # share of the largest eigenvalue below which a direction is rounding
BasisName = Literal["auto", "principal", "coordinates"]


@dataclass(frozen=True)
class PrincipalProjector:
    """Project gradients onto principal directions; a projector like any other.

    Args:
        inner: The coordinates that the directions are made of.
        parts: ``B`` by linear map, in the order of its kept coordinates, ``m k`` each.
        metric: What the directions are orthonormal in, ``T``.
        basis: Text that changes with the directions, so that stores know what they hold.
    """

    inner: EigenProjector
    parts: Mapping[str, Float[Tensor, "_ k"]] = field(repr=False)
    metric: MetricName
    basis: str = field(init=False)
    _moved: dict[Any, Tensor] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Take the fingerprint."""
        digest = sha256(self.inner.basis.encode())
        for name, part in sorted(self.parts.items()):
            digest.update(name.encode())
            digest.update(part.contiguous().numpy().tobytes())
        object.__setattr__(self, "basis", digest.hexdigest()[:16])

    @property
    def num_dims(self) -> int:
        """Number ``k`` of directions."""
        return next(iter(self.parts.values())).shape[1]

    @property
    def eigenvalues(self) -> Float[Tensor, " c"]:
        """Eigenvalue of each coordinate that the directions are made of."""
        return self.inner.eigenvalues

    def project(self, gradient: Gradient, out: Float[Tensor, "n k"]) -> None:
        """Write the principal components of one component to ``out``.

        Args:
            gradient: The gradient of a linear map; maps without kept coordinates are left out.
            out: Where to add them.
        """
        for use in linear_uses(gradient):
            if use.name in self.parts:
                part = self._on(use.name, out)
                for rows, found in self.inner.coordinates(use, out):
                    rows += found @ part

    def describe(self) -> dict[str, object]:
        """Return what rows must share to be compared."""
        return {"kind": "PrincipalProjector", "num_dims": self.num_dims, "basis": self.basis}

    def dampings(self, by_map: Mapping[str, float]) -> Float[Tensor, " c"]:
        """Return the damping of each coordinate, in float64."""
        return self.inner.dampings(by_map)

    def within(self, diagonal: Float[Tensor, " c"]) -> Float[Tensor, "k k"]:
        """Return ``B^T diag B`` of a matrix that is diagonal in the eigenbasis, in float64."""
        total = torch.zeros(self.num_dims, self.num_dims, dtype=torch.float64)
        for name, part in self.parts.items():
            wide = part.double()
            total += wide.mT @ (diagonal.double()[self.inner.kept[name].slots, None] * wide)
        return total

    def save(self, path: Path) -> None:
        """Write the directions."""
        with replacing(path) as file:
            file.write(save({name: part.contiguous() for name, part in self.parts.items()}))

    @classmethod
    def load(cls, path: Path, inner: EigenProjector, *, metric: MetricName) -> "PrincipalProjector":
        """Read directions that are made of these coordinates.

        Raises:
            StoreMismatchError: They are made of others.
        """
        parts = load_file(path)
        sizes = {name: len(kept.slots) for name, kept in inner.kept.items()}
        if {name: len(part) for name, part in parts.items()} != sizes:
            raise StoreMismatchError(
                f"{path} must hold directions of the coordinates of this curvature. It holds those "
                "of others: build the index anew in another folder."
            )
        return cls(inner, parts, metric)

    def _on(self, name: str, like: Tensor) -> Tensor:
        """Return a part on the device and in the type of another tensor, moved once."""
        key = (name, like.device, like.dtype)
        if key not in self._moved:
            self._moved[key] = self.parts[name].to(like)
        return self._moved[key]


@dataclass(frozen=True)
class Sizes:
    """How many coordinates and examples the numbers of a row are made of.

    Args:
        num_coordinates: Coordinates of the eigenbasis.
        num_learned: Examples that principal directions are learned from; None for the
            coordinates themselves.
    """

    num_coordinates: int
    num_learned: int | None


def pick_sizes(
    basis: BasisName,
    curvature: FittedCurvature,
    num_dims: int,
    num_rows: int,
    num_coordinates: int | None,
    num_learned: int | None,
) -> Sizes:
    """Return what rows are made of, and refuse what cannot be.

    Raises:
        ValueError: There are fewer coordinates or examples than numbers of a row.
    """
    check_one_of("basis", basis, get_args(BasisName))
    total = sum(layer.eigenvalues.numel() for layer in curvature.layers.values())
    check_between("num_dims", num_dims, 1, total, "the number of coordinates of all layers")
    if basis == "coordinates" or (basis == "auto" and (num_dims == total or num_dims > num_rows)):
        for name, given in (("num_coordinates", num_coordinates), ("num_learned", num_learned)):
            if given is not None:
                raise ValueError(
                    f"`{name}` must be left out where rows are single coordinates of the "
                    f"eigenbasis, as with basis={basis!r} here. Got {given}: ask for "
                    "basis='principal'."
                )
        return Sizes(num_dims, None)
    check_between("num_dims", num_dims, 1, num_rows, "the number of examples")
    wide = num_coordinates or min(total, max(num_dims, MAP_ENTRIES // num_dims))
    check_between("num_coordinates", wide, num_dims, total, "the number of all coordinates")
    most = max(num_dims, SAMPLE_ENTRIES // wide)
    learned = num_learned or min(num_rows, max(LEARNED, 2 * num_dims), most)
    check_between("num_learned", learned, num_dims, num_rows, "the number of examples")
    return Sizes(wide, learned)


@dataclass(frozen=True)
class Learner:
    """Learns principal directions from a sample of examples.

    Args:
        inner: The coordinates that they are made of.
        metric: The name of ``T``, what the metric of rows is shrunk towards.
        num_dims: Number ``k`` of directions.
        num_learned: Number ``m`` of examples.
        seed: Seed of the sample.
    """

    inner: EigenProjector
    metric: MetricName
    num_dims: int
    num_learned: int
    seed: int

    def learn(
        self,
        task: Task,
        rows: Rows,
        target: Float[Tensor, " c"],
        *,
        folder: Path,
        how: Mapping[str, Any],
        settings: PassSettings,
    ) -> str:
        """Learn the directions, unless that was done before.

        Args:
            task: The model and its loss.
            rows: The training data.
            target: ``T``, its diagonal.
            folder: Folder of the index; the sample is kept in it until the directions are there.
            how: What else they depend on.
            settings: Batching.

        Returns:
            The file of the directions in the folder; its name tells what they depend on.
        """
        about = {**how, "projector": self.inner.describe(), "seed": self.seed}
        about |= {"num_dims": self.num_dims, "metric": self.metric, "sample": self.num_learned}
        name = f"principal-{sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:8]}"
        ranks, file = current_ranks(), f"{name}.safetensors"
        if ranks.on_first((folder / file).exists, "looking for principal directions"):
            return file
        random = np.random.Generator(np.random.Philox(self.seed))
        chosen = np.sort(random.choice(len(rows), self.num_learned, replace=False))

        def opened() -> StoreWriter:
            return StoreWriter(folder / name, about, num_rows=self.num_learned)

        run_pass(
            task,
            as_rows(rows.fetch(chosen.tolist())),
            [Sketch(self.inner)],
            settings=settings,
            sink=ranks.first_then_others(opened, "opening a sample of gradients"),
            description="directions",
        )

        def finish() -> None:
            store = GradientStore.open(folder / name)
            self._directions(store.rows(range(len(store))), target).save(folder / file)
            shutil.rmtree(folder / name)

        ranks.on_first(finish, "learning principal directions")
        return file

    def _directions(
        self, sample: Float[np.ndarray, "m c"], target: Float[Tensor, " c"]
    ) -> PrincipalProjector:
        """Return the projector that is learned from coordinates of examples."""
        root = target.sqrt()
        found = principal_directions(sample / root.float().numpy(), self.num_dims)
        scaled = torch.from_numpy(found) / root[:, None]
        parts = {name: scaled[kept.slots].float() for name, kept in self.inner.kept.items()}
        return PrincipalProjector(self.inner, parts, self.metric)


def principal_directions(rows: Float[np.ndarray, "m c"], num_dims: int) -> Float[np.ndarray, "c k"]:
    """Return the main directions of rows about zero, largest first, orthonormal, in float64.

    From the products of the rows with each other, ``m m``, since there are fewer rows than
    coordinates. Where the rows span fewer directions than are asked for, the first coordinates
    fill up what is left.

    Example:
        >>> principal_directions(np.array([[3.0, 4.0], [6.0, 8.0]]), 1).round(6)
        array([[0.6],
               [0.8]])
    """
    products = np.zeros((len(rows), len(rows)))
    for start in range(0, rows.shape[1], LEARNED):
        wide = rows[:, start : start + LEARNED].astype(np.float64)
        products += wide @ wide.T
    values, rotation = np.linalg.eigh(products)
    values, rotation = values[::-1][:num_dims], rotation[:, ::-1][:, :num_dims]
    kept = values > SMALLEST * max(values[0], np.finfo(np.float64).tiny)
    found = rows.T @ (rotation[:, kept] / np.sqrt(values[kept]))
    missing = num_dims - found.shape[1]
    if not missing:
        return found
    log.info("gradients span %d directions; %d coordinates beside them", len(found.T), missing)
    whole = np.linalg.qr(np.hstack([found, np.eye(len(found), missing)]))[0]
    return np.hstack([found, whole[:, -missing:]])
