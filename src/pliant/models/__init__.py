"""The networks, one readable file each, built from the operators; and the predictor, images in and detections out."""

from pliant.models.alexnet import AlexNet
from pliant.models.deformable_detr import DeformableDETR
from pliant.models.faster_rcnn import FasterRCNN
from pliant.models.mimic import FeatureMimic, strip_training_only
from pliant.models.predictor import Predictor
from pliant.models.recipe import ModelRecipe, build_detector
from pliant.models.resnet import ResNet, load_imagenet
from pliant.models.rfcn import RFCN

__all__ = [
    "RFCN",
    "AlexNet",
    "DeformableDETR",
    "FasterRCNN",
    "FeatureMimic",
    "ModelRecipe",
    "Predictor",
    "ResNet",
    "build_detector",
    "load_imagenet",
    "strip_training_only",
]
