"""Projection of some components only, chosen by name."""

from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor

from projections.base import Projector
from projections.checks import check_patterns, matches, name_matches
from projections.components import Component
from projections.fingerprint import describe
from projections.per_example import Gradient


@dataclass(frozen=True, kw_only=True)
class Selected:
    """Project the components whose names match, and leave out the others.

    A component counts if its name, or that of one of its parameters, matches a pattern. To
    keep coordinates as they are, put it around `Coordinates`; to leave components out of the
    whole pass, which also saves their share of it, use the ``layers`` of its settings.

    Args:
        projector: What projects them.
        patterns: Patterns such as ``"*.mlp.*"`` or ``"lm_head"``.

    Example:
        >>> from projections import SJLT
        >>> projector = Selected(projector=SJLT(num_dims=8, seed=0), patterns=("*.mlp.*",))
        >>> projector.num_dims
        8

    References:
        Hu et al., GraSS (NeurIPS 2025), arXiv:2505.18976, for gradients cut down to some of
        their coordinates.
    """

    projector: Projector
    patterns: tuple[str, ...]

    def __post_init__(self) -> None:
        """Check the arguments."""
        check_patterns("patterns", self.patterns)

    @property
    def num_dims(self) -> int:
        """Number ``k`` of dimensions."""
        return self.projector.num_dims

    def keeps(self, component: Component) -> bool:
        """Tell whether a component is projected."""
        own = name_matches(component.name, self.patterns)
        return own or any(matches(p.name, self.patterns) for p in component.parameters)

    def project(self, gradient: Gradient, out: Float[Tensor, "n k"]) -> None:
        """Add the projection of one component, if it is one of the chosen.

        Args:
            gradient: The gradient of one component.
            out: Where to add it.
        """
        if self.keeps(gradient.component):
            self.projector.project(gradient, out)

    def describe(self) -> dict[str, Any]:
        """Return the settings as plain JSON values."""
        inner = describe(self.projector)
        return {"kind": "Selected", "patterns": list(self.patterns), "projector": inner}
