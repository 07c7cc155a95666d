"""GraNd: the norm of the gradient over all parameters, averaged over models.

Letters: ``n`` examples, ``c`` possible labels.
"""

import warnings
from collections.abc import Sequence
from math import log
from typing import Any

import numpy as np
from jaxtyping import Float

from projections import (
    CausalLM,
    GradientNorm,
    MaskedLM,
    PassSettings,
    Scores,
    Seq2SeqLM,
    Statistic,
    Task,
    as_rows,
    check_not_empty,
    fingerprint_model,
    run_pass,
)
from selection.scoring.runs import average_runs

CHANCE = 0.95  # of the entropy of an even guess; a mean loss above says that nothing is learnt


class UntrainedWarning(UserWarning):
    """A score was asked of a model that has learnt nothing yet."""


def score_grand(
    tasks: Sequence[Task], data: Any, *, settings: PassSettings | None = None
) -> Scores:
    r"""Score examples by :math:`\|\nabla_\theta \ell\|`, exact over all parameters, by GraNd.

    The gradient is never formed where its factors do. (Other packages take the last layer
    only, :math:`\|p - y\| \sqrt{1 + \|h\|^2}`; a pass with ``layers=("head",)`` gives that.)

    Args:
        tasks: Models early in training, from different seeds; the paper has ten.
        data: The dataset.
        settings: How to read it.

    Returns:
        ``grand``, and for several models ``grand_spread``, their standard deviation.

    Raises:
        ValueError: There is no task.

    Example:
        >>> from torch import nn, ones
        >>> from projections import Classification
        >>> tasks = [Classification(nn.Linear(2, 3)) for _ in range(2)]
        >>> rows = [(ones(2), 0), (9 * ones(2), 1)]
        >>> with warnings.catch_warnings():
        ...     warnings.simplefilter("ignore", UntrainedWarning)
        ...     score_grand(tasks, rows).names
        ['grand', 'grand_spread']

    References:
        Paul et al., Deep learning on a data diet (NeurIPS 2021), arXiv:2107.07075, Def. 2.1;
        Kirsch, Does "Deep learning on a data diet" reproduce? (2023), arXiv:2303.14753: at
        initialisation it does not.
    """
    check_not_empty("tasks", len(tasks))
    rows = as_rows(data)
    runs = []
    for task in tasks:
        statistics = [Statistic(name) for name in guess_statistics(task)]
        table = run_pass(task, rows, [*statistics, GradientNorm("grand")], settings=settings)
        found = table.columns
        if sentence := untrained(task, found["loss"], found.get("num_tokens")):
            warnings.warn(sentence, UntrainedWarning, stacklevel=2)
        note = {"model": fingerprint_model(task.model)}
        runs.append(Scores(table.ids, {"grand": found["grand"]}, provenance=note))
    return runs[0] if len(runs) == 1 else average_runs(runs)


def guess_statistics(task: Task) -> tuple[str, ...]:
    """Return the statistics of a task by which `untrained` compares it with a guess.

    Example:
        >>> from torch import nn
        >>> from projections import Classification
        >>> guess_statistics(Classification(nn.Linear(2, 4)))
        ('loss',)
    """
    counts = isinstance(task, CausalLM | MaskedLM | Seq2SeqLM)
    return ("loss", "num_tokens") if counts else ("loss",)


def untrained(
    task: Task,
    losses: Float[np.ndarray, " n"],
    num_tokens: Float[np.ndarray, " n"] | None = None,
) -> str | None:
    r"""Return a warning if a model is no better than an even guess, :math:`\log c` a label.

    Args:
        task: The task, which knows the number ``c`` of labels or tokens; of one that does
            not nothing is said.
        losses: The loss of each example.
        num_tokens: Number of labels that each loss sums; one unless given.

    Example:
        >>> from torch import nn
        >>> from projections import Classification
        >>> untrained(Classification(nn.Linear(2, 4)), np.array([0.1, 0.3])) is None
        True
    """
    config = getattr(task.model, "config", None)
    outcomes = task.num_labels or (
        None if num_tokens is None else getattr(config, "vocab_size", None)
    )
    if outcomes is None or outcomes < 2 or not len(losses):
        return None
    mean = float(np.sum(losses) / (len(losses) if num_tokens is None else np.sum(num_tokens)))
    if mean < CHANCE * log(outcomes):
        return None
    return (
        f"the model is no better than an even guess (mean loss {mean:.3g} a label, where "
        f"{outcomes} labels guessed evenly have {log(outcomes):.3g}). At initialisation, "
        "gradient norms follow the norms of the inputs and prune no better than chance (Kirsch "
        "2023). Score a model that has trained for a while."
    )
