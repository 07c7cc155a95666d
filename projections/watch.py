"""Watch: per-example gradients of a training step, while it happens.

The forward and backward are the caller's own, in training mode and with trainable
parameters; nothing runs a second time. Each use of a layer is handed on as a term as soon
as backward has reached it, so what is linear in gradients can be read off. Both kinds of
gradient checkpointing are understood. Not handled: what `Capture` refuses, and what it would
run a second time (torch's attention, modules without a rule), since dropout may be on.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from projections.errors import NonDeterministicError, UnsupportedLayerError
from projections.evaluation_mode import BATCH_NORMS
from projections.factors import Term
from projections.layout import Layout
from projections.per_example import fold_examples

BeginForward = Callable[[tuple[Any, ...], dict[str, Any]], int | None]
"""From the model's arguments to the number of examples, or None for a forward to pass unseen."""


@dataclass
class Watch:
    """Hooks on a model that is being trained by somebody else.

    Args:
        model: The model.
        layout: Its components, from `find_components`.
        begin: Called with the arguments of each forward that gradients are on in; returns the
            number of examples, or None if that forward is of no interest.
        observe: Called with the terms of each use, in backward order. Gradients are of
            whatever loss backward starts from, often a mean over the batch.

    Example:
        >>> from projections import find_components
        >>> model = nn.Linear(2, 1)
        >>> norms = []
        >>> watch = Watch(
        ...     model,
        ...     find_components(model),
        ...     begin=lambda args, kwargs: len(args[0]),
        ...     observe=lambda term: norms.append(term.sq_norm()),
        ... )
        >>> with watch.hooks():
        ...     model(torch.ones(3, 2)).sum().backward()
        >>> norms, model.weight.grad
        ([tensor([3., 3., 3.])], tensor([[3., 3.]]))
    """

    model: nn.Module
    layout: Layout
    begin: BeginForward
    observe: Callable[[Term], None]
    _num_examples: int | None = None

    def __post_init__(self) -> None:
        """Refuse layers whose gradients need a second run.

        Raises:
            UnsupportedLayerError: Names the first such layer.
        """
        for served in self.layout.uses.values():
            if served.terms is not None or served.looks_up:
                raise UnsupportedLayerError(
                    "a layer that is watched while it trains must have a rule for what goes in and "
                    f"comes out. {served.name!r} would have to run again. Leave it out with "
                    "`layers=[...]` or `requires_grad_(False)`."
                )

    @contextmanager
    def hooks(self) -> Iterator[None]:
        """Hook the layers; take the hooks off at the end.

        While they are on, forwards raise `NonDeterministicError` where batch norm mixes the
        examples of a batch.
        """
        handles = [self.model.register_forward_pre_hook(self._before_forward, with_kwargs=True)]
        try:
            for module in self.layout.uses:
                handles.append(module.register_forward_hook(self._after_forward))
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _before_forward(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        """Note how many examples come, where their gradients will be asked for."""
        if torch.is_grad_enabled():
            self._num_examples = self.begin(args, kwargs)
            if self._num_examples is not None:
                check_examples_unmixed(self.model)

    def _after_forward(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        """Keep the input, and wait for the gradient of the output."""
        name, count = self.layout.uses[module].name, self._num_examples
        if count is None or not torch.is_grad_enabled():
            return None  # an evaluation, or the first forward of a checkpointed segment
        if not (isinstance(output, Tensor) and output.requires_grad and args):
            return None  # nothing that a gradient could be read off
        inputs = args[0].detach()
        # What is computed once for the whole batch is expanded, so that its gradient still
        # knows the examples apart.
        shared = len(output) == 1 and count > 1
        replaced = output.expand(count, *output.shape[1:]) if shared else output
        if len(inputs) == 1 and count > 1:
            inputs = inputs.expand(count, *inputs.shape[1:])
        version = inputs._version

        def keep(grads: Tensor) -> None:
            if inputs._version != version:
                raise UnsupportedLayerError(
                    "the input of a layer must stay as it is until backward. That of "
                    f"{name!r} was overwritten in place. Make that operation out of place."
                )
            self._hand_on(module, inputs, grads.detach(), count)

        replaced.register_hook(keep)
        return replaced if shared else None

    def _hand_on(self, module: nn.Module, inputs: Tensor, grads: Tensor, count: int) -> None:
        """Make the terms of one use."""
        served = self.layout.uses[module]
        if len(grads) % count:
            raise UnsupportedLayerError(
                f"the first axis of a layer's output must hold the {count} examples of the "
                f"batch. {served.name!r} gives {tuple(grads.shape)}."
            )
        if inputs.is_floating_point() and inputs.dtype != grads.dtype:
            inputs = inputs.to(grads.dtype)
        with torch.no_grad():
            for use in served.uses:
                assert use.part.make_term is not None
                term = use.part.make_term(use.component, module, inputs, grads)
                self.observe(term if len(grads) == count else fold_examples(term, count))


def check_examples_unmixed(model: nn.Module) -> None:
    """Refuse batch norm in training mode; dropout may be on.

    Raises:
        NonDeterministicError: Names the first such layer.
    """
    for name, module in model.named_modules():
        if isinstance(module, BATCH_NORMS) and (module.training or module.running_mean is None):
            raise NonDeterministicError(
                "batch norm must be in evaluation mode, or an example's gradient depends on the "
                f"rest of its batch. The layer {name!r} is not. Call `eval()` on it, or take "
                "alignments from batches of their own."
            )
