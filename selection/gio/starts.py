"""What greedy selection by divergence starts from, where no initial data is given.

Letters: ``s`` points, ``g`` candidates, ``d`` dimensions.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from projections import check_at_least, check_between, uniforms


@dataclass(frozen=True, kw_only=True)
class UniformStart:
    """Points drawn evenly from a cube, which say what is far away (the published default).

    They only stand in for data: none of them is selected. Until picks outweigh them they
    keep the divergence high, so their number decides when `Increase` stops.

    Args:
        num_points: Number ``s`` of points; 0 starts from nothing.
        low: Lower end of the cube in every dimension.
        high: Upper end.
        normalize: Whether each is scaled to length 1, as embeddings often are.
    """

    num_points: int = 20
    low: float = -1.0
    high: float = 1.0
    normalize: bool = True

    def __post_init__(self) -> None:
        """Check the arguments."""
        check_at_least("num_points", self.num_points, 0)
        check_at_least("high", self.high, self.low)

    def points(self, num_dims: int, seed: int) -> Float[np.ndarray, "s d"]:
        """Return the points, a function of the seed and the number of dimensions."""
        size = self.num_points * num_dims
        drawn = uniforms(seed, "selection.gio.starts", size).reshape(self.num_points, num_dims)
        found = self.low + (self.high - self.low) * drawn
        if not self.normalize:
            return found
        norms = np.linalg.norm(found, axis=1, keepdims=True)
        return np.divide(found, norms, out=found, where=norms > 0)


UNIFORM = UniformStart()


@dataclass(frozen=True, kw_only=True)
class RandomStart:
    """A random share of the candidates, which are chosen before the first greedy pick.

    Args:
        share: The share of the candidates (of the centroids, where there are such).
    """

    share: float

    def __post_init__(self) -> None:
        """Check the argument."""
        check_between("share", self.share, 0, 1, "a share of the candidates")

    def picks(self, num_candidates: int, seed: int) -> Int[np.ndarray, " s"]:
        """Return the candidates that are drawn."""
        drawn = uniforms(seed, "selection.gio.starts", num_candidates)
        return np.argsort(drawn, kind="stable")[: int(self.share * num_candidates)]
