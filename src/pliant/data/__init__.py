"""Pictures in, tensors out: the data of the studies and how they are drawn."""

from pliant.data.coco import Target
from pliant.data.composed import Composed
from pliant.data.drawing import Poses, Ranges, draw, object_size, render, warp
from pliant.data.fashion_mnist import FashionMNIST, Split

__all__ = ["Composed", "FashionMNIST", "Poses", "Ranges", "Split", "Target", "draw", "object_size", "render", "warp"]
