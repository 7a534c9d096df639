"""Training: the loop, recipes, evaluation and what a network costs."""

from pliant.train.cost import multiply_adds, parameters
from pliant.train.loop import Recipe, accuracy, fit, save

__all__ = ["Recipe", "accuracy", "fit", "multiply_adds", "parameters", "save"]
