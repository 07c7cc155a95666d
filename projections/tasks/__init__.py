"""Ready-made tasks."""

from projections.tasks.classification import Classification, SequenceClassification
from projections.tasks.language import CausalLM
from projections.tasks.regression import Regression

__all__ = ["CausalLM", "Classification", "Regression", "SequenceClassification"]
