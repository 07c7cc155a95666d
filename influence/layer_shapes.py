"""The linear maps of a model as shapes: all that a plan needs to know of it.

They are read off one forward of one example, or off a configuration, by a forward of fake
tensors, which have shapes and no numbers.

Letters: ``t`` positions, ``i`` inputs of a layer (with a trailing one for its bias), ``o``
outputs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoModelForCausalLM, PretrainedConfig

from influence.linear_layers import linear_uses
from projections import Capture, PassSettings, Rows, Task, find_components, matches, to_device

NUM_SAMPLED_ROWS = 64


@dataclass(frozen=True)
class LayerShape:
    """One linear map, as a plan sees it.

    Args:
        component: Name of the component it belongs to.
        name: Its own name.
        positions: Mean number ``t`` of positions of an example.
        num_in: Number ``i`` of inputs.
        num_out: Number ``o`` of outputs.
        shares_input: Whether another map before it reads the same tensor.
    """

    component: str
    name: str
    positions: float
    num_in: int
    num_out: int
    shares_input: bool

    @property
    def size(self) -> int:
        """Number of entries of its gradient."""
        return self.num_in * self.num_out


@dataclass(frozen=True)
class ModelShape:
    """What a forward and backward of one example computes.

    Args:
        layers: The linear maps whose gradients are looked at.
        others: Linear maps that run, and whose gradients are not looked at.
        attention: Width of the queries of each attention layer, all heads together.
        num_parameters: Parameters of the whole model; 0 if nobody has counted.
    """

    layers: tuple[LayerShape, ...]
    others: tuple[LayerShape, ...] = ()
    attention: tuple[int, ...] = ()
    num_parameters: int = 0


def measure_layers(task: Task, rows: Rows, settings: PassSettings) -> list[LayerShape]:
    """Return the linear maps of a model, with their mean positions on this data."""
    layout = find_components(task.model, settings.layers, kinds=("linear",), heads=settings.heads)
    spread = np.linspace(0, len(rows) - 1, min(len(rows), NUM_SAMPLED_ROWS)).astype(int)
    examples = task.encode(rows.fetch(spread.tolist()))
    sizes = [task.size(example) for example in examples]
    capture = Capture(task.model, layout)
    batch = to_device(task.collate(examples[:1]), task.device)
    uses: list[Any] = []
    with capture.hooks():
        losses = capture.forward(lambda: task.losses(batch), 1)
        capture.backward(losses, lambda g: uses.extend((g, use) for use in linear_uses(g)))
    layers, keys = [], set()
    for gradient, use in uses:
        _, positions, num_in = use.inputs.shape
        grows = sizes[0] > 1 and positions % sizes[0] == 0
        scale = float(np.mean(sizes)) / sizes[0] if grows else 1.0
        shares = use.input_key is not None and use.input_key in keys
        keys.add(use.input_key)
        num_out = use.output_grads.shape[2]
        layers.append(
            LayerShape(
                gradient.component.name, use.name, positions * scale, num_in, num_out, shares
            )
        )
    return layers


def shape_of_language_model(
    config: PretrainedConfig, *, num_tokens: int, layers: Sequence[str] | None = None
) -> ModelShape:
    """Return the shapes of a language model that is never built.

    Args:
        config: Configuration of a causal language model of Hugging Face.
        num_tokens: Tokens of an example.
        layers: Patterns of the names of the linear maps to look at. Default: all.

    Raises:
        ValueError: No linear map matches.

    Example:
        >>> from transformers import GPT2Config
        >>> config = GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=20)
        >>> shape = shape_of_language_model(config, num_tokens=5, layers=["*mlp*"])
        >>> [(layer.num_in, layer.num_out) for layer in shape.layers], shape.attention
        ([(9, 32), (33, 8)], (8,))
    """
    found: list[LayerShape] = []
    kept: list[Tensor] = []  # so that no two share an identity

    def note(name: str, module: nn.Module) -> None:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            bias = getattr(module, "bias", None) is not None
            shared = any(inputs[0] is other for other in kept)
            kept.append(inputs[0])
            positions = output.numel() // output.shape[-1]
            shape = (float(positions), inputs[0].shape[-1] + bias, output.shape[-1])
            found.append(LayerShape(name, name, *shape, shared))

        module.register_forward_hook(hook)

    with FakeTensorMode(), torch.no_grad():
        model: Any = AutoModelForCausalLM.from_config(config)
        for name, module in model.named_modules():
            if _is_linear(module):
                note(name, module)
        model(input_ids=torch.zeros(1, num_tokens, dtype=torch.long), use_cache=False)
        num_parameters = sum(value.numel() for value in model.parameters())
    chosen = tuple(shape for shape in found if layers is None or matches(shape.name, layers))
    if not chosen:
        raise ValueError(
            f"`layers` must match one of the {len(found)} linear maps, such as "
            f"{found[0].name if found else 'none'!r}. Got {layers}."
        )
    others = tuple(shape for shape in found if shape not in chosen)
    sizes: Any = config
    widths = (sizes.hidden_size,) * sizes.num_hidden_layers
    return ModelShape(chosen, others, widths, num_parameters)


def _is_linear(module: nn.Module) -> bool:
    """Say whether a module is a linear map, of PyTorch or of Hugging Face's GPT-2."""
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"
