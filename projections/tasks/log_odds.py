"""The log-odds of labels as what a model puts out: the function that TRAK linearises.

Letters: ``n`` examples, ``t`` positions, ``c`` classes.
"""

from typing import Any

from jaxtyping import Float
from torch import Tensor

from projections.task import Task
from projections.tasks.categorical import IGNORED, margins


class LogOdds(Task):
    r"""A task with labels, with :math:`-\log(p / (1 - p))` in place of its loss.

    Summed over the positions that have a label. Its statistic ``"doubt"`` is one less the mean
    probability of the labels, by which the gradient of the loss is shorter.

    Args:
        task: A classification or language task.

    Raises:
        TypeError: The task has no logits and labels.

    Example:
        >>> import torch
        >>> from projections import Classification
        >>> model = torch.nn.Linear(1, 2)
        >>> _ = torch.nn.init.zeros_(model.weight), torch.nn.init.zeros_(model.bias)
        >>> batch = torch.ones(1, 1), torch.tensor([0])
        >>> LogOdds(Classification(model)).statistics(batch)["doubt"]
        tensor([0.5000])

    References:
        Park et al., TRAK (ICML 2023), arXiv:2303.14186, Sec. 3.
    """

    def __init__(self, task: Task) -> None:
        """Borrow the model and the batching of ``task``."""
        if not hasattr(task, "logits_and_labels"):
            raise TypeError(
                "log-odds need a task with `logits_and_labels`, such as Classification or "
                f"CausalLM. Got {type(task).__name__}. Use TRAK on rows of loss gradients."
            )
        super().__init__(task.model)
        self.task: Any = task
        self.checked = task.checked
        self.encode = task.encode
        self.size = task.size
        self.collate = task.collate
        self.num_examples = task.num_examples
        self.token_mask = task.token_mask
        if type(task).measurements is not Task.measurements:  # a query that is asked on purpose
            self.measurements = task.measurements

    def losses(self, batch: Any) -> Float[Tensor, " n"]:
        """Return the negative log-odds of each example's labels."""
        return self.statistics(batch)["loss"]

    def statistics(self, batch: Any) -> dict[str, Float[Tensor, " n"]]:
        """Return the negative log-odds, and one less the mean probability."""
        logits, labels = self.task.logits_and_labels(batch)
        counted = (labels != IGNORED).flatten()
        flat, known = logits.flatten(0, -2), labels.flatten().clamp(min=0)
        values = margins(flat, known) * counted
        odds = values.view(len(labels), -1)
        probabilities = odds.detach().sigmoid() * counted.view(odds.shape)
        means = probabilities.sum(1) / counted.view(odds.shape).sum(1).clamp(min=1)
        return {"loss": -odds.sum(1), "doubt": 1 - means}
