"""Named models with a task and data: every kind of layer and every way of using one.

Each case is a function of the number of examples, so that nothing is built before it is
asked for. Everything is made from configurations, in float64 and from a fixed seed.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from projections import CausalLM, Classification, Regression, SequenceClassification, Task

Case = Callable[[int], tuple[Task, list[Any]]]
VOCABULARY = 13
LENGTHS = (5, 2, 7, 3, 4)  # tokens of the texts, so that batches have padding


class LeftPadded(CausalLM):
    """The same texts with the padding in front."""

    def collate(self, examples: Sequence[Any]) -> dict[str, Tensor]:
        right = super().collate(examples)
        order = right["attention_mask"].argsort(dim=1, stable=True)
        return {name: value.gather(1, order) for name, value in right.items()}


class PaddedOnTheRight(SequenceClassification):
    """Sequence classification of token lists, padded without a tokenizer."""

    def collate(self, examples: Sequence[Any]) -> dict[str, Tensor]:
        length = max(map(self.size, examples))
        ids = torch.zeros(len(examples), length, dtype=torch.int64)
        mask = torch.zeros_like(ids)
        for row, example in enumerate(examples):
            size = self.size(example)
            ids[row, :size] = torch.tensor(example["input_ids"])
            mask[row, :size] = 1
        label = torch.tensor([example["label"] for example in examples])
        return {"input_ids": ids, "attention_mask": mask, "label": label}


class Doubling(nn.Linear):
    """A subclass of a linear layer, as adapters and libraries have them."""


class UsedTwice(nn.Module):
    """One layer at two depths, and one embedding looked up twice."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(VOCABULARY, 4)
        self.layer = nn.Linear(4, 4)
        self.head = nn.Linear(4, 3)

    def forward(self, ids: Tensor) -> Tensor:
        hidden = self.table(ids) + self.table((ids + 1) % VOCABULARY)
        return self.head(self.layer(torch.tanh(self.layer(hidden))).mean(1))


class SharedWeight(nn.Module):
    """Two linear layers with one weight and two biases."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.second.weight = self.first.weight

    def forward(self, inputs: Tensor) -> Tensor:
        return self.second(torch.tanh(self.first(inputs)))


class Checkpointed(nn.Module):
    """A block that is run again in backward."""

    def __init__(self, *, reentrant: bool) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(4, 5), nn.Linear(5, 3)
        self.block = nn.Sequential(nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 5))
        self.reentrant = reentrant

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.first(inputs)
        for _ in range(2):
            hidden = checkpoint(self.block, hidden, use_reentrant=self.reentrant)
        return self.head(hidden)


class FlatPositions(nn.Module):
    """Examples and positions flattened into one axis, as mixtures of experts do."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(VOCABULARY, 4)
        self.layer, self.norm = nn.Linear(4, 4), nn.LayerNorm(4)
        self.batch_norm = nn.BatchNorm1d(4)
        self.head = nn.Linear(4, 3)

    def forward(self, ids: Tensor) -> Tensor:
        hidden = self.table(ids).flatten(0, 1)
        hidden = self.batch_norm(self.norm(torch.tanh(self.layer(hidden))))
        return self.head(hidden.unflatten(0, ids.shape).square().mean(1))


class Frames(nn.Module):
    """Convolutions over the frames of several films at once."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3, padding=1, groups=2)
        self.norm = nn.GroupNorm(2, 4)
        self.head = nn.Linear(4, 3)

    def forward(self, films: Tensor) -> Tensor:
        hidden = self.norm(self.conv(films.flatten(0, 1))).square().mean((2, 3))
        return self.head(hidden.unflatten(0, films.shape[:2]).mean(1))


class Functional(nn.Module):
    """A norm of two axes, one without a bias, and a bias without a trainable weight."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.plain = nn.LayerNorm([2, 4]), nn.LayerNorm(4, bias=False)
        self.biased, self.head = nn.Linear(4, 4), nn.Linear(8, 3, bias=False)
        self.biased.weight.requires_grad_(False)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.biased(self.plain(self.wide(inputs.view(-1, 2, 4)))).flatten(1))


def finished(model: nn.Module) -> Any:
    """A model in float64 and evaluation mode whose buffers and norms are not trivial."""
    model = model.double().eval()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                assert module.running_mean is not None and module.running_var is not None
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2.0)
        for name, parameter in model.named_parameters():
            if "norm" in name or "ln_" in name or "bias" in name:
                parameter.add_(torch.randn_like(parameter), alpha=0.3)
    return model


def vectors(model: nn.Module, num: int, num_in: int = 4) -> tuple[Task, list[Any]]:
    task = Classification(finished(model))
    inputs, labels = torch.randn(num, num_in).double(), torch.randint(3, (num,))
    return task, list(zip(inputs, labels, strict=True))


def images(model: nn.Module, num: int, *, shape: tuple[int, ...] = (2, 6, 5)) -> Any:
    task = Classification(finished(model))
    inputs, labels = torch.randn(num, *shape).double(), torch.randint(3, (num,))
    return task, list(zip(inputs, labels, strict=True))


def token_ids(model: nn.Module, num: int) -> tuple[Task, list[Any]]:
    task = Classification(finished(model))
    inputs, labels = torch.randint(VOCABULARY, (num, 6)), torch.randint(3, (num,))
    return task, list(zip(inputs, labels, strict=True))


