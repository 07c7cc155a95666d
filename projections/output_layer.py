"""The layer whose outputs are the logits: what its parameter is called, and its gradients.

Letters: ``o`` output features, ``i`` input features.
"""

from collections.abc import Iterator

from jaxtyping import Float
from torch import Tensor, nn

from projections.components import Component
from projections.factors import OuterProducts
from projections.per_example import Gradient


def output_layer(model: nn.Module) -> str:
    """Return the name of the last linear layer of a model, in the order of its modules.

    Raises:
        ValueError: The model has none.

    Example:
        >>> output_layer(nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 3)))
        '2'
    """
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    if not names:
        raise ValueError(
            f"the model must have an `nn.Linear` layer. {type(model).__name__} has none. Name "
            "another layer with `layer`."
        )
    return names[-1]


def find_weight(model: nn.Module, layer: str | None) -> tuple[str, Float[Tensor, "o i"]]:
    """Return the weight matrix of a layer, and its name in ``model.named_parameters()``.

    Args:
        model: The model.
        layer: Name of the layer; the `output_layer` unless given.

    Raises:
        ValueError: It has no trainable matrix called ``weight``.
    """
    layer = output_layer(model) if layer is None else layer
    modules = dict(model.named_modules())
    if layer not in modules:
        raise ValueError(f"`layer` must be a module of the model. It has no {layer!r}.")
    weight = getattr(modules[layer], "weight", None)
    names = {id(value): name for name, value in model.named_parameters() if value.requires_grad}
    if not isinstance(weight, Tensor) or weight.dim() != 2 or id(weight) not in names:
        raise ValueError(
            f"`layer` must have a trainable matrix `weight`. {layer!r} has none. Name another "
            "layer, or let its parameters require gradients."
        )
    return names[id(weight)], weight.detach()


def outer_products(gradient: Gradient, weight: str) -> Iterator[OuterProducts]:
    """Yield the terms of a gradient that are a linear map with this weight, without their bias."""
    for term in gradient.terms:
        own = term.component.parameters[0]
        if isinstance(term, OuterProducts) and own.name == weight and term.inputs.dim() == 3:
            component = Component(term.component.name, (own,), term.component.kind)
            yield OuterProducts(component, term.inputs, term.output_grads)
