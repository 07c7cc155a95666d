"""The diagonal Fisher and the identity, behind the seam of every curvature."""

from dataclasses import dataclass, field, replace
from typing import Any

import torch

from influence.curvature import FittedCurvature, LayerCurvature
from influence.damping import AbsoluteDamping, Damping, RelativeDamping
from influence.eigenvalues import CorrectedEigenvalues
from influence.ekfac import FisherName, linear_settings, pick_labels
from influence.kfac_math import Rotation
from projections import (
    Component,
    PassSettings,
    Task,
    as_rows,
    check_at_least,
    describe,
    find_components,
    fingerprint_model,
    run_pass,
)


@dataclass(frozen=True, kw_only=True)
class Diagonal:
    """Fit the diagonal of the Fisher matrix: the mean square of each entry of the gradient.

    Args:
        fisher: Labels of the Fisher matrix, as in `EKFAC`.
        num_label_samples: Number of draws for each example.
        damping: Added to the eigenvalues; can be changed afterwards.
        seed: Seed of the drawn labels.
    """

    fisher: FisherName = "auto"
    num_label_samples: int = 1
    damping: Damping = field(default_factory=RelativeDamping)
    seed: int

    def __post_init__(self) -> None:
        """Check the arguments."""
        check_at_least("num_label_samples", self.num_label_samples, 1)

    def fit(
        self, task: Task, data: Any, *, settings: PassSettings | None = None
    ) -> FittedCurvature:
        """Walk the data once.

        Args:
            task: The model and its loss.
            data: The training data, or a random part of it.
            settings: Layers and batching.
        """
        reading = linear_settings(settings)
        bases = identity_bases(task, reading)
        eigenvalues = CorrectedEigenvalues(bases)
        labels = pick_labels(
            self.fisher,
            task,
            num_samples=self.num_label_samples,
            seed=self.seed,
            purpose="eigenvalues",
        )
        rows = as_rows(data)
        run_pass(
            task,
            rows,
            accumulators=[eigenvalues],
            labels=labels,
            settings=reading,
            description="diagonal",
        )
        layers = {
            name: LayerCurvature(*bases[name], mean) for name, mean in eigenvalues.means().items()
        }
        how = {
            "curvature": describe(replace(self, damping=RelativeDamping())),
            "data": rows.fingerprint,
        }
        return FittedCurvature(layers, fingerprint_model(task.model), reading, how, self.damping)


@dataclass(frozen=True)
class Identity:
    """The identity: influence is then the plain inner product of gradients."""

    def fit(
        self, task: Task, data: Any = None, *, settings: PassSettings | None = None
    ) -> FittedCurvature:
        """Return the identity for the linear maps of a model; the data is not looked at."""
        reading = linear_settings(settings)
        layers = {
            name: LayerCurvature(left, right, torch.ones(left.size, right.size))
            for name, (left, right) in identity_bases(task, reading).items()
        }
        how = {"curvature": {"kind": "Identity"}}
        model = fingerprint_model(task.model)
        return FittedCurvature(layers, model, reading, how, AbsoluteDamping(0.0))


def identity_bases(task: Task, settings: PassSettings) -> dict[str, tuple[Rotation, Rotation]]:
    """Return the identity as the basis of every linear map."""
    layout = find_components(
        task.model, settings.layers, kinds=settings.kinds, heads=settings.heads
    )
    return {
        name: (Rotation((), num_out), Rotation((), num_in))
        for component in layout.components.values()
        for name, num_out, num_in in map_shapes(component, layout.num_groups(component.name))
    }


def map_shapes(component: Component, num_groups: int) -> list[tuple[str, int, int]]:
    """Return name, outputs and inputs (with the bias) of the linear maps of a component."""
    num_out, num_in = component.parameters[0].shape
    num_in += len(component.parameters) - 1
    if num_groups == 1:
        return [(component.name, num_out, num_in)]
    names = [f"{component.name}[{group}]" for group in range(num_groups)]
    return [(name, num_out // num_groups, num_in) for name in names]
