"""EK-FAC and K-FAC: Kronecker-factored curvature, with and without corrected eigenvalues.

Differs from the reference implementations: eigenvectors are columns throughout; the bias
is the last column of its layer's gradient; labels are drawn by row id, so that a fit does
not depend on batches; padding counts neither in losses nor in covariances; each use of a
reused or tied layer counts; K-FAC has the scale of a sum over tokens. Not handled: norms,
lone biases and embedding tables, which are held fixed.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from influence.covariances import Covariances
from influence.curvature import FittedCurvature, LayerCurvature
from influence.damping import Damping, RelativeDamping
from influence.decompositions import decompose
from influence.eigenvalues import CorrectedEigenvalues
from influence.linear_layers import KINDS
from influence.plan import make_plan
from projections import (
    FolderCheckpoint,
    Labels,
    PassSettings,
    Rows,
    Task,
    as_rows,
    check_at_least,
    check_one_of,
    current_ranks,
    describe,
    find_components,
    fingerprint_model,
    run_pass,
)

FISHERS = ("auto", "exact", "sampled", "empirical")
MOST_LABELS = 16  # with more classes, "auto" draws labels instead of trying them all
FisherName = Literal["auto", "exact", "sampled", "empirical"]


@dataclass(frozen=True, kw_only=True)
class EKFAC:
    r"""Fit a Kronecker-factored eigenbasis with the exact second moment of each coordinate.

    For a linear map with gradient :math:`G = \sum_t g_t a_t^\top`, the eigenvectors of
    :math:`E[a a^\top]` and :math:`E[g g^\top]` give a basis :math:`U_A, U_G`, and
    :math:`\Lambda = E[(U_G^\top G U_A)^{\odot 2}]` the curvature along each coordinate.

    Args:
        fisher: Labels of the Fisher matrix. ``"exact"``: expectation over all of them (one
            backward a class). ``"sampled"``: drawn from the model. ``"empirical"``: the
            data's. ``"auto"``: exact up to 16 labels, else sampled.
        num_label_samples: Number of draws for each example.
        damping: Added to the eigenvalues; can be changed afterwards.
        max_factor: Widest diagonal block of a covariance, for layers too wide to decompose.
        seed: Seed of the drawn labels.

    Example:
        >>> import torch
        >>> from projections import Classification
        >>> task = Classification(torch.nn.Linear(2, 3))
        >>> data = [(torch.randn(2), label) for label in (0, 1, 2, 0)]
        >>> fitted = EKFAC(seed=0).fit(task, data)
        >>> fitted.layers[""].eigenvalues.shape
        torch.Size([3, 3])

    References:
        George et al., Fast approximate natural gradient descent in a Kronecker-factored
        eigenbasis (NeurIPS 2018), arXiv:1806.03884. Grosse et al., Studying large language
        model generalization with influence functions (2023), arXiv:2308.03296, Sec. 2-3.
    """

    fisher: FisherName = "auto"
    num_label_samples: int = 1
    damping: Damping = field(default_factory=RelativeDamping)
    max_factor: int | None = None
    seed: int

    def __post_init__(self) -> None:
        """Check the arguments."""
        check_one_of("fisher", self.fisher, FISHERS)
        check_at_least("num_label_samples", self.num_label_samples, 1)

    def fit(
        self,
        task: Task,
        data: Any,
        *,
        settings: PassSettings | None = None,
        path: str | Path | None = None,
        partitions: Sequence[Sequence[str]] | None = None,
        memory: int | str | None = None,
    ) -> FittedCurvature:
        """Walk the data twice: for the covariances, and for the eigenvalues.

        Args:
            task: The model and its loss.
            data: The training data, or a random part of it.
            settings: Layers and batching. Of these, linear maps and convolutions are taken.
            path: Folder in which a fit that was stopped goes on.
            partitions: Components that are fitted together, of `make_plan`, where the factors
                of all do not fit the memory; each takes two passes of its own. Those that are
                fitted stay in files of ``path``, or without one in the memory of the machine.
            memory: Bytes for the factors, such as ``"8GB"``, from which a plan makes partitions.

        Raises:
            NonDeterministicError: Losses or gradients depend on chance or on the batch.
            StoreMismatchError: The folder holds another fit.
            ValueError: The factors of one layer alone do not fit the memory.
        """
        partitions = partitions or self._planned(task, data, settings, memory)
        if partitions is not None:
            return self._fit_partitions(task, data, settings, path, partitions)
        walk = _Fit(self, task, as_rows(data), linear_settings(settings), path)
        covariances = Covariances(self.max_factor)
        walk.run(covariances, "covariances")
        bases = decompose(covariances)
        eigenvalues = CorrectedEigenvalues(
            {name: (left, right) for name, (left, right, _) in bases.items()}
        )
        walk.run(eigenvalues, "eigenvalues")
        means = eigenvalues.means()
        layers = {
            name: LayerCurvature(left, right, means[name])
            for name, (left, right, _) in bases.items()
        }
        return walk.result(layers)

    def extend(
        self,
        fitted: FittedCurvature,
        task: Task,
        data: Any,
        *,
        settings: PassSettings | None = None,
    ) -> FittedCurvature:
        """Continue a fit with more data: eigenvalues over both parts, in the same eigenbasis.

        Args:
            fitted: What was fitted with these settings before.
            task: The same model and loss.
            data: Further training data, with ids of its own.
            settings: Batching; the layers are those of the fit.

        Returns:
            The curvature whose eigenvalues are means over all examples seen. The eigenvectors
            are those of the first part, as if covariances had been taken from a sample.
        """
        fitted.check_model(task)
        kinds = (type(self).__name__, fitted.provenance.get("curvature", {}).get("kind"))
        if kinds != ("EKFAC", "EKFAC"):
            raise TypeError(
                "only EKFAC has eigenvalues that are means over examples, which more data can "
                f"continue. Got a fit of {kinds[1]}, continued by {kinds[0]}. Fit it again on all "
                "data."
            )
        walk = _Fit(self, task, as_rows(data), fitted.reading(settings), None)
        bases = {name: (layer.left, layer.right) for name, layer in fitted.layers.items()}
        eigenvalues = CorrectedEigenvalues(bases)
        walk.run(eigenvalues, "eigenvalues")
        before, more = fitted.provenance["num_examples"], eigenvalues.num_examples
        means = eigenvalues.means()
        layers = {
            name: replace(
                layer,
                eigenvalues=(layer.eigenvalues.to(means[name]) * before + means[name] * more)
                / (before + more),
            )
            for name, layer in fitted.layers.items()
        }
        how = {**fitted.provenance, "num_examples": before + more}
        how["data"] = f"{fitted.provenance['data']}+{walk.rows.fingerprint}"
        return replace(fitted, layers=layers, provenance=how)

    def _planned(
        self, task: Task, data: Any, settings: PassSettings | None, memory: int | str | None
    ) -> Sequence[Sequence[str]] | None:
        """Return the partitions that fit the memory, where one is not enough."""
        if memory is None:
            return None
        plan = make_plan(task, data, memory=memory, settings=settings, max_factor=self.max_factor)
        return plan.partitions if len(plan.partitions) > 1 else None

    def _fit_partitions(
        self,
        task: Task,
        data: Any,
        settings: PassSettings | None,
        path: str | Path | None,
        partitions: Sequence[Sequence[str]],
    ) -> FittedCurvature:
        """Fit a few components at a time, and put those that are done out of the way."""
        whole = linear_settings(settings)
        layers: dict[str, LayerCurvature] = {}
        for number, names in enumerate(partitions):
            folder = None if path is None else Path(path) / f"partition-{number}"
            some = replace(whole, layers=tuple(names))
            layers |= _put_away(self.fit(task, data, settings=some, path=folder), folder).layers
        return _Fit(self, task, as_rows(data), whole, path).result(layers)


@dataclass(frozen=True, kw_only=True)
class KFAC(EKFAC):
    r"""Fit Kronecker factors alone: :math:`\Lambda_{oi} = \gamma_o \alpha_i`, in one pass.

    Inputs are averaged over tokens and output gradients summed over them, which is the
    scale of a loss that sums over tokens (K-FAC-expand).

    References:
        Martens and Grosse, Optimizing neural networks with Kronecker-factored approximate
        curvature (ICML 2015), arXiv:1503.05671. Eschenhagen et al. (NeurIPS 2023),
        arXiv:2311.00636, for weight sharing.
    """

    def fit(
        self,
        task: Task,
        data: Any,
        *,
        settings: PassSettings | None = None,
        path: str | Path | None = None,
        partitions: Sequence[Sequence[str]] | None = None,
        memory: int | str | None = None,
    ) -> FittedCurvature:
        """Walk the data once; see `EKFAC.fit`."""
        partitions = partitions or self._planned(task, data, settings, memory)
        if partitions is not None:
            return self._fit_partitions(task, data, settings, path, partitions)
        walk = _Fit(self, task, as_rows(data), linear_settings(settings), path)
        covariances = Covariances(self.max_factor)
        walk.run(covariances, "covariances")
        layers = {
            name: LayerCurvature(left, right, products)
            for name, (left, right, products) in decompose(covariances).items()
        }
        return walk.result(layers)


def _put_away(fitted: FittedCurvature, folder: Path | None) -> FittedCurvature:
    """Leave a partition in a file of its folder, which all ranks read, or beside the device."""
    if folder is None:
        return fitted.to("cpu")
    file = folder / "fitted.safetensors"
    current_ranks().on_first(lambda: fitted.save(file), "a partition")
    return FittedCurvature.open(file)


def linear_settings(settings: PassSettings | None) -> PassSettings:
    """Return settings that look at linear maps only."""
    return replace(settings or PassSettings(), kinds=KINDS)


def held_fixed(task: Task, settings: PassSettings) -> list[str]:
    """Return the trainable parameters that are in no linear map of a curvature."""
    layout = find_components(
        task.model, settings.layers, kinds=settings.kinds, heads=settings.heads
    )
    covered = {part.whole_name for c in layout.components.values() for part in c.parameters}
    trainable = [name for name, p in task.model.named_parameters() if p.requires_grad]
    return [name for name in trainable if name not in covered]


def pick_labels(
    fisher: FisherName, task: Task, *, num_samples: int, seed: int, purpose: str
) -> Labels:
    """Return where the labels of a Fisher matrix come from."""
    if fisher == "auto":
        few = task.num_labels is not None and task.num_labels <= MOST_LABELS
        fisher = "exact" if few else "sampled"
    kinds: dict[str, Literal["data", "sampled", "exact"]] = {
        "empirical": "data",
        "sampled": "sampled",
        "exact": "exact",
    }
    return Labels(kind=kinds[fisher], num_samples=num_samples, seed=seed, purpose=purpose)


@dataclass(frozen=True)
class _Fit:
    """What the passes of one fit share."""

    settings: EKFAC
    task: Task
    rows: Rows
    reading: PassSettings
    path: str | Path | None

    def run(self, accumulator: Covariances | CorrectedEigenvalues, purpose: str) -> None:
        """Walk the data once, going on where an earlier run stopped."""
        labels = pick_labels(
            self.settings.fisher,
            self.task,
            num_samples=self.settings.num_label_samples,
            seed=self.settings.seed,
            purpose=purpose,
        )
        checkpoint = None
        if self.path is not None:
            description = {**self.provenance(), "labels": describe(labels)}
            checkpoint = FolderCheckpoint(Path(self.path) / purpose, description)
        run_pass(
            self.task,
            self.rows,
            accumulators=[accumulator],
            labels=labels,
            settings=self.reading,
            checkpoint=checkpoint,
            description=purpose,
        )

    def result(self, layers: dict[str, LayerCurvature]) -> FittedCurvature:
        """Return the fitted curvature."""
        how = {**self.provenance(), "held_fixed": held_fixed(self.task, self.reading)}
        return FittedCurvature(layers, how["model"], self.reading, how, self.settings.damping)

    def provenance(self) -> dict[str, Any]:
        """Return how the curvature is fitted, as plain JSON values."""
        return {
            "curvature": describe(replace(self.settings, damping=RelativeDamping())),
            "model": fingerprint_model(self.task.model),
            "data": self.rows.fingerprint,
            "num_examples": len(self.rows),
            "shard_size": self.reading.shard_size,
            "layers": list(self.reading.layers) if self.reading.layers is not None else None,
            **self.reading.describe_gradients(),
        }
