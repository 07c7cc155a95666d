"""What building the index costs, against a plain forward and backward over the same data.

The model is a Llama of ten million parameters, built from its configuration; the text is
random tokens. The plain run is what training does: batches that are already tensors, the
model's own loss, weight gradients of the whole batch. The index run is `index_gradients`
from Python lists to a store on disk: its checks, SJLT rows, exact norms, losses, checksums.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from measuring import interleave, options, parse, publish, table
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from projections import SJLT, CausalLM, PassSettings, index_gradients

BOUND = 1.6
PLAIN = "plain forward and backward"
PRODUCT = "matrix product"
SIDE = 2048  # of the product that shows what the machine can do


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--examples", type=int, default=256)
    parser.add_argument("--length", type=int, default=128, help="tokens in an example")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--num-dims", type=int, nargs="+", default=[2048, 4096])
    chosen = parse(parser)
    if chosen.quick:
        chosen.examples, chosen.length, chosen.rounds = 8, 16, 1
    model = build_model(chosen.quick)
    generator = torch.Generator().manual_seed(0)
    shape = (chosen.examples, chosen.length)
    tokens = torch.randint(model.config.vocab_size, shape, generator=generator)
    side = 64 if chosen.quick else SIDE
    square = torch.randn(side, side, generator=generator)
    with tempfile.TemporaryDirectory() as folder:
        runs: dict[str, Callable[[], object]] = {
            PLAIN: lambda: train_batches(model, tokens, chosen.batch_size)
        }
        for num_dims in chosen.num_dims:
            runs[f"index, {num_dims} dimensions"] = IndexRun(
                model, tokens, chosen.batch_size, num_dims, Path(folder)
            )
        runs[PRODUCT] = lambda: [square @ square for _ in range(20)]
        times = interleave(runs, chosen.rounds)
    work = count_operations(model, chosen.length) * chosen.examples
    best = 20 * 2 * side**3 / times.typical(PRODUCT)
    rows = []
    for name in runs:
        rate = best if name == PRODUCT else work / times.typical(name)
        bound = f"at most {BOUND}" if name.startswith("index") else ""
        rows.append(
            [
                f"{PRODUCT} of {side} x {side}" if name == PRODUCT else name,
                "" if name == PRODUCT else f"{times.typical(name):.2f}",
                "" if name == PRODUCT else f"{times.ratio(name, PLAIN):.2f}",
                bound,
                f"{rate / 1e9:.0f}",
                f"{rate / best:.0%}",
            ]
        )
    size = sum(parameter.numel() for parameter in model.parameters())
    head = ["run", "seconds", "ratio", "bound", "GFLOP/s", "share of the machine's products"]
    publish(
        "Cost of the index",
        [
            f"A language model of {size / 1e6:.1f} million parameters, {chosen.examples} examples "
            f"of {chosen.length} tokens, batches of {chosen.batch_size}, float32; "
            f"{chosen.rounds} rounds. Counted are the {work / 1e9:.0f} GFLOP of matrix products "
            "that both runs need; an index also adds up each gradient's entries, and runs its "
            "checks before it starts.",
            table(head, rows),
        ],
        chosen.out,
    )


def build_model(quick: bool) -> LlamaForCausalLM:
    """Return a model with random weights."""
    torch.manual_seed(0)
    hidden, inner, num_layers, vocabulary = (36, 60, 2, 64) if quick else (384, 1024, 4, 4096)
    config = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=num_layers,
        num_attention_heads=6,
        num_key_value_heads=6,
        vocab_size=vocabulary,
        tie_word_embeddings=False,
    )
    return LlamaForCausalLM(config).eval()


def train_batches(model: LlamaForCausalLM, tokens: torch.Tensor, batch_size: int) -> None:
    """Compute the gradient of every batch."""
    for batch in tokens.split(batch_size):
        model.zero_grad()
        model(input_ids=batch, labels=batch, use_cache=False).loss.backward()
    model.zero_grad()


class IndexRun:
    """Builds a new store at each call."""

    def __init__(
        self,
        model: LlamaForCausalLM,
        tokens: torch.Tensor,
        batch_size: int,
        num_dims: int,
        folder: Path,
    ) -> None:
        """Keep the arguments, and the data as a user has it."""
        self.task = CausalLM(model)
        self.data = [{"input_ids": row} for row in tokens.tolist()]
        self.settings = PassSettings(batch_size=batch_size)
        self.projector = SJLT(num_dims=num_dims, seed=0)
        self.folder = folder
        self.count = 0

    def __call__(self) -> None:
        """Build the store."""
        self.count += 1
        path = self.folder / f"{self.projector.num_dims}-{self.count}"
        index_gradients(self.task, self.data, self.projector, path=path, settings=self.settings)


def count_operations(model: LlamaForCausalLM, length: int) -> int:
    """Return the floating-point operations of the products of one example.

    Each weight is used in three products (output, gradient of the input, gradient of the
    weight) of 2 operations an entry and token; attention in three times two products of
    queries with keys and of their weights with values, counted without the causal mask.
    """
    linear = sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Linear))
    config = model.config
    attention = config.num_hidden_layers * config.hidden_size * length
    return 3 * length * 2 * (linear + 2 * attention)


if __name__ == "__main__":
    main()
