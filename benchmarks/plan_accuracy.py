"""A plan beside what then happens: seconds of each stage, predicted and measured.

    python benchmarks/plan_accuracy.py --threads 2

Rates are measured at the shapes of the plan, then each stage runs, and that again in every round,
since a machine has faster and slower minutes. Nothing else may run on it meanwhile.
"""

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
import torch
from measuring import options, parse, publish, table
from transformers import LlamaConfig, LlamaForCausalLM

from gradsift.machines import MeasuredMachine, seconds_of
from influence import (
    EKFAC,
    forward_and_backward,
    plan_shapes,
    shape_of_language_model,
    sketched_gradients,
)
from projections import SJLT, CausalLM, PassSettings, index_gradients

LAYERS = ("*_proj",)


@dataclass(frozen=True)
class Setting:
    """One model and one amount of data."""

    hidden: int
    intermediate: int
    num_layers: int
    num_train: int
    vocabulary: int = 4096
    length: int = 128
    num_queries: int = 16
    batch_size: int = 8


FULL = (
    Setting(256, 1024, 4, 128),
    Setting(512, 1408, 2, 64, length=256, vocabulary=8192),
)
QUICK = (Setting(32, 64, 2, 16, vocabulary=64, length=16, num_queries=4),)


def configuration(setting: Setting) -> LlamaConfig:
    return LlamaConfig(
        hidden_size=setting.hidden,
        intermediate_size=setting.intermediate,
        num_hidden_layers=setting.num_layers,
        num_attention_heads=max(2, setting.hidden // 64),
        vocab_size=setting.vocabulary,
        max_position_embeddings=setting.length,
    )


def predicted(setting: Setting) -> dict[str, float]:
    """Return the planned seconds of each stage."""
    machine = MeasuredMachine(torch.device("cpu"))
    config, batch = configuration(setting), setting.batch_size
    shape = shape_of_language_model(config, num_tokens=setting.length, layers=LAYERS)
    plan = plan_shapes(
        shape,
        setting.num_train,
        memory="8GB",
        num_queries=setting.num_queries,
        batch=batch,
    )
    step = forward_and_backward(shape, batch=batch, weights=True)
    sketch = sketched_gradients(shape, batch=batch)
    times = {stage.name: seconds_of(stage.work, machine) for stage in plan.stages}
    *fit, asked, met = times.values()
    return {
        "training step": seconds_of(step.times(setting.num_train), machine),
        "index of sketches": seconds_of(sketch.times(setting.num_train), machine),
        "fit": sum(fit),
        "scores": asked + met,
    }


def measured(setting: Setting) -> dict[str, float]:
    """Return the seconds of each stage as it runs."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(configuration(setting)).eval()
    generator = np.random.default_rng(0)
    tokens = generator.integers(3, setting.vocabulary, (setting.num_train, setting.length))
    rows = [{"input_ids": row} for row in tokens.tolist()]
    queries, task = rows[: setting.num_queries], CausalLM(model)
    settings = PassSettings(batch_size=setting.batch_size, layers=LAYERS)
    training_step(model, tokens[: setting.batch_size], setting.batch_size)

    def sketch() -> None:
        with tempfile.TemporaryDirectory() as folder:
            projector = SJLT(num_dims=4096, seed=0)
            index_gradients(task, rows, projector, path=Path(folder) / "s", settings=settings)

    sketch()  # checks and maps are made once a process
    seconds = {
        "training step": timed(lambda: training_step(model, tokens, setting.batch_size)),
        "index of sketches": timed(sketch),
    }
    start = time.perf_counter()
    fitted = EKFAC(seed=0, fisher="empirical").fit(task, rows, settings=settings)
    seconds["fit"] = time.perf_counter() - start
    seconds["scores"] = timed(lambda: fitted.scores(task, queries, rows))
    return seconds


def training_step(model: LlamaForCausalLM, tokens: np.ndarray, batch_size: int) -> None:
    """Run forward and backward over all rows, weight gradients included."""
    for batch in torch.from_numpy(tokens).split(batch_size):
        model(input_ids=batch, labels=batch, use_cache=False).loss.backward()
        model.zero_grad()


def timed(run: Callable[[], object]) -> float:
    """Return the seconds of a run."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def main() -> None:
    """Print the table."""
    chosen = parse(options(__doc__))
    rows, worst = [], 0.0
    num_rounds = 1 if chosen.quick else chosen.rounds
    for setting in QUICK if chosen.quick else FULL:
        rounds = [(predicted(setting), measured(setting)) for _ in range(num_rounds)]
        name = f"hidden {setting.hidden}, {setting.num_layers} layers, {setting.length} tokens"
        for stage in rounds[0][1]:
            ratios = [plan[stage] / real[stage] for plan, real in rounds]
            seconds = [median(side[stage] for side in sides) for sides in zip(*rounds, strict=True)]
            worst = max(worst, abs(median(ratios) - 1))
            row = [name, stage, *(f"{value:.2f}" for value in seconds), f"{median(ratios):.2f}"]
            rows.append([*row, f"{min(ratios):.2f} to {max(ratios):.2f}"])
    head = ["model", "stage", "planned seconds", "measured", "planned / measured", "rounds"]
    note = (
        f"Furthest from 1: {worst:.0%}. Medians of {num_rounds} rounds; each measures the rates "
        "at the shapes of the plan, and then the stages."
    )
    publish("Plans and what then happens", [table(head, rows), note], chosen.out)


if __name__ == "__main__":
    main()
