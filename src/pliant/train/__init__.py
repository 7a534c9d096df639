"""Training: the loops, recipes, evaluation, checkpoints and what a network costs."""

from pliant.train.build import build_data, build_detector, load_detector
from pliant.train.cost import multiply_adds, parameters
from pliant.train.detector import fit_detector
from pliant.train.distributed import Ranks
from pliant.train.evaluation import average_precision, detect, evaluate
from pliant.train.loop import Recipe, accuracy, fit, save
from pliant.train.recipe import DataRecipe, DetectorRecipe, ModelRecipe, OptimiserRecipe

__all__ = [
    "DataRecipe",
    "DetectorRecipe",
    "ModelRecipe",
    "OptimiserRecipe",
    "Ranks",
    "Recipe",
    "accuracy",
    "average_precision",
    "build_data",
    "build_detector",
    "detect",
    "evaluate",
    "fit",
    "fit_detector",
    "load_detector",
    "multiply_adds",
    "parameters",
    "save",
]
