"""The networks, one readable file each, built from the operators."""

from pliant.models.alexnet import AlexNet
from pliant.models.faster_rcnn import FasterRCNN
from pliant.models.mimic import FeatureMimic, strip_training_only
from pliant.models.resnet import ResNet, load_imagenet
from pliant.models.rfcn import RFCN

__all__ = ["RFCN", "AlexNet", "FasterRCNN", "FeatureMimic", "ResNet", "load_imagenet", "strip_training_only"]
