"""Train on a mixture of sources that moves, in the Trainer of Hugging Face.

Towards a target, by gradients of a batch of each source (DGA) or by those of the training batch
itself (InBatchDGA); and by the losses alone (ODM). The rows of each step are drawn by the weights
of the time, and a run that goes on from a checkpoint draws what it would have drawn. Some seconds
on a CPU.
"""

from contextlib import nullcontext
from tempfile import TemporaryDirectory

import numpy as np
import torch
from datasets import Dataset
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

from projections import CausalLM
from selection import (
    DGA,
    ODM,
    InBatchDGA,
    LossReweighter,
    MirrorDescent,
    MixtureDraws,
    Reweighting,
    uniform,
)
from selection.trainers import DrawsMixin, ReweightingMixin

VOCABULARY, LENGTH, STEPS = 32, 12, 24
random = np.random.default_rng(0)


def texts(step: int, count: int) -> list[dict[str, list[int]]]:
    """Return sequences of numbers that rise by one step."""
    starts = random.integers(VOCABULARY, size=count)
    rows = [[int(v) for v in (start + step * np.arange(LENGTH)) % VOCABULARY] for start in starts]
    return [{"input_ids": row, "labels": row} for row in rows]


sources = {"by one": texts(1, 60), "by five": texts(5, 60), "by seven": texts(7, 60)}
target = texts(5, 8)
rows = [{**row, "source": name} for name, part in sources.items() for row in part]
train = Dataset.from_list(rows)


# Losses reach the mixture through `ReweightingMixin`; with `uniform` it changes nothing else.
class MixtureTrainer(ReweightingMixin, DrawsMixin, Trainer):
    """A trainer that takes `draws`, `mixture` and `reweighting`."""


def make_model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
    )
    return LlamaForCausalLM(config)


def run(model: LlamaForCausalLM, mixture: DGA | InBatchDGA | ODM) -> None:
    draws = MixtureDraws(mixture, train["source"], batch_size=8, seed=0, lag=4)
    with TemporaryDirectory() as folder:
        trainer = MixtureTrainer(
            model=model,
            args=TrainingArguments(
                folder,
                max_steps=STEPS,
                per_device_train_batch_size=8,
                learning_rate=0.01,
                ignore_data_skip=True,  # draws go on by themselves
                save_strategy="no",
                report_to="none",
                use_cpu=True,
                disable_tqdm=True,
                dataloader_pin_memory=False,
            ),
            train_dataset=train,
            draws=draws,
            mixture=mixture,
            reweighting=Reweighting(LossReweighter(curve=uniform)),
        )
        # The estimate from the training batch reads gradients while training goes on.
        with mixture.watching() if isinstance(mixture, InBatchDGA) else nullcontext():
            trainer.train()
    shares = ", ".join(
        f"{name} {weight:.0%}" for name, weight in zip(mixture.names, mixture.weights, strict=True)
    )
    print(f"{type(mixture).__name__}: {shares} after {len(mixture.history) - 1} moves")
    mixture.weight_history.plot()  # a figure; `figure.savefig("weights.png")` writes it


model = make_model()
rule = MirrorDescent(step_size=2.0, floor=0.05)
run(model, DGA(CausalLM(model), sources, target, every=4, batch_size=4, rule=rule, seed=0))
model = make_model()
names = tuple(sources)
run(model, InBatchDGA(CausalLM(model), names, target, every=4, batch_size=4, rule=rule, seed=0))
run(make_model(), ODM(tuple(sources), every=4))
