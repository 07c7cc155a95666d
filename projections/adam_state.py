"""The state of Adam, matched to a model by the names of parameters.

A state dict numbers its parameters in the order in which the optimizer got them. Matched
by number alone, a state of another order would be taken without a word wherever shapes
agree, so names are needed, and everything that does not fit is refused.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from projections.errors import DataError, StoreMismatchError
from projections.normal_form import exchange_if_transposed

NUM_NAMED = 5  # parameters that a message lists


@dataclass(frozen=True)
class Moments:
    """The moments of one parameter, in the shape that gradients have here.

    Args:
        first: Mean of gradients, not corrected for its start.
        second: Mean of squared gradients, likewise.
        step: Number of steps taken.
        betas: Decay rates of both.
        eps: What is added to the root of the second.
    """

    first: Float[Tensor, "..."] = field(repr=False)
    second: Float[Tensor, "..."] = field(repr=False)
    step: int
    betas: tuple[float, float]
    eps: float


@dataclass(frozen=True)
class AdamState:
    """The moments of a model's parameters, by name; made by `read_adam_state`.

    Args:
        moments: By the name of the parameter.
    """

    moments: Mapping[str, Moments]

    def of(self, name: str) -> Moments:
        """Return the moments of a parameter.

        Raises:
            StoreMismatchError: There are none.
        """
        if name not in self.moments:
            raise StoreMismatchError(
                f"the optimizer's state must hold every parameter of the pass. {name!r} is not in "
                "it. Leave the layer out with `layers`, or take the state of this model's training."
            )
        return self.moments[name]

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that change with any of the moments."""
        digest = sha256()
        for name, moments in sorted(self.moments.items()):
            settings = (name, moments.step, moments.betas, moments.eps)
            digest.update(repr(settings).encode())
            for values in (moments.first, moments.second):
                digest.update(values.double().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]


def read_adam_state(
    state: Mapping[str, Any], model: nn.Module, *, names: Sequence[str] | None = None
) -> AdamState:
    """Return the moments in the ``state_dict()`` of `torch.optim.Adam` or `AdamW`.

    Args:
        state: The state dict.
        model: The model that was trained.
        names: Names of the parameters in the order in which the optimizer got them:
            ``[name for name, _ in model.named_parameters()]`` for
            ``Adam(model.parameters())``. Not needed where the optimizer was given
            ``model.named_parameters()``, since its state then has the names.

    Raises:
        DataError: It is not the state of Adam, or no step was taken.
        StoreMismatchError: Its parameters are not those of the model.
        ValueError: The names are not known.

    Example:
        >>> import torch
        >>> from projections import read_adam_state
        >>> model = torch.nn.Linear(2, 1)
        >>> optimizer = torch.optim.Adam(model.named_parameters())
        >>> model(torch.ones(1, 2)).sum().backward()
        >>> optimizer.step()
        >>> sorted(read_adam_state(optimizer.state_dict(), model).moments)
        ['bias', 'weight']
    """
    groups = _groups(state, names)
    parameters = dict(model.named_parameters())
    moments = {
        name: _moments(name, state["state"].get(number), group, parameters, model)
        for group, members in groups
        for number, name in members
    }
    trained = {name for name, parameter in parameters.items() if parameter.requires_grad}
    if missing := sorted(trained - set(moments)):
        raise StoreMismatchError(
            "the optimizer's state must hold every trainable parameter of the model. It lacks "
            f"{_some(missing)}. Freeze them with `requires_grad_(False)`, as they were."
        )
    return AdamState(moments)


Groups = list[tuple[Mapping[str, Any], list[tuple[Any, str]]]]
"""Each group of the state with the number and name of its parameters."""


def _groups(state: Mapping[str, Any], names: Sequence[str] | None) -> Groups:
    """Give every number in the state its name."""
    if "param_groups" not in state or "state" not in state:
        raise DataError(
            "the state must be what `optimizer.state_dict()` returns, with 'state' and "
            f"'param_groups'. Got {sorted(map(str, state))}."
        )
    groups = state["param_groups"]
    count = sum(len(group["params"]) for group in groups)
    own = [name for group in groups for name in group.get("param_names") or ()]
    if names is not None and own and list(names) != own:
        raise StoreMismatchError(
            "`names` must be the state's own where it has some. They first differ at "
            f"{next(pair for pair in zip(names, own, strict=False) if pair[0] != pair[1])}."
            if any(a != b for a, b in zip(names, own, strict=False))
            else f"`names` must be the state's own {len(own)} names. Got {len(names)}."
        )
    names = own or names
    if names is None:
        raise ValueError(
            "`names` must be given for a state that numbers its parameters: the names in the "
            "order in which the optimizer got them. Or make it from `model.named_parameters()`."
        )
    if len(names) != count or len(set(names)) != count:
        raise StoreMismatchError(
            f"`names` must be {count} different names, as many as the state has parameters. Got "
            f"{len(names)}, {len(set(names))} of them different."
        )
    left = iter(names)
    return [(group, [(number, next(left)) for number in group["params"]]) for group in groups]


def _moments(
    name: str,
    entry: Mapping[str, Any] | None,
    group: Mapping[str, Any],
    parameters: Mapping[str, nn.Parameter],
    model: nn.Module,
) -> Moments:
    """Return the moments of one parameter, or say why they are none of the model's."""
    if name not in parameters:
        raise StoreMismatchError(
            f"every name in the optimizer's state must be a parameter of the model. {name!r} is "
            f"not; the model has {_some(sorted(parameters))}."
        )
    if not entry or not int(entry.get("step", 0)):
        raise DataError(
            f"the optimizer must have taken a step on every parameter. It took none on {name!r}. "
            "Freeze it with `requires_grad_(False)`, or save the state after a step."
        )
    if "exp_avg_sq" not in entry or "exp_avg" not in entry or "betas" not in group:
        raise DataError(
            "the state must be that of Adam or AdamW, with 'exp_avg' and 'exp_avg_sq'. That of "
            f"{name!r} has {sorted(entry)}."
        )
    if group.get("amsgrad"):
        raise DataError(
            f"the state must be without `amsgrad`, which is not supported. That of {name!r} has it."
        )
    shape = tuple(parameters[name].shape)
    for kind in ("exp_avg", "exp_avg_sq"):
        if tuple(entry[kind].shape) != shape:
            raise StoreMismatchError(
                f"the state of {name!r} must have the shape of the parameter, {shape}. Its {kind} "
                f"has {tuple(entry[kind].shape)}. Are the names in the order of the optimizer?"
            )
    first, second = (
        normal_form(model, name, entry[kind].to(parameters[name]))
        for kind in ("exp_avg", "exp_avg_sq")
    )
    betas = (float(group["betas"][0]), float(group["betas"][1]))
    return Moments(first, second, int(entry["step"]), betas, float(group["eps"]))


def normal_form(model: nn.Module, name: str, values: Tensor) -> Tensor:
    """Return values of a parameter in the layout that gradients have here, but for vectors.

    A weight is ``o i``; that of a convolution has its inputs on several axes.
    """
    values = exchange_if_transposed(model, name, values)
    return values.flatten(1) if values.dim() > 2 else values


def _some(names: Sequence[str]) -> str:
    """Return the first few names."""
    rest = f" and {len(names) - NUM_NAMED} more" if len(names) > NUM_NAMED else ""
    return ", ".join(map(repr, names[:NUM_NAMED])) + rest
