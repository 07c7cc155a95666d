"""Ready-made tasks."""

from projections.tasks.classification import Classification, SequenceClassification
from projections.tasks.language import CausalLM
from projections.tasks.log_odds import LogOdds
from projections.tasks.masked import MaskedLM
from projections.tasks.regression import Regression
from projections.tasks.seq2seq import Seq2SeqLM

__all__ = [
    "CausalLM",
    "Classification",
    "LogOdds",
    "MaskedLM",
    "Regression",
    "Seq2SeqLM",
    "SequenceClassification",
]
