"""Named models for every layer rule, for what is replayed, and for models as people have them.

Each is a function from the number of examples to a task and rows, in float64 and tiny.
"""

from typing import Any

import torch
import transformers
from cases import LENGTHS, VOCABULARY, Case, finished, gpt2, images, token_ids
from torch import Tensor, nn
from torch.nn import functional
from transformers.models.bart.modeling_bart import BartScaledWordEmbedding

from projections import CausalLM, Classification, MaskedLM, Seq2SeqLM, Task


class Layered(nn.Module):
    """A linear layer, the layer in question and a head that sees all it gives."""

    def __init__(self, layer: nn.Module, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.before, self.layer = nn.Linear(shape[-1], shape[-1]), layer
        with torch.no_grad():
            size = first(layer(torch.randn(2, *shape))).flatten(1).shape[1]
        self.head = nn.Linear(size, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(first(self.layer(torch.tanh(self.before(inputs)))).flatten(1))


def first(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output


class SequenceFirst(nn.Module):
    """Positions before examples, as torch's recurrent layers and attention have them."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = inputs.transpose(0, 1)
        for layer in self.layers:
            hidden = first(layer(hidden))
        return hidden.transpose(0, 1)


class Attending(nn.Module):
    """Attention across two sequences of other lengths, with a mask, and its weights used."""

    def __init__(self, *, need_weights: bool = True, **settings: Any) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, **settings)
        self.need_weights, self.width = need_weights, settings.get("kdim", 4)

    def forward(self, inputs: Tensor) -> Tensor:
        keys = functional.pad(inputs[:, :3], (0, self.width - 4))
        mask = torch.ones(inputs.shape[1], 3, device=inputs.device).tril(1) == 0
        padding = torch.zeros_like(inputs[:, :3, 0], dtype=torch.bool)
        padding[:, 2] = inputs[:, 0, 0] > 0
        queries = inputs
        if not self.attention.batch_first:
            queries, keys = queries.transpose(0, 1), keys.transpose(0, 1)
        output, weights = self.attention(
            queries,
            keys,
            keys,
            attn_mask=mask,
            key_padding_mask=padding,
            need_weights=self.need_weights,
        )
        if not self.attention.batch_first:
            output = output.transpose(0, 1)
        return output if weights is None else output + weights.sum(-1, True) * weights[..., :1]


class Pair(nn.Module):
    """A bilinear form of the inputs with themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.form = nn.Bilinear(4, 4, 4)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.form(inputs, inputs)


class Positions(nn.Module):
    """Position embeddings without a batch axis, a stray parameter, and a list of them."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.project = nn.Embedding(7, 4), nn.Linear(4, 4)
        self.scale = nn.Parameter(torch.randn(5, 4))
        self.shifts = nn.ParameterList([torch.randn(4), torch.randn(())])

    def forward(self, inputs: Tensor) -> Tensor:
        places = torch.arange(inputs.shape[1], device=inputs.device)
        return (inputs * self.project(self.table(places)) + self.scale * self.shifts[0]).tanh()


class Table(nn.Module):
    """A module that takes nothing and gives a parameter for the whole batch."""

    def __init__(self) -> None:
        super().__init__()
        self.values = nn.Parameter(torch.randn(5, 4))

    def forward(self) -> Tensor:
        return self.values * 2


class Shifted(nn.Module):
    """Adds what another module gives for the whole batch."""

    def __init__(self) -> None:
        super().__init__()
        self.table = Table()

    def forward(self, inputs: Tensor) -> Tensor:
        return (inputs * self.table()).tanh()


class Gated(nn.Module):
    """Control flow that looks at values, which `vmap` cannot follow."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.randn(4))

    def forward(self, inputs: Tensor) -> Tensor:
        rows = [row * self.scale if float(row.detach().sum()) > 0 else row for row in inputs]
        return torch.stack(rows)


class Halved(nn.Linear):
    """A linear layer whose forward does something else with the weight."""

    def forward(self, inputs: Tensor) -> Tensor:  # pyright: ignore
        return functional.linear(inputs, self.weight / 2, self.bias).tanh()


class Scaled(nn.Embedding):
    """A table whose rows are scaled, as Gemma has them, and looked up with an offset."""

    def forward(self, ids: Tensor) -> Tensor:  # pyright: ignore
        return super().forward(ids + 2) * 3.0


class ScaledTokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = Scaled(VOCABULARY + 2, 4), nn.Linear(4, 3)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.table(ids).tanh().mean(1))


def layered(layer: nn.Module, num: int, shape: tuple[int, ...] = (5, 4)) -> tuple[Task, list[Any]]:
    model = finished(Layered(layer, shape))
    inputs, labels = torch.randn(num, *shape).double(), torch.randint(3, (num,))
    return Classification(model), list(zip(inputs, labels, strict=True))


def scaled_tokens(num: int) -> tuple[Task, list[Any]]:
    inputs, labels = torch.randint(VOCABULARY, (num, 6)), torch.randint(3, (num,))
    return Classification(finished(ScaledTokens())), list(zip(inputs, labels, strict=True))


class Bags(nn.Module):
    """Three bags an example, of one, two and three words."""

    def __init__(self, *, flat: bool, weighted: bool = False, **settings: Any) -> None:
        super().__init__()
        self.bag = nn.EmbeddingBag(VOCABULARY, 4, **settings)
        self.flat, self.weighted = flat, weighted
        self.head = nn.Linear(4 if not flat else 12, 3)

    def forward(self, ids: Tensor) -> Tensor:
        weights = ids / VOCABULARY if self.weighted else None
        if not self.flat:
            weights = weights if weights is None else weights.to(self.bag.weight)
            return self.head(self.bag(ids, per_sample_weights=weights))
        starts = torch.arange(0, 6 * len(ids), 6)[:, None] + torch.tensor([0, 1, 3])
        starts = starts.flatten().to(ids.device)
        if self.bag.include_last_offset:
            starts = torch.cat([starts, starts.new_tensor([ids.numel()])])
        if weights is not None:
            weights = weights.flatten().to(self.bag.weight)
        bags = self.bag(ids.flatten(), starts, weights)
        return self.head(bags.unflatten(0, (len(ids), 3)).flatten(1))


class Folded(nn.Module):
    """Ids as they are if they are few."""

    def __init__(self, num: int) -> None:
        super().__init__()
        self.num = num

    def forward(self, ids: Tensor) -> Tensor:
        return ids % self.num


def lora_of_table(table: nn.Embedding, *, trained: bool = False) -> nn.Module:
    """LoRA on a table, which is trained too or else has a second adapter that is off."""
    import peft

    model = nn.Sequential(Folded(table.num_embeddings), table, nn.Flatten(), nn.Linear(24, 3))
    config = peft.LoraConfig(r=2, target_modules=["1"], lora_dropout=0.0, init_lora_weights=False)
    changed = peft.get_peft_model(model, config)  # pyright: ignore
    if trained:
        table.requires_grad_(True)
    else:
        changed.add_adapter("other", config)
    return changed


def pictures(model: nn.Module, num: int, size: int) -> tuple[Task, list[Any]]:
    return images(model, num, shape=(3, size, size))


def vit() -> nn.Module:
    config = transformers.ViTConfig(
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=12,
        image_size=8,
        patch_size=4,
    )
    config.num_labels = 3
    return transformers.ViTForImageClassification(config)


def resnet() -> Any:
    config = transformers.ResNetConfig(
        embedding_size=4, hidden_sizes=[4, 6], depths=[1, 2], layer_type="basic"
    )
    config.num_labels = 3
    return transformers.ResNetForImageClassification(config)


def group_norm_resnet() -> nn.Module:
    """The same with group norm in the place of batch norm."""
    model = resnet()
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.BatchNorm2d):
            outer, _, attribute = name.rpartition(".")
            norm = nn.GroupNorm(2, module.num_features)
            setattr(model.get_submodule(outer), attribute, norm)
    return model


def bert() -> Any:
    config = transformers.BertConfig(
        num_hidden_layers=2,
        num_attention_heads=2,
        hidden_size=8,
        intermediate_size=12,
        vocab_size=VOCABULARY,
        max_position_embeddings=16,
    )
    return finished(transformers.BertForMaskedLM(config))


def t5(*, tied: bool) -> Any:
    config = transformers.T5Config(
        num_layers=2,
        num_heads=2,
        d_model=8,
        d_kv=4,
        d_ff=12,
        vocab_size=VOCABULARY,
        relative_attention_num_buckets=6,
        relative_attention_max_distance=8,
        feed_forward_proj="relu" if tied else "gated-gelu",
    )
    config.decoder_start_token_id, config.tie_word_embeddings = 0, tied
    return finished(transformers.T5ForConditionalGeneration(config))


def bart() -> Any:
    config = transformers.BartConfig(
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        d_model=8,
        encoder_ffn_dim=12,
        decoder_ffn_dim=12,
        vocab_size=VOCABULARY,
        max_position_embeddings=16,
        decoder_start_token_id=2,
        scale_embedding=True,
    )
    return finished(transformers.BartForConditionalGeneration(config))


def tokens(length: int) -> list[int]:
    return torch.randint(1, VOCABULARY, (length,)).tolist()


def texts(task: Task, num: int) -> tuple[Task, list[Any]]:
    return task, task.encode([{"input_ids": tokens(LENGTHS[row % 5])} for row in range(num)])


def masked(num: int) -> tuple[Task, list[Any]]:
    special = {"mask_token": 4, "vocabulary": VOCABULARY, "special_tokens": (1, 2)}
    task = MaskedLM(bert(), seed=0, probability=0.4, **special)
    return texts(task, num)


def translations(model: nn.Module, num: int) -> tuple[Task, list[Any]]:
    task = Seq2SeqLM(model)
    rows = [
        {"input_ids": tokens(LENGTHS[row % 5]), "labels": tokens(LENGTHS[(row + 2) % 5])}
        for row in range(num)
    ]
    return task, task.encode(rows)


def lora() -> Any:
    """LoRA on a `Conv1D`, an output projection and the token table of GPT-2."""
    import peft

    config = peft.LoraConfig(
        r=2,
        lora_alpha=4,
        target_modules=["c_attn", "attn.c_proj", "wte"],
        lora_dropout=0.0,
        fan_in_fan_out=True,
        init_lora_weights=False,
    )
    return peft.get_peft_model(gpt2(), config).double().eval()  # pyright: ignore


def encoder(*, batch_first: bool) -> nn.Module:
    layer = nn.TransformerEncoderLayer(4, 2, 6, batch_first=batch_first)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


CONV1D = [
    {"padding": 2, "stride": 2, "dilation": 2, "groups": 2, "padding_mode": mode}
    for mode in ("zeros", "reflect", "replicate", "circular")
]

LAYERS: dict[str, Case] = {
    **{
        f"conv1d-{settings['padding_mode']}": lambda n, s=settings: layered(
            nn.Conv1d(4, 6, 3, **s), n, (4, 7)
        )
        for settings in CONV1D
    },
    "conv1d-same": lambda n: layered(nn.Conv1d(5, 4, 3, padding="same", bias=False), n),
    "conv1d-valid": lambda n: layered(nn.Conv1d(5, 4, 2, padding="valid"), n),
    "conv3d": lambda n: layered(
        nn.Conv3d(2, 4, (3, 2, 1), stride=(1, 2, 1), padding=1, groups=2), n, (2, 3, 4, 3)
    ),
    "conv3d-circular": lambda n: layered(
        nn.Conv3d(1, 2, 2, padding=1, padding_mode="circular"), n, (1, 3, 3, 3)
    ),
    "conv-transpose1d": lambda n: layered(
        nn.ConvTranspose1d(5, 6, 3, stride=2, padding=1, output_padding=1), n
    ),
    "conv-transpose2d-groups": lambda n: layered(
        nn.ConvTranspose2d(4, 6, (3, 2), stride=2, dilation=2, groups=2), n, (4, 3, 2)
    ),
    "conv-transpose3d": lambda n: layered(nn.ConvTranspose3d(2, 3, 2), n, (2, 2, 3, 2)),
    "attention": lambda n: layered(Attending(batch_first=True), n),
    "attention-sequence-first": lambda n: layered(Attending(need_weights=False), n),
    "attention-separate-added": lambda n: layered(
        Attending(need_weights=False, kdim=6, vdim=6, batch_first=True, add_bias_kv=True), n
    ),
    "attention-zero-no-bias": lambda n: layered(
        Attending(add_bias_kv=True, add_zero_attn=True, bias=False), n
    ),
    "encoder": lambda n: layered(encoder(batch_first=True), n),
    "encoder-sequence-first": lambda n: layered(SequenceFirst(encoder(batch_first=False)), n),
    "lstm": lambda n: layered(nn.LSTM(4, 3, batch_first=True), n),
    "gru-sequence-first": lambda n: layered(
        SequenceFirst(nn.GRU(4, 3, num_layers=2, bidirectional=True), nn.Linear(6, 2)), n
    ),
    "bilinear": lambda n: layered(Pair(), n),
    "prelu": lambda n: layered(nn.PReLU(), n),
    "instance-norm": lambda n: layered(nn.InstanceNorm1d(5, affine=True), n),
    "positions": lambda n: layered(Positions(), n),
    "table-for-all": lambda n: layered(Shifted(), n),
    "control-flow": lambda n: layered(Gated(), n),
    "linear-of-its-own": lambda n: layered(Halved(4, 2), n),
    "scaled-embedding": scaled_tokens,
    "bag-sum": lambda n: token_ids(Bags(flat=False, mode="sum", padding_idx=1), n),
    "bag-weighted": lambda n: token_ids(Bags(flat=False, weighted=True, mode="sum"), n),
    "bag-mean-flat": lambda n: token_ids(Bags(flat=True, padding_idx=2), n),
    "bag-max-flat": lambda n: token_ids(
        Bags(flat=True, mode="max", include_last_offset=True, padding_idx=0), n
    ),
    "bag-weighted-flat": lambda n: token_ids(Bags(flat=True, weighted=True, mode="sum"), n),
    "lora-table": lambda n: token_ids(lora_of_table(nn.Embedding(VOCABULARY, 4, padding_idx=3)), n),
    "lora-small-table": lambda n: token_ids(lora_of_table(nn.Embedding(5, 4)), n),
    "lora-trained-table": lambda n: token_ids(
        lora_of_table(nn.Embedding(VOCABULARY, 4), trained=True), n
    ),
    "lora-scaled-table": lambda n: token_ids(
        lora_of_table(BartScaledWordEmbedding(VOCABULARY, 4, 0, embed_scale=3.0)), n
    ),
}

MODELS: dict[str, Case] = {
    "vit": lambda n: pictures(vit(), n, 8),
    "resnet": lambda n: pictures(resnet(), n, 16),
    "resnet-group-norm": lambda n: pictures(group_norm_resnet(), n, 16),
    "bert-masked": masked,
    "t5-tied": lambda n: translations(t5(tied=True), n),
    "t5-gated": lambda n: translations(t5(tied=False), n),
    "bart": lambda n: translations(bart(), n),
    "gpt2-lora": lambda n: texts(CausalLM(lora()), n),
}


def build(name: str, num: int) -> tuple[Task, list[Any]]:
    """Build a case from its name, the same each time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return {**LAYERS, **MODELS}[name](num)