def texts(task: Task, num: int) -> tuple[Task, list[Any]]:
    rows = [
        {"input_ids": torch.randint(1, VOCABULARY, (LENGTHS[row % 5],)).tolist(), "label": row % 3}
        for row in range(num)
    ]
    return task, task.encode(rows)


def regression(num: int) -> tuple[Task, list[Any]]:
    task = Regression(finished(nn.Linear(3, 2)))
    inputs, targets = torch.randn(num, 3).double(), torch.randn(num, 2).double()
    return task, list(zip(inputs, targets, strict=True))


def convnet(groups: int, mode: Any = "zeros") -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, stride=(2, 1), padding=(1, 2), groups=groups, padding_mode=mode),
        nn.GroupNorm(2, 4),
        nn.ReLU(),
        nn.Conv2d(4, 4, (3, 2), dilation=(1, 2), padding="same", groups=groups, bias=False),
        nn.BatchNorm2d(4),
        nn.Flatten(),
        nn.Linear(4 * 3 * 7, 3),
    )


def gpt2(**settings: Any) -> Any:
    config = transformers.GPT2Config(
        n_layer=2, n_head=2, n_embd=8, vocab_size=VOCABULARY, n_positions=16, **settings
    )
    return finished(transformers.GPT2LMHeadModel(config))


def gpt2_checkpointed(*, reentrant: bool) -> Any:
    model = gpt2(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    return model.train()  # transformers runs segments again in training mode only


def llama(*, tied: bool) -> Any:
    config = transformers.LlamaConfig(
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        hidden_size=8,
        intermediate_size=12,
        vocab_size=VOCABULARY,
        max_position_embeddings=16,
        tie_word_embeddings=tied,
    )
    return finished(transformers.LlamaForCausalLM(config))


def bert() -> Any:
    config = transformers.BertConfig(
        num_hidden_layers=2,
        num_attention_heads=2,
        hidden_size=8,
        intermediate_size=12,
        vocab_size=VOCABULARY,
        max_position_embeddings=16,
    )
    config.num_labels = 3
    return finished(transformers.BertForSequenceClassification(config))


def mlp(act: nn.Module | None = None) -> nn.Module:
    hidden = Doubling(4, 5), nn.LayerNorm(5), act or nn.GELU()
    return nn.Sequential(*hidden, nn.Linear(5, 5), act or nn.GELU(), nn.Linear(5, 3))


def padded_embedding() -> nn.Module:
    table = nn.Embedding(VOCABULARY, 4, padding_idx=3)
    return nn.Sequential(table, nn.RMSNorm(4), nn.Flatten(), nn.Linear(24, 3))


class Squared(nn.Module):
    """ReLU of a mean over positions, in place."""

    def forward(self, inputs: Tensor) -> Tensor:
        return functional.relu(inputs.mean(1), inplace=True)


def one_position() -> nn.Module:
    """Layers that see sequences of one position."""
    return nn.Sequential(nn.Unflatten(1, (1, 4)), nn.Linear(4, 5), Squared(), nn.Linear(5, 3))


MODELS: dict[str, Case] = {
    "linear-regression": regression,
    "mlp-layernorm-subclass": lambda n: vectors(mlp(), n),
    "mlp-inplace-relu": lambda n: vectors(mlp(nn.ReLU(inplace=True)), n),
    "one-position": lambda n: vectors(one_position(), n),
    "norms-and-lone-bias": lambda n: vectors(Functional(), n, 8),
    "shared-weight-two-biases": lambda n: vectors(
        nn.Sequential(SharedWeight(), nn.Linear(4, 3)), n
    ),
    "checkpoint-reentrant": lambda n: vectors(Checkpointed(reentrant=True), n),
    "checkpoint-plain": lambda n: vectors(Checkpointed(reentrant=False), n),
    "convnet-zeros": lambda n: images(convnet(1), n),
    "convnet-groups-reflect": lambda n: images(convnet(2, "reflect"), n),
    "convnet-groups-circular": lambda n: images(convnet(2, "circular"), n),
    "convnet-replicate": lambda n: images(convnet(1, "replicate"), n),
    "frames-in-one-axis": lambda n: images(Frames(), n, shape=(3, 2, 4, 4)),
    "used-twice": lambda n: token_ids(UsedTwice(), n),
    "positions-in-one-axis": lambda n: token_ids(FlatPositions(), n),
    "embedding-padding-rmsnorm": lambda n: token_ids(padded_embedding(), n),
    "gpt2-tied": lambda n: texts(CausalLM(gpt2()), n),
    "gpt2-left-padding": lambda n: texts(LeftPadded(gpt2()), n),
    "gpt2-checkpoint-reentrant": lambda n: texts(CausalLM(gpt2_checkpointed(reentrant=True)), n),
    "gpt2-checkpoint-plain": lambda n: texts(CausalLM(gpt2_checkpointed(reentrant=False)), n),
    "llama-tied": lambda n: texts(CausalLM(llama(tied=True)), n),
    "llama-left-padding": lambda n: texts(LeftPadded(llama(tied=False)), n),
    "bert": lambda n: texts(PaddedOnTheRight(bert(), None), n),
}


def build(name: str, num: int) -> tuple[Task, list[Any]]:
    """Build a case from its name, the same each time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return MODELS[name](num)
