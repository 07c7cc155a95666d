"""What it costs to run a module again, against layers that have a rule.

One pass with gradient norms over the same rows, once for all parameters and once for those
that have a rule, with what is replayed frozen.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import transformers
from measuring import Times, interleave, options, parse, publish, table
from torch import Tensor, nn

from projections import Classification, GradientNorm, PassSettings, find_components, run_pass

ALL, RULES = "all parameters", "those with a rule"


class Scaled(nn.Module):
    """Blocks of an MLP with a learned scale each, as vision transformers have them."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.scales = nn.ModuleList(Scale(width) for _ in range(depth))
        self.head = nn.Linear(width, 10)

    def forward(self, inputs: Tensor) -> Tensor:
        for layer, scale in zip(self.layers, self.scales, strict=True):
            inputs = inputs + scale(layer(inputs).relu())
        return self.head(inputs.mean(1))


class Scale(nn.Module):
    """A learned factor for each feature."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(width))

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs * self.scale


class Recurrent(nn.Module):
    """A recurrent layer between two linear ones."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.before, self.head = nn.Linear(width, width), nn.Linear(width, 10)
        self.recurrent = nn.LSTM(width, width, batch_first=True)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.recurrent(self.before(inputs))[0].mean(1))


def vit(width: int, depth: int) -> nn.Module:
    """A vision transformer: a class token and positions are replayed, in one small module."""
    config = transformers.ViTConfig(
        hidden_size=width,
        num_hidden_layers=depth,
        num_attention_heads=4,
        intermediate_size=4 * width,
        image_size=32,
        patch_size=4,
    )
    return transformers.ViTForImageClassification(config)


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--num", type=int, default=64, help="examples")
    chosen = parse(parser)
    width, depth = 128, 4
    if chosen.quick:
        chosen.num, chosen.rounds, width, depth = 4, 1, 16, 1
    torch.manual_seed(0)
    models: dict[str, tuple[nn.Module, Callable[[], Tensor]]] = {
        "ViT: class token and positions (vmap)": (
            vit(width, depth),
            lambda: torch.randn(3, 32, 32),
        ),
        "a scale after each linear layer (vmap)": (
            Scaled(width, depth),
            lambda: torch.randn(64, width),
        ),
        "nn.LSTM (one after the other)": (Recurrent(width), lambda: torch.randn(64, width)),
    }
    lines = []
    for name, (model, draw) in models.items():
        times, share = compare(model.eval(), draw, chosen.num, chosen.rounds)
        cells = [f"{times.typical(run):.3f}" for run in (RULES, ALL)]
        lines.append([name, f"{share:.1%}", *cells, f"{times.ratio(ALL, RULES):.2f}"])
    head = ["what is replayed", "share of parameters", f"s, {RULES}", f"s, {ALL}", "ratio"]
    publish(
        "Cost of replays",
        [f"{chosen.num} examples, width {width}, {chosen.rounds} rounds.", table(head, lines)],
        chosen.out,
    )


def compare(
    model: nn.Module, draw: Callable[[], Tensor], num: int, rounds: int
) -> tuple[Times, float]:
    """Time the two passes; return also the share of parameters that are replayed."""
    rows = [(draw(), row % 2) for row in range(num)]
    components = find_components(model).components.values()
    replayed = [p.name for c in components if c.kind == "replayed" for p in c.parameters]
    run = partial(one_pass, model, rows)
    runs = {RULES: partial(run, frozen=replayed), ALL: partial(run, frozen=[])}
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    return interleave(runs, rounds), sum(sizes[name] for name in replayed) / sum(sizes.values())


def one_pass(model: nn.Module, rows: list[Any], *, frozen: list[str]) -> None:
    """Compute the gradient norm of every row, the frozen parameters left out."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in frozen)
    settings = PassSettings(batch_size=16)
    run_pass(Classification(model), rows, [GradientNorm()], settings=settings)


if __name__ == "__main__":
    main()
