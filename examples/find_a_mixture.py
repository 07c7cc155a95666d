"""Find a mixture with a small proxy, in the Trainer of Hugging Face, before the real training.

DoGE: the domains whose gradients help the others, or a target. DoReMi: the domains whose loss
is furthest above that of a reference model. Both give the mean of their weights over the run;
`examples/train_on_a_mixture.py` trains on mixtures. Some seconds on a CPU.
"""

from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

from projections import CausalLM
from selection import DoGE, DoReMi, FixedMixture, MirrorDescent, MixtureDraws
from selection.trainers import DrawsMixin

VOCABULARY, LENGTH, STEPS = 32, 12, 24
random = np.random.default_rng(0)


def texts(steps: list[int], count: int) -> list[dict[str, list[int]]]:
    """Return sequences of numbers that rise by one of some steps."""
    starts = random.integers(VOCABULARY, size=count).tolist()
    rows = [
        ((start + random.choice(steps) * np.arange(LENGTH)) % VOCABULARY).tolist()
        for start in starts
    ]
    return [{"input_ids": row, "labels": row} for row in rows]


sources = {"by one": texts([1], 60), "by five": texts([5], 60), "by any": texts([3, 7, 9, 11], 60)}
train = Dataset.from_list([{**r, "source": name} for name, part in sources.items() for r in part])


class ProxyTrainer(DrawsMixin, Trainer):
    """A trainer that takes `draws` and `mixture`."""

    draws: MixtureDraws


class DoReMiTrainer(ProxyTrainer):
    """Its loss is DoReMi's, which needs to know the domain of each example."""

    def compute_loss(self, model: Any, inputs: Any, *_: Any, **settings: Any) -> torch.Tensor:
        """Return the weighted loss of the batch that the draws gave."""
        step = self.state.global_step
        return doremi.loss(step, inputs, self.draws.domains(step))


def make_model(seed: int) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
    )
    return LlamaForCausalLM(config)


def train_on(
    kind: type[ProxyTrainer], model: LlamaForCausalLM, drawn_by: Any, mixture: Any
) -> None:
    with TemporaryDirectory() as folder:
        kind(
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
            draws=MixtureDraws(drawn_by, train["source"], batch_size=8, seed=0, lag=4),
            mixture=mixture,
        ).train()


def show(name: str, found: FixedMixture) -> None:
    pairs = zip(found.names, found.weights, strict=True)
    print(f"{name}: " + ", ".join(f"{domain} {weight:.0%}" for domain, weight in pairs))


uniform = FixedMixture(tuple(sources))

# DoGE moves the weights by which its own rows are drawn.
proxy = make_model(0)
rule = MirrorDescent(step_size=0.2, clip=(0.0, 5.0))
doge = DoGE(CausalLM(proxy), sources, texts([5], 8), every=4, batch_size=4, rule=rule, seed=0)
train_on(ProxyTrainer, proxy, doge, doge)
show("DoGE, towards `by five`", doge.result)

# DoReMi weighs losses, and draws uniformly; the reference is trained first.
reference, proxy = make_model(1), make_model(0)
train_on(ProxyTrainer, reference, uniform, None)
doremi = DoReMi(CausalLM(proxy), CausalLM(reference), tuple(sources))
train_on(DoReMiTrainer, proxy, uniform, doremi)
show("DoReMi", doremi.result)
