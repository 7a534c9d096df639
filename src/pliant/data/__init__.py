"""Data sets and transforms: images in, tensors out; the scenes of the studies are drawn here."""

from pliant.data.categories import matched
from pliant.data.coco import CocoDetection, Target
from pliant.data.composed import Composed
from pliant.data.crowns import Crowns
from pliant.data.drawing import Poses, Ranges, draw, object_size, render, warp
from pliant.data.fashion_mnist import FashionMNIST, Split
from pliant.data.images import BrokenImage, read_image
from pliant.data.loader import Batch, Detection, Transform, batches
from pliant.data.part import Part, held_out
from pliant.data.transforms import Chain, ColourJitter, Crop, Flip, Resize, ScaleJitter

__all__ = [
    "Batch",
    "BrokenImage",
    "Chain",
    "CocoDetection",
    "ColourJitter",
    "Composed",
    "Crop",
    "Crowns",
    "Detection",
    "FashionMNIST",
    "Flip",
    "Part",
    "Poses",
    "Ranges",
    "Resize",
    "ScaleJitter",
    "Split",
    "Target",
    "Transform",
    "batches",
    "draw",
    "held_out",
    "matched",
    "object_size",
    "read_image",
    "render",
    "warp",
]
