"""Training: loops, recipes, evaluation, and the cost of a network."""

from pliant.models.predictor import detect, load_detector
from pliant.models.recipe import ModelRecipe, build_detector
from pliant.train.build import build_data
from pliant.train.cost import multiply_adds, parameters
from pliant.train.detector import fit_detector
from pliant.train.distributed import Ranks
from pliant.train.evaluation import average_precision, evaluate
from pliant.train.loop import Recipe, accuracy, fit, save
from pliant.train.recipe import DataRecipe, DetectorRecipe, OptimiserRecipe

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
