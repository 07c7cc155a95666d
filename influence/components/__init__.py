"""Which components of a model carry influence, and which of them are enough."""

from influence.components.chosen import ChosenComponents, choose_components, split_queries
from influence.components.costs import Budget, component_costs
from influence.components.objectives import Accuracy, Agreement, FittedObjective, Objective
from influence.components.passes import component_products
from influence.components.products import ComponentProducts
from influence.components.search import (
    ComponentPath,
    search_backward,
    search_beam,
    search_forward,
)
from influence.components.sources import SourceQuestions, beginnings, source_questions

__all__ = [
    "Accuracy",
    "Agreement",
    "Budget",
    "ChosenComponents",
    "ComponentPath",
    "ComponentProducts",
    "FittedObjective",
    "Objective",
    "SourceQuestions",
    "beginnings",
    "choose_components",
    "component_costs",
    "component_products",
    "search_backward",
    "search_beam",
    "search_forward",
    "source_questions",
    "split_queries",
]
