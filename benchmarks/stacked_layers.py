"""Does it pay to project equal-shaped layers together, in one batched product?

One by one is what the library does: a layer is projected as soon as backward reaches it.
Together means that factors wait until the last layer of their shape was reached, are put
into one tensor, and are projected with batched products and batched transforms. Random
matrices are drawn before the clock starts, on both sides.
"""

from collections.abc import Callable

import torch
from measuring import interleave, options, parse, publish, table
from torch import Tensor

SHAPES = ((24, 64), (24, 384), (12, 768))  # layers, width
EXAMPLES, POSITIONS, DIMS, SKETCH = 8, 128, 16, 4096


def main() -> None:
    parser = options(__doc__)
    chosen = parse(parser)
    shapes = ((3, 8), (2, 16)) if chosen.quick else SHAPES
    lines = []
    for layers, width in shapes:
        generator = torch.Generator().manual_seed(0)

        def draw(*shape: int, count: int = layers) -> list[Tensor]:
            return [torch.randn(*shape, generator=generator) for _ in range(count)]  # noqa: B023

        inputs, grads = (draw(EXAMPLES, POSITIONS, width) for _ in range(2))
        left, right = (draw(width, min(DIMS, width)) for _ in range(2))
        for name, project in (("two-sided", two_sided), ("TensorSketch", fourier)):
            if name == "TensorSketch":
                left, right = (hashes(layers, width, generator) for _ in range(2))
            calls: dict[str, Callable[[], object]] = {
                "one": lambda p=project, a=left, b=right: [
                    p(*each)
                    for each in zip(inputs, grads, a, b, strict=True)  # noqa: B023
                ],
                "all": lambda p=project, a=left, b=right: p(
                    *(torch.stack(each) for each in (inputs, grads, a, b))  # noqa: B023
                ),
            }
            times = interleave(calls, chosen.rounds)
            one, ratio = times.typical("one"), times.ratio("all", "one")
            lines.append([name, layers, width, f"{1000 * one:.1f}", f"{ratio:.2f}"])
    head = ["projection", "layers", "width", "one by one, ms", "together over one by one"]
    text = (
        f"{EXAMPLES} examples of {POSITIONS} positions, sides of {DIMS}, sketches of {SKETCH}; "
        f"{chosen.rounds} rounds. Above 1, together is slower."
    )
    publish("Projecting equal-shaped layers together", [text, table(head, lines)], chosen.out)


def two_sided(inputs: Tensor, grads: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """Project both sides and multiply, for one layer or for several."""
    if inputs.dim() == 4:
        left, right = left[:, None], right[:, None]
    return (grads @ left).mT @ (inputs @ right)


def hashes(layers: int, width: int, generator: torch.Generator) -> list[Tensor]:
    """Return the bins of each layer."""
    shape = (width,)
    return [torch.randint(SKETCH, shape, generator=generator) for _ in range(layers)]


def fourier(inputs: Tensor, grads: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """Sum the products of the factors' sketches in the Fourier domain."""
    return torch.fft.irfft((sketch(grads, left) * sketch(inputs, right)).sum(-2), n=SKETCH)


def sketch(values: Tensor, bins: Tensor) -> Tensor:
    """Return the transform of the count sketch of each position."""
    out = values.new_zeros(*values.shape[:-1], SKETCH)
    if values.dim() == 4:
        bins = bins[:, None, None]
    return torch.fft.rfft(out.scatter_add_(-1, bins.expand_as(values), values))


if __name__ == "__main__":
    main()
