"""Weigh the examples of each step by their losses, in the Trainer of Hugging Face.

A third of the texts are copies of two, and a tenth is noise. `quadratic` gives both ends of
the losses little weight: what is known by heart, and what cannot be learnt. The run is
stopped half way and goes on from its checkpoint. Takes some seconds on a CPU.
"""

from tempfile import TemporaryDirectory

import numpy as np
import torch
from datasets import Dataset
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

from selection import LossReweighter, Reweighting, quadratic
from selection.trainers import ReweightingMixin

VOCABULARY, LENGTH = 32, 16
random = np.random.default_rng(0)


def counting() -> list[int]:
    """Return numbers that rise by the same step."""
    return [int(v) for v in (random.integers(VOCABULARY) + np.arange(LENGTH) * 3) % VOCABULARY]


copies = [counting() for _ in range(2)]
texts = [counting() for _ in range(110)]
texts += [copies[number % 2] for number in range(60)]
texts += random.integers(VOCABULARY, size=(20, LENGTH)).tolist()
train = Dataset.from_dict({"input_ids": texts, "labels": texts})


# The only two lines that differ from any other run with the Trainer: this class, ...
class WeightedTrainer(ReweightingMixin, Trainer):
    """A trainer that takes `reweighting`."""


def make_trainer(folder: str, max_steps: int) -> WeightedTrainer:
    quadratic_weights = LossReweighter(curve=quadratic, temperature=0.4, warmup=5)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
    )
    return WeightedTrainer(
        model=LlamaForCausalLM(config),
        args=TrainingArguments(
            folder,
            max_steps=max_steps,
            per_device_train_batch_size=8,
            gradient_accumulation_steps=2,  # weights sum to one over both
            learning_rate=0.01,
            save_steps=10,
            report_to="none",
            use_cpu=True,
            disable_tqdm=True,
            dataloader_pin_memory=False,
        ),
        train_dataset=train,
        # ... and this argument.
        reweighting=Reweighting(quadratic_weights, record_every=5),
    )


with TemporaryDirectory() as folder:
    make_trainer(folder, max_steps=10).train()
    resumed = make_trainer(folder, max_steps=20)
    resumed.train(resume_from_checkpoint=True)

print("share of the batch that the weights are worth, by step:")
for step, numbers in resumed.reweighting.history:
    print(f"  step {step:3}: {numbers['effective_share']:.2f}")
figure = resumed.reweighting.history.plot(["effective_share"], label="effective share")
print(f"a figure of {len(figure.axes[0].lines)} line; `figure.savefig(...)` writes it")
