"""The networks, one readable file each, built from the operators."""

from pliant.models.alexnet import AlexNet
from pliant.models.resnet import ResNet, load_imagenet

__all__ = ["AlexNet", "ResNet", "load_imagenet"]
