"""RMS normalisation as libraries write it has the gradients of autograd."""

import pytest
import torch
from oracles import gradients_one_by_one
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from projections import Classification, find_components
from projections.capture import Capture
from projections.layers.rms_norm import find_epsilon

FLOAT32 = 1e-5  # rounding of a few sums in float32
FLOAT64 = 1e-10


class OtherNorm(nn.Module):
    """One plus the weight, and an epsilon under any name."""

    def __init__(self, size: int, name: str, value: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(size, generator=torch.Generator().manual_seed(1)))
        self.name = name
        setattr(self, name, value)

    def forward(self, inputs: Tensor) -> Tensor:
        squares = inputs.square().mean(-1, keepdim=True) + getattr(self, self.name)
        return inputs * squares.rsqrt() * (1 + self.weight)


class Llama(LlamaRMSNorm):
    """That of Llama, with a weight that is not one."""

    def __init__(self, size: int, epsilon: float) -> None:
        super().__init__(size, epsilon)
        nn.init.uniform_(self.weight, 0.5, 1.5, generator=torch.Generator().manual_seed(2))


NORMS = {  # the layer, and what is found of its epsilon in float32 and in float64
    "torch": (
        lambda: nn.RMSNorm(4),
        (torch.finfo(torch.float32).eps, torch.finfo(torch.float64).eps),
    ),
    "torch, 0.01": (lambda: nn.RMSNorm(4, eps=0.01), (0.01, 0.01)),
    "llama": (lambda: Llama(4, 1e-5), (1e-5, None)),  # it computes in float32 always
    "eps": (lambda: OtherNorm(4, "eps", 1e-6), (1e-6, 1e-6)),
    "a name of its own": (lambda: OtherNorm(4, "fuzz", 1e-5), (None, None)),
}


@pytest.mark.parametrize("size", [1e-3, 1.0])
@pytest.mark.parametrize("name", NORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_weight_of_an_rms_norm_has_the_gradient_of_autograd(
    name: str, dtype: torch.dtype, size: float
) -> None:
    make, (single, double) = NORMS[name]
    norm = make().to(dtype)
    assert find_epsilon(norm) == (single if dtype == torch.float32 else double)
    torch.manual_seed(0)
    task = Classification(nn.Sequential(norm, nn.Flatten(), nn.Linear(12, 3)).to(dtype))
    examples = [(size * torch.randn(3, 4, dtype=dtype), at % 3) for at in range(5)]
    found: dict[str, Tensor] = {}
    capture = Capture(task.model, find_components(task.model, "0"))
    with capture.hooks():
        losses = capture.forward(lambda: task.losses(task.collate(examples)), 5)
        capture.backward(losses, lambda gradient: found.update(gradient.materialize()))
    expected = gradients_one_by_one(task, examples)["0.weight"]
    tolerance = FLOAT32 if dtype == torch.float32 else FLOAT64
    torch.testing.assert_close(found["0.weight"], expected, rtol=tolerance, atol=tolerance)


def test_a_layer_in_half_precision_normalises_by_itself() -> None:
    assert find_epsilon(Llama(4, 1e-5).bfloat16()) is None
