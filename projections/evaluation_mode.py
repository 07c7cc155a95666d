"""Layers that must be as in evaluation, or a gradient hangs on chance or on its batch."""

from torch import nn

from projections.errors import NonDeterministicError

DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def check_evaluation_mode(model: nn.Module) -> None:
    """Refuse dropout that is on and batch norm that mixes the examples of a batch.

    Raises:
        NonDeterministicError: Names the first such layer.
    """
    for name, module in model.named_modules():
        if module.training and (rate := dropout_rate(module)) > 0:
            raise NonDeterministicError(
                "dropout must be off, or gradients are random. The layer "
                f"{name!r} is in training mode with p={rate}. Call `model.eval()` first."
            )
        if isinstance(module, BATCH_NORMS) and (module.training or module.running_mean is None):
            raise NonDeterministicError(
                "batch norm must be in evaluation mode, or an example's gradient depends on the "
                f"rest of its batch. The layer {name!r} is not. Call `model.eval()` first."
            )


def dropout_rate(module: nn.Module) -> float:
    """Return the share that a layer of torch drops in training mode."""
    if isinstance(module, DROPOUTS):
        return module.p
    # Recurrent layers drop between their layers, so with one layer nothing.
    if isinstance(module, nn.RNNBase):
        return module.dropout if module.num_layers > 1 else 0.0
    return module.dropout if isinstance(module, nn.MultiheadAttention) else 0.0
