"""Pictures in, tensors out: the data of the studies and how they are drawn."""

from pliant.data.drawing import Poses, Ranges, draw, object_size, render
from pliant.data.fashion_mnist import FashionMNIST, Split

__all__ = ["FashionMNIST", "Poses", "Ranges", "Split", "draw", "object_size", "render"]
