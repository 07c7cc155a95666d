"""Methods of `attribution.py` that solve systems with exact Gauss-Newton products.

Each is asked for a few queries only, as a product walks over all examples for each of them.
"""

from collections.abc import Callable, Mapping

from attribution_trained import DEFAULT, Fit, Trained, num_params

from influence import (
    ASTRA,
    EKFAC,
    AbsoluteDamping,
    Arnoldi,
    ConjugateGradients,
    CurvaturePreconditioner,
    GaussNewton,
    Inverse,
    LiSSA,
    Neumann,
    Solver,
)
from projections import PassSettings

SMALL = 10_000  # parameters up to which more queries are asked
DAMPINGS = (0.1, 1.0, 0.03)  # the default first


def solved(
    trained: Trained,
    solver: Callable[[float], Solver],
    *,
    bytes_kept: int = 0,
    dampings: tuple[float, ...] = DAMPINGS,
    most_queries: int = 50,
) -> Fit:
    """Return the inverse of the Gauss-Newton matrix by some solver, at each damping."""
    reading = PassSettings(batch_size=1000, shard_size=1000)
    fits = {
        f"{damping:g}": Inverse(
            matrix=GaussNewton(seed=0), solver=solver(damping), damping=damping
        ).fit(trained.task, trained.train, settings=reading)
        for damping in dampings
    }
    first, *_ = fits
    named: Mapping[str, object] = {DEFAULT: fits.pop(first), **fits}
    most = 5 if trained.tiny else most_queries if num_params(trained) < SMALL else 10
    return Fit(named, bytes_kept, most_queries=most)


def preconditioner(trained: Trained) -> Callable[[float], CurvaturePreconditioner]:
    """Return EK-FAC as a preconditioner at a damping."""
    fitted = EKFAC(seed=0).fit(trained.task, trained.train, settings=trained.reading)
    return lambda damping: CurvaturePreconditioner(fitted.with_damping(AbsoluteDamping(damping)))


def conjugate_gradients(trained: Trained) -> Fit:
    """Preconditioned by EK-FAC."""
    near = preconditioner(trained)
    return solved(
        trained,
        lambda damping: ConjugateGradients(
            max_steps=200, tolerance=3e-2, preconditioner=near(damping)
        ),
        dampings=DAMPINGS if num_params(trained) < SMALL else (0.1, 0.03),
    )


def astra(trained: Trained) -> Fit:
    """As conjugate gradients are asked, and to the same residual."""
    near = preconditioner(trained)
    return solved(
        trained,
        lambda damping: ASTRA(preconditioner=near(damping), max_steps=500, tolerance=3e-2, seed=0),
        dampings=DAMPINGS if num_params(trained) < SMALL else (0.1, 0.03),
    )


def neumann(trained: Trained) -> Fit:
    """Where the largest eigenvalue is a hundred dampings, that is as many products a query."""
    return solved(
        trained,
        lambda damping: Neumann(tolerance=0.1, max_steps=3000),
        dampings=(0.1, 1.0),
        most_queries=10,
    )


def lissa(trained: Trained) -> Fit:
    """Steps on 256 rows, to a residual of a half: their noise stays."""
    return solved(
        trained,
        lambda damping: LiSSA(num_steps=1000, batch_size=256, tolerance=0.5, seed=0),
        dampings=(1.0, 0.3),
    )


def arnoldi(trained: Trained) -> Fit:
    """The 50 largest eigenvalues of 100 steps; the rest counts as zero."""
    steps = 8 if trained.tiny else 100
    return solved(
        trained,
        lambda damping: Arnoldi(num_steps=steps, num_kept=steps // 2, seed=0),
        bytes_kept=4 * steps // 2 * num_params(trained),
    )
