"""Is the gradient that layers give all of it? Compared with autograd's, for one example."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from projections.capture import Capture
from projections.errors import UnsupportedLayerError
from projections.layout import Layout
from projections.sharded import is_sharded, mean_gradients, precision, put_away

TF32 = 2.0**-10  # the digits that a card keeps of float32, where it may


def check_complete(model: nn.Module, layout: Layout, run: Callable[[], Tensor]) -> None:
    """Compare the captured gradient of one example with autograd's.

    They differ where a weight is used behind its layer's back. Not compared under reentrant
    checkpointing, where autograd gives no such gradient.

    Args:
        model: The model.
        layout: Its components.
        run: Runs the model on one example and returns its loss.

    Raises:
        UnsupportedLayerError: Names the first component whose gradients differ.
    """
    whole = replace(layout, components=layout.wholes, heads={})
    found: dict[str, Tensor] = {}
    capture = Capture(model, whole)
    with capture.hooks():
        losses = capture.forward(run, 1)
        capture.backward(losses, lambda g: found.update({g.component.name: g.sq_norms.sum()}))
    if capture.ran_without_graph:
        return
    expected = _autograd_norms(model, whole, run)
    if not expected:
        return
    scale = max(float(value) for value in expected.values())
    tolerance = closeness(precision(model) or torch.float32, losses.device)
    for name, value in expected.items():
        truth, own = float(value), float(found.get(name, value * 0).clamp(min=0).sqrt())
        if abs(truth - own) > tolerance * (truth + 1e-3 * max(scale, 1)):
            raise UnsupportedLayerError(
                "a weight must be used by its layer's own forward and nothing else. That of "
                f"{name!r} is not: the gradient of an example has the norm {truth:.6g} in all "
                f"and {own:.6g} through the layer. Leave it out with `layers=[...]` or "
                "`requires_grad_(False)`, or call the layer where its weight is used."
            )


def closeness(dtype: torch.dtype, device: torch.device) -> float:
    """Return how far the same number may be off, computed in two ways, relative to itself.

    Args:
        dtype: The precision in which it is computed.
        device: Where; a card may take fewer digits of float32 (tf32).
    """
    short = dtype == torch.float32 and device.type == "cuda"
    eps = TF32 if short and torch.backends.cuda.matmul.allow_tf32 else torch.finfo(dtype).eps
    return 10 * eps**0.5


def _autograd_norms(
    model: nn.Module, layout: Layout, run: Callable[[], Tensor]
) -> dict[str, Tensor]:
    """Return the norm of each component's gradient; nothing if the loss has no graph."""
    put_away(model)
    parameters = dict(model.named_parameters())
    parts = [(c.name, parameters[p.name]) for c in layout.components.values() for p in c.parameters]
    with torch.enable_grad():
        loss = run().sum()
        if not loss.requires_grad:
            return {}
        if is_sharded(model):
            grads = mean_gradients([p for _, p in parts], loss)
        else:
            grads = torch.autograd.grad(loss, [p for _, p in parts], allow_unused=True)
    squares = dict.fromkeys(layout.components, torch.zeros((), device=loss.device))
    for (name, _), grad in zip(parts, grads, strict=True):
        if grad is not None:
            squares[name] = squares[name] + grad.to(loss.dtype).square().sum()
    return {name: square.sqrt() for name, square in squares.items()}
