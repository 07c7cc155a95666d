"""What one method says of one set-up, and the file that keeps it."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from attribution_setups import RETRAINING
from attribution_trained import Fit, Trained


@dataclass(frozen=True)
class Scored:
    """What one method said of one set-up.

    Args:
        method: Its name.
        scores: By damping, the default first, ``q n``.
        own: Self-influence by damping, ``n``; empty if not asked for.
        seconds: Processor time of the fit and the scores at the default.
        bytes_kept: What answers further queries.
        trainings: Further models that were trained.
    """

    method: str
    scores: dict[str, np.ndarray]
    own: dict[str, np.ndarray]
    seconds: float
    bytes_kept: int
    trainings: int


def score(trained: Trained, name: str, method: Callable[[Trained], Fit]) -> Scored:
    """Fit a method, and score all pairs at every damping."""
    _ = trained.task  # so that training it counts for no method
    setup, began = trained.setup, time.process_time()
    fit = method(trained)
    fitting = time.process_time() - began
    asked = setup.query_rows[: fit.most_queries]
    scores, own, seconds = {}, {}, 0.0
    for damping, fitted in fit.fitted.items():
        began = time.process_time()
        found = fitted.scores(trained.task, asked, trained.train)
        scores[damping] = found.values.astype(np.float32)
        seconds = seconds or time.process_time() - began
        if setup.wrong is not None and hasattr(fitted, "self_influence"):
            own[damping] = fitted.self_influence(trained.task, trained.train).values
    return Scored(name, scores, own, fitting + seconds, fit.bytes_kept, fit.trainings)


def code_of(method: str) -> tuple[str, ...]:
    """Return where the code is that makes the scores of a method."""
    return (
        f"attribution_methods:METHODS[{method}]",
        "attribution_trained:Trained",
        "attribution_scores:score",
        "projections.layers",
        "projections.tasks",
        *RETRAINING,
    )


def slug(method: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in method.lower())


def write_scored(scored: Scored, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    note = {"seconds": scored.seconds, "bytes": scored.bytes_kept, "trainings": scored.trainings}
    arrays = {f"scores/{name}": values for name, values in scored.scores.items()}
    arrays |= {f"own/{name}": values for name, values in scored.own.items()}
    partial = path.with_suffix(".partial.npz")
    np.savez(partial, note=np.array(json.dumps(note)), **arrays)  # pyright: ignore
    partial.replace(path)


def read_scored(method: str, path: Path) -> Scored:
    with np.load(path) as file:
        note = json.loads(str(file["note"]))
        parts: dict[str, dict[str, np.ndarray]] = {"scores": {}, "own": {}}
        for key in file.files:
            kind, _, name = key.partition("/")
            if name:
                parts[kind][name] = file[key]
    return Scored(
        method, parts["scores"], parts["own"], note["seconds"], note["bytes"], note["trainings"]
    )
